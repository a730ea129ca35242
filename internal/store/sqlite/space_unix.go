//go:build linux || darwin

package sqlite

import (
	"errors"
	"os"
	"syscall"
)

// FreeSpace returns the bytes that this process can still write to the disk of a folder: for root, also those that are
// reserved for root.
func FreeSpace(folder string) (int64, error) {
	var disk syscall.Statfs_t
	if err := syscall.Statfs(folder, &disk); err != nil {
		return 0, err
	}
	if disk.Blocks == 0 { // as some network and FUSE file systems report
		return 0, errors.ErrUnsupported
	}
	blocks := disk.Bavail
	if os.Geteuid() == 0 {
		blocks = disk.Bfree
	}
	return int64(blocks) * int64(disk.Bsize), nil //nolint:unconvert // the types are the system's
}

//go:build linux || darwin

package doctor

import "syscall"

// freeSpace returns the free bytes for users other than root on the disk of a directory.
func freeSpace(folder string) (int64, error) {
	var disk syscall.Statfs_t
	if err := syscall.Statfs(folder, &disk); err != nil {
		return 0, err
	}
	return int64(disk.Bavail) * int64(disk.Bsize), nil //nolint:unconvert // the types are the system's
}

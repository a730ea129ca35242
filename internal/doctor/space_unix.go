//go:build linux || darwin

package doctor

import "syscall"

// freeSpace is how many bytes a user who is not root may still write to the disk of a folder.
func freeSpace(folder string) (int64, error) {
	var disk syscall.Statfs_t
	if err := syscall.Statfs(folder, &disk); err != nil {
		return 0, err
	}
	return int64(disk.Bavail) * int64(disk.Bsize), nil //nolint:unconvert // the types are the system's
}

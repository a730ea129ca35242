//go:build unix

// Package posix is what tests and their tools need of a Unix system. On other systems it compiles, so that the tests can be
// checked there, and its functions fail.
package posix

import (
	"os"
	"syscall"
	"time"
)

// Signals that only Unix has.
const (
	SIGSTOP = syscall.SIGSTOP
	SIGCONT = syscall.SIGCONT
	SIGUSR1 = syscall.SIGUSR1
	SIGUSR2 = syscall.SIGUSR2
)

// Kill signals the process, or the process group of a negative number.
func Kill(pid int, s syscall.Signal) error { return syscall.Kill(pid, s) }

// Lock waits until no other process has locked the file or folder. Closing it ends the lock.
func Lock(file *os.File) error { return syscall.Flock(int(file.Fd()), syscall.LOCK_EX) }

// NewGroup makes the process the leader of a process group.
func NewGroup(attributes *syscall.SysProcAttr) { attributes.Setpgid = true }

// NewSession are the attributes of a process with a session of its own.
func NewSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// NewRoot makes a folder the root of the process.
func NewRoot(attributes *syscall.SysProcAttr, folder string) { attributes.Chroot = folder }

// As are the attributes of a process of another user.
func As(uid, gid uint32) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
}

// Account is the user that [As] has set.
func Account(attributes *syscall.SysProcAttr) (uid, gid int, set bool) {
	if attributes.Credential == nil {
		return 0, 0, false
	}
	return int(attributes.Credential.Uid), int(attributes.Credential.Gid), true
}

// ProcessorTime is how long this process has used the processor.
func ProcessorTime() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, err
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

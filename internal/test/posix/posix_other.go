//go:build !unix

// Package posix is what tests and their tools need of a Unix system. On other systems it compiles, so that the tests can be
// checked there, and its functions fail.
package posix

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// Signals that only Unix has.
const (
	SIGSTOP = syscall.Signal(19)
	SIGCONT = syscall.Signal(18)
	SIGUSR1 = syscall.Signal(10)
	SIGUSR2 = syscall.Signal(12)
)

// Kill signals the process, or the process group of a negative number.
func Kill(int, syscall.Signal) error { return errors.ErrUnsupported }

// Lock waits until no other process has locked the file or folder. Closing it ends the lock.
func Lock(*os.File) error { return errors.ErrUnsupported }

// NewGroup makes the process the leader of a process group.
func NewGroup(*syscall.SysProcAttr) {}

// NewSession are the attributes of a process with a session of its own.
func NewSession() *syscall.SysProcAttr { return nil }

// NewRoot makes a folder the root of the process.
func NewRoot(*syscall.SysProcAttr, string) {}

// As are the attributes of a process of another user.
func As(uint32, uint32) *syscall.SysProcAttr { return nil }

// Account is the user that [As] has set.
func Account(*syscall.SysProcAttr) (uid, gid int, set bool) { return 0, 0, false }

// ProcessorTime is how long this process has used the processor.
func ProcessorTime() (time.Duration, error) { return 0, errors.ErrUnsupported }

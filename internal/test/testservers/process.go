package testservers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/healz/worker/internal/test/posix"
)

const (
	startTimeout = 2 * time.Minute
	stopTimeout  = 10 * time.Second
	pollInterval = 25 * time.Millisecond
	logTail      = 2000 // bytes
)

// errExited is the end of a program before it was ready.
var errExited = errors.New("exited at its start")

// process is a running server program, the leader of a process group of its own.
type process struct {
	name   string
	group  int
	log    string
	exited chan struct{}
}

// startProcess starts a program whose output goes to a file in dir.
func startProcess(command *exec.Cmd, dir string) (*process, error) {
	name := filepath.Base(command.Path)
	output, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", name, err)
	}
	defer output.Close()
	command.Stdout, command.Stderr = output, output
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	posix.NewGroup(command.SysProcAttr)
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}

	p := &process{name: name, group: command.Process.Pid, log: output.Name(), exited: make(chan struct{})}
	go func() {
		defer close(p.exited)
		_ = command.Wait()
	}()
	return p, nil
}

// startReady starts a program and returns when it is ready. One that does not get there is stopped.
func startReady(
	ctx context.Context, command *exec.Cmd, dir string, stopSignal syscall.Signal, ready func(context.Context) error,
) (*process, error) {
	p, err := startProcess(command, dir)
	if err != nil {
		return nil, err
	}
	if err := p.waitUntil(ctx, ready); err != nil {
		p.stop(stopSignal)
		return nil, err
	}
	return p, nil
}

// waitUntil polls ready until it succeeds. It fails when the process exits, when ctx ends, and after startTimeout.
func (p *process) waitUntil(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout,
		fmt.Errorf("%s was not ready within %s", p.name, startTimeout))
	defer cancel()
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-poll.C:
		case <-p.exited:
			return fmt.Errorf("%s %w:\n%s", p.name, errExited, p.tail())
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

func (p *process) tail() []byte {
	content, err := os.ReadFile(p.log)
	if err != nil {
		return []byte(err.Error())
	}
	return bytes.TrimSpace(content[max(0, len(content)-logTail):])
}

// stop signals the process group and returns when all of it is gone; what is left after stopTimeout is killed.
func (p *process) stop(signal syscall.Signal) {
	deadline := time.After(stopTimeout)
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for ; ; signal = 0 {
		if err := posix.Kill(-p.group, signal); errors.Is(err, syscall.ESRCH) {
			break
		}
		select {
		case <-poll.C:
		case <-deadline:
			_ = posix.Kill(-p.group, syscall.SIGKILL)
			<-p.exited
			return
		}
	}
	<-p.exited
}

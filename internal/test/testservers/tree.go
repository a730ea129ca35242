package testservers

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/healz/worker/internal/test/posix"
)

// tree returns the process and all that descend from it, parents first. It knows them from /proc.
func (p *process) tree() ([]int, error) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		return nil, errors.New("the processes of a server can be told only where there is a /proc")
	}
	children := map[int][]int{}
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, fmt.Errorf("list the processes: %w", err)
	}
	for _, path := range paths {
		stat, err := os.ReadFile(path) // fails for a process that ended meanwhile
		if err != nil {
			continue
		}
		// The name, in brackets, may hold anything; the state and the parent follow it.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) < 2 || fields[0][0] == 'Z' {
			continue
		}
		child, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		parent, _ := strconv.Atoi(string(fields[1]))
		children[parent] = append(children[parent], child)
	}
	all := []int{p.group}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all, nil
}

// signalTree signals the process and its descendants, parents first: one that is stopped has no more children.
func (p *process) signalTree(signal syscall.Signal) error {
	if err := posix.Kill(p.group, signal); err != nil {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	all, err := p.tree()
	if err != nil {
		return err
	}
	for _, pid := range all[1:] {
		_ = posix.Kill(pid, signal) // it may have ended just now
	}
	return nil
}

// kill kills the process and returns when its descendants are gone too: those of its group are killed with it, the
// others, as those of Postgres, end by themselves when they see it gone.
func (p *process) kill() error {
	all, err := p.tree()
	if err != nil {
		return err
	}
	if err := posix.Kill(-p.group, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	<-p.exited
	deadline := time.After(stopTimeout)
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for _, pid := range all {
		for !errors.Is(posix.Kill(pid, 0), syscall.ESRCH) {
			select {
			case <-poll.C:
			case <-deadline:
				return fmt.Errorf("process %d of %s outlives it", pid, p.name)
			}
		}
	}
	return nil
}

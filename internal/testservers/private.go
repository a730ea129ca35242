package testservers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
)

// private holds the servers that this test process had started. It is the process's, since tests of one package share
// nothing else.
//
//nolint:gochecknoglobals // the tests of a package have no other place to share a server
var private privateServers

// privateServers starts each kind of server at most once.
type privateServers struct {
	allowed bool
	servers [kinds]privateServer
}

type privateServer struct {
	once       sync.Once
	supervisor *supervisor
	err        error
}

// allow is called by Main, without which a supervisor, which is the same program again, would run the tests.
func (p *privateServers) allow() { p.allowed = true }

// settings starts the server of that kind, unless it runs, and returns the settings that name it.
func (p *privateServers) settings(t testing.TB, k kind) map[string]string {
	t.Helper()
	if !p.allowed {
		t.Fatal("a package that needs test servers must have: func TestMain(m *testing.M) { testservers.Main(m) }")
	}
	server := &p.servers[k]
	server.once.Do(func() {
		server.supervisor, server.err = startSupervisor(t.Context(), k)
	})
	if server.err != nil {
		t.Fatal(server.err)
	}
	return server.supervisor.settings
}

func (p *privateServers) stop() error {
	var failures []error
	for i := range p.servers {
		if supervisor := p.servers[i].supervisor; supervisor != nil {
			failures = append(failures, supervisor.stop())
		}
	}
	return errors.Join(failures...)
}

// supervisor is this process's side of a process that runs one private server. The pipe to its standard input is the
// leash: the server is stopped when the pipe closes, be it by stop or by the end of this process.
type supervisor struct {
	kind     kind
	command  *exec.Cmd
	leash    io.Closer
	settings map[string]string
}

// startSupervisor returns when the server is ready. Cancelling ctx gives up a start; it does not end a started server.
func startSupervisor(ctx context.Context, k kind) (*supervisor, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the own program: %w", err)
	}
	command := exec.CommandContext(context.WithoutCancel(ctx), program)
	command.Env = append(os.Environ(), superviseVariable+"="+k.String())
	command.Stderr = os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // out of reach of the terminal's Ctrl-C
	leash, err := command.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("open the pipe to the supervisor: %w", err)
	}
	answer, err := command.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("open the pipe from the supervisor: %w", err)
	}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start the supervisor: %w", err)
	}
	s := &supervisor{kind: k, command: command, leash: leash}

	giveUp := context.AfterFunc(ctx, func() { _ = leash.Close() })
	var started report
	err = json.NewDecoder(answer).Decode(&started)
	if !giveUp() {
		err = context.Cause(ctx)
	}
	if err == nil && started.Error != "" {
		err = errors.New(started.Error)
	}
	if err != nil {
		return nil, fmt.Errorf("start a private %s: %w", k, errors.Join(err, s.stop()))
	}
	s.settings = started.Settings
	return s, nil
}

// stop returns when the server and its folder are gone.
func (s *supervisor) stop() error {
	_ = s.leash.Close()
	if err := s.command.Wait(); err != nil {
		return fmt.Errorf("stop the private %s: %w", s.kind, err)
	}
	return nil
}

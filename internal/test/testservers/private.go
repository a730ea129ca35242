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
	"testing"

	"github.com/healz/worker/internal/test/posix"
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
		server.supervisor, server.err = startSupervisor(t.Context(), k, false)
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
	leash    io.WriteCloser
	orders   *json.Encoder
	answers  *json.Decoder
	settings map[string]string
	log      string
}

// startSupervisor returns when the server is ready. Cancelling ctx gives up a start; it does not end a started server.
func startSupervisor(ctx context.Context, k kind, durable bool, settings ...string) (*supervisor, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the own program: %w", err)
	}
	command := exec.CommandContext(context.WithoutCancel(ctx), program)
	command.Env = append(append(os.Environ(), superviseVariable+"="+k.String()), settings...)
	if durable {
		command.Env = append(command.Env, durableVariable+"=1")
	}
	command.Stderr = os.Stderr
	command.SysProcAttr = posix.NewSession() // out of reach of the terminal's Ctrl-C
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
	s := &supervisor{
		kind: k, command: command, leash: leash, orders: json.NewEncoder(leash), answers: json.NewDecoder(answer),
	}

	giveUp := context.AfterFunc(ctx, func() { _ = leash.Close() })
	var started report
	err = s.answers.Decode(&started)
	if !giveUp() {
		err = context.Cause(ctx)
	}
	if err == nil && started.Error != "" {
		err = errors.New(started.Error)
	}
	if err != nil {
		return nil, fmt.Errorf("start a private %s: %w", k, errors.Join(err, s.stop()))
	}
	s.settings, s.log = started.Settings, started.Log
	return s, nil
}

// do gives an order and waits until it is done.
func (s *supervisor) do(o order) (output string, err error) {
	if err := s.orders.Encode(o); err != nil {
		return "", fmt.Errorf("%s the private %s: %w", o.Do, s.kind, err)
	}
	var done report
	if err := s.answers.Decode(&done); err != nil {
		return "", fmt.Errorf("%s the private %s: %w", o.Do, s.kind, err)
	}
	if done.Error != "" {
		return "", fmt.Errorf("%s the private %s: %s", o.Do, s.kind, done.Error)
	}
	return done.Output, nil
}

// stop returns when the server and its folder are gone.
func (s *supervisor) stop() error {
	_ = s.leash.Close()
	if err := s.command.Wait(); err != nil {
		return fmt.Errorf("stop the private %s: %w", s.kind, err)
	}
	return nil
}

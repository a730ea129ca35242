package testservers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"sync"
	"syscall"
)

// With runs a command with DATABASE_URL, RABBITMQ_URL and RABBITMQ_MANAGEMENT_URL in its environment, the settings of
// private servers that live as long as the command; a server that the environment names already is taken instead. It
// passes SIGINT and SIGTERM on to the command and returns its exit code: 128 + the signal's number if one ended it.
//
// The program that calls With must call [Supervise] first.
func With(ctx context.Context, command []string) (code int, err error) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)

	supervisors, err := startMissing(ctx)
	defer func() {
		for _, s := range supervisors {
			err = errors.Join(err, s.stop())
		}
	}()
	if err != nil {
		return 1, err
	}

	child := exec.CommandContext(context.WithoutCancel(ctx), command[0], command[1:]...)
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.Env = os.Environ()
	for _, s := range supervisors {
		for name, value := range s.settings {
			child.Env = append(child.Env, name+"="+value)
		}
	}
	if err := child.Start(); err != nil {
		return 1, fmt.Errorf("start %s: %w", command[0], err)
	}
	return wait(child, signals)
}

// startMissing starts the servers that the environment does not name. It returns those that started also when another
// did not.
func startMissing(ctx context.Context) ([]*supervisor, error) {
	var started [kinds]*supervisor
	var failures [kinds]error
	var group sync.WaitGroup
	for k, variable := range [kinds]string{kindPostgres: databaseURL, kindRabbitMQ: rabbitMQURL} {
		if os.Getenv(variable) == "" {
			group.Go(func() { started[k], failures[k] = startSupervisor(ctx, kind(k), false) })
		}
	}
	group.Wait()
	missing := func(s *supervisor) bool { return s == nil }
	return slices.DeleteFunc(started[:], missing), errors.Join(failures[:]...)
}

// wait passes signals on to the command until it ends.
func wait(command *exec.Cmd, signals <-chan os.Signal) (code int, err error) {
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	for {
		select {
		case s := <-signals:
			_ = command.Process.Signal(s) // it may have ended just now
		case err := <-ended:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 1, fmt.Errorf("run %s: %w", command.Path, err)
			}
			if status, ok := command.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
				return 128 + int(status.Signal()), nil
			}
			return command.ProcessState.ExitCode(), nil
		}
	}
}

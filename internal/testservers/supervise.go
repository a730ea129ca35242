package testservers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

// superviseVariable, when set, makes a test program (or with-servers) the supervisor of one server of that kind.
const superviseVariable = "TESTSERVERS_SUPERVISE"

// kind is a kind of server.
type kind int

const (
	kindPostgres kind = iota
	kindRabbitMQ

	kinds = iota
)

func (k kind) String() string { return [kinds]string{"Postgres", "RabbitMQ"}[k] }

// report is the supervisor's only answer on its standard output.
type report struct {
	Settings map[string]string
	Error    string
}

// server is a private server that is ready.
type server struct {
	settings map[string]string
	stop     func()
}

// Supervise makes this process the supervisor of a private server, and then exits, if it was started to be that by
// another process of the same program. A program calls it before all else; [Main] does so for tests.
func Supervise() {
	name := os.Getenv(superviseVariable)
	if name == "" {
		return
	}
	signal.Ignore(syscall.SIGPIPE) // whoever waited for the report may be gone: the server must be stopped all the same
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()

	start := startPostgres
	if name == kindRabbitMQ.String() {
		start = startRabbitMQ
	}
	if err := serve(ctx, start); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve starts a server, reports on standard output how it went, and keeps the server up until ctx ends.
func serve(ctx context.Context, start func(ctx context.Context, dir string) (server, error)) (err error) {
	answer := json.NewEncoder(os.Stdout)
	dir, err := os.MkdirTemp("", "testservers-")
	if err != nil {
		return answer.Encode(report{Error: err.Error()})
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	s, err := start(ctx, dir)
	if err != nil {
		return answer.Encode(report{Error: err.Error()})
	}
	defer s.stop()
	if err := answer.Encode(report{Settings: s.settings}); err != nil {
		return fmt.Errorf("report the server's address: %w", err)
	}
	<-ctx.Done()
	return nil
}

// freePort returns a port of 127.0.0.1 that nobody listens on. It is below the range from which systems take the ports
// of outgoing connections, so that none takes it before the server does.
func freePort(ctx context.Context) (string, error) {
	const lowest, highest, tries = 20_000, 32_000, 100
	var config net.ListenConfig
	for range tries {
		port := strconv.Itoa(lowest + rand.N(highest-lowest))
		if listener, err := config.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", port)); err == nil {
			return port, listener.Close()
		}
	}
	return "", fmt.Errorf("found no free port on 127.0.0.1 in %d tries", tries)
}

package testservers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/healz/worker/internal/test/posix"
)

// superviseVariable, when set, makes a test program (or with-servers) the supervisor of one server of that kind.
const superviseVariable = "TESTSERVERS_SUPERVISE"

// kind is a kind of server.
type kind int

const (
	kindPostgres kind = iota
	kindRabbitMQ
	kindStandby
	kindPGBouncer

	kinds = int(kindStandby) // that tests share
)

func (k kind) String() string {
	return [...]string{"Postgres", "RabbitMQ", "Postgres standby", "pgbouncer"}[k]
}

// durableVariable, when set beside it, makes the server one that syncs its data to disk.
const durableVariable = "TESTSERVERS_DURABLE"

// rootVariable, when set, is the folder of another system, whose servers are run in place of this one's. Only root can.
const rootVariable = "TESTSERVERS_ROOT"

func root() string { return strings.TrimSuffix(os.Getenv(rootVariable), "/") }

// inRoot is a path in that folder as the servers see it.
func inRoot(path string) string { return strings.TrimPrefix(path, root()) }

// OutsideRoot is a path as the servers see it, for the tests.
func OutsideRoot(path string) string { return root() + path }

// Further settings of a server that belongs to another one.
const (
	behindVariable   = "TESTSERVERS_BEHIND"    // the URL of a standby's primary, or of the server behind a pooler
	poolModeVariable = "TESTSERVERS_POOL_MODE" // of pgbouncer
	nodeVariable     = "TESTSERVERS_NODE"      // the number of a broker in a cluster, from 1
	cookieVariable   = "TESTSERVERS_COOKIE"    // what the nodes of a cluster know each other by
	mapperVariable   = "TESTSERVERS_MAPPER"    // the port of the port mapper that the first node has started
)

// report is the supervisor's answer on its standard output: one when the server is ready, and one to each order.
type report struct {
	Settings map[string]string
	Log      string
	Output   string
	Error    string
}

// order is what a supervisor is told on its standard input.
type order struct {
	Do        action
	Arguments []string
}

// action is what a supervisor can do to its server.
type action string

const (
	actionKill    action = "kill"
	actionStop    action = "stop"
	actionStart   action = "start"
	actionPause   action = "pause"
	actionResume  action = "resume"
	actionControl action = "control"
)

// starter starts a server on free ports, with its data in dir, which it leaves to its caller when it fails.
type starter func(ctx context.Context, dir string, durable bool) (*server, error)

// startTries is how often a server is started, each time on other ports.
const startTries = 5

// server is a private server that is ready.
type server struct {
	dir      string
	settings map[string]string
	process  *process
	gentle   syscall.Signal // stops it in good order
	// start starts the server's process, on the same port and with the same data.
	start func(context.Context) (*process, error)
	// control runs the server's own administration program, if it has one.
	control func(ctx context.Context, arguments []string) (output string, err error)
	stop    func()
}

// obey does to the server what it is told to.
func (s *server) obey(ctx context.Context, o order) (output string, err error) {
	switch o.Do {
	case actionKill:
		return "", s.process.kill()
	case actionStop:
		s.process.stop(s.gentle)
		return "", nil
	case actionStart:
		started, err := s.start(ctx)
		if err == nil {
			s.process = started
		}
		return "", err
	case actionPause:
		return "", s.process.signalTree(posix.SIGSTOP)
	case actionResume:
		return "", s.process.signalTree(posix.SIGCONT)
	case actionControl:
		if s.control == nil {
			return "", errors.New("the server has no administration program")
		}
		return s.control(ctx, o.Arguments)
	default:
		return "", fmt.Errorf("there is no action %q", o.Do)
	}
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
	orders := make(chan order)
	go func() {
		defer cancel()
		input := json.NewDecoder(os.Stdin)
		for {
			var o order
			if input.Decode(&o) != nil {
				return
			}
			orders <- o
		}
	}()

	var start starter = startPostgres
	switch name {
	case kindRabbitMQ.String():
		start = startRabbitMQ
	case kindPGBouncer.String():
		start = startPGBouncer
	}
	if err := serve(ctx, start, os.Getenv(durableVariable) != "", orders); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve starts a server, reports on standard output how it went, and obeys orders until ctx ends.
func serve(ctx context.Context, start starter, durable bool, orders <-chan order) (err error) {
	answer := json.NewEncoder(os.Stdout)
	s, err := startAnew(ctx, start, durable)
	if err != nil {
		return answer.Encode(report{Error: err.Error()})
	}
	defer func() {
		_ = s.process.signalTree(posix.SIGCONT) // it may be killed, or never have been paused
		s.stop()
		err = errors.Join(err, os.RemoveAll(s.dir))
	}()
	if err := answer.Encode(report{Settings: s.settings, Log: s.process.log}); err != nil {
		return fmt.Errorf("report the server's address: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case o := <-orders:
			var r report
			var failed error
			if r.Output, failed = s.obey(ctx, o); failed != nil {
				r.Error = failed.Error()
			}
			if err := answer.Encode(r); err != nil && ctx.Err() == nil {
				return fmt.Errorf("answer an order: %w", err)
			}
		}
	}
}

// startAnew starts a server in a folder of its own. One that exits is started again from nothing, at most startTries times:
// another program may have taken one of its ports between their choice and their use.
func startAnew(ctx context.Context, start starter, durable bool) (*server, error) {
	for try := 1; ; try++ {
		parent := "" // the usual one
		if root() != "" {
			parent = root() + "/tmp"
		}
		dir, err := os.MkdirTemp(parent, "testservers-")
		if err != nil {
			return nil, err
		}
		s, err := start(ctx, dir, durable)
		if err == nil {
			s.dir = dir
			return s, nil
		}
		err = errors.Join(err, os.RemoveAll(dir))
		if try == startTries || !errors.Is(err, errExited) {
			return nil, err
		}
	}
}

// freePorts returns n ports that nobody listens on at any address, as a broker refuses one that is taken at another address
// than its own. They are below the range from which systems take the ports of outgoing connections, so that few take
// one before the server does.
func freePorts(ctx context.Context, n int) (ports []string, err error) {
	const lowest, highest, tries = 20_000, 32_000, 100
	var config net.ListenConfig
	for try := 0; len(ports) < n; try++ {
		if try == tries {
			return nil, fmt.Errorf("found only %d of %d free ports in %d tries", len(ports), n, tries)
		}
		port := strconv.Itoa(lowest + rand.N(highest-lowest))
		listener, err := config.Listen(ctx, "tcp", net.JoinHostPort("", port))
		if err != nil {
			continue
		}
		defer listener.Close() // only now: so they differ
		ports = append(ports, port)
	}
	return ports, nil
}

package testservers

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Server is a private server for a program that harms it on purpose: it is the caller's alone, syncs its data to disk,
// and keeps its port and its data when it is killed and started again. It ends with the process that started it,
// however that ends. Its methods are for one goroutine at a time.
//
// A program that has one must call [Supervise] first.
type Server struct{ supervisor *supervisor }

// StartPostgres returns a Postgres server, with at most 100 connections, when it is ready.
func StartPostgres(ctx context.Context) (*Server, error) { return startServer(ctx, kindPostgres) }

// StartStandby returns a streaming standby of a server that StartPostgres returned, when it can be read.
func StartStandby(ctx context.Context, primary *Server) (*Server, error) {
	return startServer(ctx, kindStandby, behindVariable+"="+primary.URL())
}

// StartRabbitMQ returns a RabbitMQ broker with its management API when it is ready.
func StartRabbitMQ(ctx context.Context) (*Server, error) { return startServer(ctx, kindRabbitMQ) }

// StartRabbitMQCluster returns n brokers that form a cluster, in which a minority pauses. They also take each other for
// unreachable after 5 s without an answer. The first one must be stopped last.
func StartRabbitMQCluster(ctx context.Context, n int) ([]*Server, error) {
	brokers, failures := make([]*Server, n), make([]error, n)
	cookie, mapper := cookieVariable+"="+rand.Text(), ""
	start := func(i int) {
		brokers[i], failures[i] = startServer(ctx, kindRabbitMQ, cookie, fmt.Sprintf("%s=%d", nodeVariable, i+1), mapper)
	}
	var starts sync.WaitGroup
	if start(0); failures[0] == nil {
		mapper = mapperVariable + "=" + brokers[0].supervisor.settings[rabbitMQMapperPort]
		for i := range brokers[1:] {
			starts.Go(func() { start(i + 1) })
		}
	}
	starts.Wait()
	if err := errors.Join(failures...); err != nil {
		for _, b := range slices.Backward(brokers) {
			if b != nil {
				err = errors.Join(err, b.Stop())
			}
		}
		return nil, err
	}
	return brokers, nil
}

// StartPGBouncer returns a pgbouncer, in transaction mode, before the Postgres server at a URL.
func StartPGBouncer(ctx context.Context, server string) (*Server, error) {
	return startServer(ctx, kindPGBouncer, behindVariable+"="+server, poolModeVariable+"=transaction", rootVariable+"=")
}

func startServer(ctx context.Context, k kind, settings ...string) (*Server, error) {
	s, err := startSupervisor(ctx, k, true, settings...)
	if err != nil {
		return nil, err
	}
	return &Server{supervisor: s}, nil
}

// URL is the server's address, with the credentials of its administrator.
func (s *Server) URL() string {
	return cmp.Or(s.supervisor.settings[databaseURL], s.supervisor.settings[rabbitMQURL])
}

// ManagementURL is the base URL of the broker's management API, credentials included and without a slash at its end.
func (s *Server) ManagementURL() string { return s.supervisor.settings[managementURL] }

// Node is the broker's name among its kind.
func (s *Server) Node() string { return s.supervisor.settings[rabbitMQNode] }

// Log is the file to which the server writes.
func (s *Server) Log() string { return s.supervisor.log }

// Kill kills the server as kill -9 does, and returns when it is gone.
func (s *Server) Kill() error { return s.do(actionKill) }

// Shut stops the server in good order: its clients are told. It returns when it is gone.
func (s *Server) Shut() error { return s.do(actionStop) }

// Start starts the server that was killed or shut, and returns when it is ready.
func (s *Server) Start() error { return s.do(actionStart) }

// Pause stops all of the server's processes with SIGSTOP.
func (s *Server) Pause() error { return s.do(actionPause) }

// Resume lets a paused server go on.
func (s *Server) Resume() error { return s.do(actionResume) }

// Control runs rabbitmqctl and returns what it prints. For "eval" and an Erlang expression, it is the value.
func (s *Server) Control(arguments ...string) (string, error) {
	return s.supervisor.do(order{Do: actionControl, Arguments: arguments})
}

// Stop ends the server and returns when it and its data are gone.
func (s *Server) Stop() error { return s.supervisor.stop() }

func (s *Server) do(a action) error {
	_, err := s.supervisor.do(order{Do: a})
	return err
}

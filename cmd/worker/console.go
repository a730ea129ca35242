package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/healz/worker/internal/console"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/handlers/register"
	"github.com/healz/worker/internal/metrics"
	"github.com/healz/worker/internal/worker"
)

// consoleConns is the size of the console's own connection pool: its queries must not use up the worker's connections.
const consoleConns = 4

type consoleFlags struct {
	token, writeToken string
	write             bool
}

func (f *consoleFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.token, "console-token", "",
		"token for reading the console; @FILE reads it from a file. Without a token, the console is served only on loopback addresses")
	flags.StringVar(&f.writeToken, "console-write-token", "", "token that also permits replay, archive and reveal; @FILE reads it from a file")
	flags.BoolVar(&f.write, "console-write", false, "permit replay, archive and reveal to all readers of the console")
}

func (f *consoleFlags) access() (console.Access, error) {
	a := console.Access{Write: f.write}
	for _, token := range []struct {
		name, value string
		into        *string
	}{{"console-token", f.token, &a.Token}, {"console-write-token", f.writeToken, &a.WriteToken}} {
		*token.into = token.value
		path, isFile := strings.CutPrefix(token.value, "@")
		if !isFile {
			continue
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return a, fmt.Errorf("%s: %w", token.name, err)
		}
		if *token.into = strings.TrimSpace(string(content)); *token.into == "" {
			return a, fmt.Errorf("%s: %s is empty", token.name, path)
		}
	}
	return a, a.Check()
}

type consoleOf struct {
	settings  worker.Settings
	access    console.Access
	worker    *worker.Worker
	metrics   *metrics.Metrics
	register  func(*handlers.Registry, events.Streams)
	listening net.Addr
	logger    *slog.Logger
}

// serve opens the console on front, and returns a function that closes it. If the console cannot be opened, the worker runs
// without it, and logs the reason.
func (o consoleOf) serve(ctx context.Context, front *console.Front) func() error {
	if err := o.access.CheckAddress(o.listening); err != nil {
		front.Refuse(err)
		o.logger.WarnContext(ctx, "the console is not served", "reason", err)
		return func() error { return nil }
	}
	c, closeParts, err := o.open(ctx)
	if err != nil {
		front.Refuse(errors.New("the console could not be opened: see the log"))
		o.logger.ErrorContext(ctx, "the console could not be opened", "error", err)
		return func() error { return nil }
	}
	front.Serve(c)
	return func() error {
		front.Refuse(errors.New("the worker is stopping"))
		c.Close()
		return closeParts()
	}
}

func (o consoleOf) open(ctx context.Context) (*console.Console, func() error, error) {
	s := o.settings
	s.MaxConns = consoleConns
	backend, err := s.OpenStore(ctx)
	if err != nil {
		return nil, nil, err
	}
	c, err := console.New(ctx, console.Config{
		Store: backend, Letters: deadletter.NewTable(backend.SQL()), Queued: s.QueuedDeadLetters, Aggregates: register.Aggregates(), Access: o.access, Logger: o.logger,
		Status: func(ctx context.Context) console.Status {
			return console.StatusOf(o.worker.Health(ctx), o.metrics.Values())
		},
		Try: func(ctx context.Context, chosen deadletter.Filter) iter.Seq2[handlers.Outcome, error] {
			return s.TryDeadLetters(ctx, chosen, worker.TryOptions{Register: o.register, Logger: o.logger})
		},
	})
	if err != nil {
		return nil, nil, errors.Join(err, backend.Close())
	}
	return c, backend.Close, nil
}

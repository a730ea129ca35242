package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/handlers/register"
	"github.com/healz/worker/internal/ops"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/worker"
)

// runFlags are the settings of `worker run` alone.
type runFlags struct {
	httpAddr            string
	logLevel, logFormat string
	relayStart          string
	afterDeadLetter     string
	migrate, chaos      bool
	wait                time.Duration
}

func runCommand(s *worker.Settings, all registrations) *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run",
		Short: "Relay, consume and handle events until stopped",
		Long: `run relays the events of the store to the bus and hands the events on the bus to their handlers.

It serves /healthz (it lives) and /readyz (it can work, and what keeps it from it). SIGTERM stops it in good order: what
is in hand is finished within the grace period or given back. A second SIGTERM ends it at once.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			s.Relay.Start = store.Start(f.relayStart)
			s.Tuning.AfterDeadLetter = handlers.AfterDeadLetter(f.afterDeadLetter)
			if err := s.Check(); err != nil {
				return usageError{err}
			}
			logger, err := newLogger(c.ErrOrStderr(), f.logLevel, f.logFormat)
			if err != nil {
				return usageError{err}
			}
			return runWorker(c.Context(), *s, f, all, logger)
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.httpAddr, "http-addr", "127.0.0.1:8080", "where to serve /healthz and /readyz; port 0 takes a free one")
	flags.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&f.logFormat, "log-format", "text", "text or json")
	flags.BoolVar(&f.migrate, "migrate", true, "bring the database's schema up to date first")
	flags.DurationVar(&f.wait, "wait", 0, "how long to wait at the start for servers that are not up yet; 0: fail at once")
	flags.BoolVar(&f.chaos, "chaos", false, `let events ask for failures: {"fail_times": N} in their metadata`)
	t := &s.Tuning
	flags.IntVar(&t.Concurrency, "concurrency", t.Concurrency, "events handled at once; those of one aggregate never are")
	flags.IntVar(&s.AMQP.Prefetch, "prefetch", s.AMQP.Prefetch, "deliveries that the broker sends ahead; at least the concurrency")
	flags.IntVar(&t.RetryAttempts, "retry-attempts", t.RetryAttempts, "tries of a handler before its event is a dead letter")
	flags.DurationVar(&t.RetryInitial, "retry-initial", t.RetryInitial, "wait before the second try; it doubles from try to try")
	flags.DurationVar(&t.RetryMax, "retry-max", t.RetryMax, "longest wait between two tries")
	flags.StringVar(&f.afterDeadLetter, "after-dead-letter", string(t.AfterDeadLetter),
		"events that follow a dead letter in its aggregate: continue, or park (they wait in the dead letters, and are replayed in order)")
	flags.DurationVar(&t.HandlerTimeout, "handler-timeout", t.HandlerTimeout, "bound of one try of one handler")
	flags.DurationVar(&t.GracePeriod, "grace-period", t.GracePeriod, "how long a stop waits for what is in hand")
	flags.DurationVar(&t.RelayPoll, "relay-poll", t.RelayPoll, "how often the relay looks for events it was not woken for")
	flags.IntVar(&s.Relay.BatchSize, "relay-batch", s.Relay.BatchSize, "most events that the relay publishes at once")
	flags.StringVar(&f.relayStart, "relay-start", string(s.Relay.Start),
		"where the first relay of a database begins: auto (behind the rows of an adopted table), beginning, end")
	flags.BoolVar(&s.Relay.OnlyOwn, "relay-only-own", false, "relay only the events written by this program, where others publish theirs themselves")
	flags.DurationVar(&s.InboxRetention, "inbox-retention", s.InboxRetention,
		"how long it is remembered who has handled what, by which redeliveries are told; 0: for ever")
	flags.IntVar(&s.MaxConns, "database-conns", s.MaxConns, "most connections to Postgres")
	return c
}

func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log-level must be debug, info, warn or error, not %q", level)
	}
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	default:
		return nil, fmt.Errorf("log-format must be text or json, not %q", format)
	}
}

func runWorker(ctx context.Context, s worker.Settings, f runFlags, all registrations, logger *slog.Logger) (err error) {
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "tcp", f.httpAddr)
	if err != nil {
		return fmt.Errorf("serve health on %s: %w", f.httpAddr, err)
	}
	reg := &handlers.Registry{}
	all(reg, register.Options{Chaos: f.chaos})

	w, closeParts, err := worker.Open(ctx, s, worker.OpenOptions{Handlers: reg, Migrate: f.migrate, Wait: f.wait, Logger: logger})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer func() { err = errors.Join(err, closeParts()) }()

	server := &http.Server{Handler: ops.Handler(w), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		err = errors.Join(err, server.Close())
		if failed := <-served; !errors.Is(failed, http.ErrServerClosed) {
			err = errors.Join(err, failed)
		}
	}()
	logger.InfoContext(ctx, "serving /healthz and /readyz", "address", "http://"+listener.Addr().String())
	logger.InfoContext(ctx, "opened", "store", s.StoreName(), "bus", s.BusName())
	return w.Run(ctx)
}

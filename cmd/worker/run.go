package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/console"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/handlers/register"
	"github.com/healz/worker/internal/metrics"
	"github.com/healz/worker/internal/ops"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/tracing"
	"github.com/healz/worker/internal/worker"
)

// runFlags are the settings of `worker run` alone.
type runFlags struct {
	httpAddr            string
	logLevel, logFormat string
	relayStart          string
	afterDeadLetter     string
	migrate, chaos      bool
	console             consoleFlags
	wait                time.Duration
	// serving, if any, is called with the address that is served.
	serving func(url string)
}

func (f runFlags) check() error {
	if f.wait < 0 {
		return fmt.Errorf("wait must not be negative, but is %s", f.wait)
	}
	_, port, err := net.SplitHostPort(f.httpAddr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("http-addr must be HOST:PORT with a port from 0 to 65535, not %q", f.httpAddr)
	}
	return nil
}

func runCommand(s *worker.Settings, all registrations) *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run",
		Short: "Relay, consume and handle events until stopped",
		Long: `run relays the events of the store to the bus and hands the events on the bus to their handlers.

It serves the console, /healthz (it lives), /readyz (it can work, and what keeps it from it) and /metrics (for Prometheus).
SIGTERM stops it in good order: what is in hand is finished within the grace period or given back. A second one ends it at once.
SIGUSR1 makes the log a level more verbose, SIGUSR2 what it was. Traces are sent by OTLP if OTEL_EXPORTER_OTLP_ENDPOINT is
set, as OpenTelemetry's other variables say.`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			s.Relay.Start = store.Start(f.relayStart)
			s.Tuning.AfterDeadLetter = handlers.AfterDeadLetter(f.afterDeadLetter)
			if err := s.Check(); err != nil {
				return usageError{err}
			}
			if err := f.check(); err != nil {
				return usageError{err}
			}
			var level slog.LevelVar
			logger, err := newLogger(c.ErrOrStderr(), &level, f.logLevel, f.logFormat)
			if err != nil {
				return usageError{err}
			}
			return whileLevelChanges(c.Context(), &level, logger, func(ctx context.Context) error {
				return withTracer(ctx, *s, logger, func(t *tracing.Tracer) error {
					return runWorker(ctx, *s, f, all, t, logger)
				})
			})
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.httpAddr, "http-addr", "127.0.0.1:8080",
		"where to serve the console, /healthz, /readyz and /metrics; port 0 takes a free one")
	f.console.add(flags)
	flags.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&f.logFormat, "log-format", "text", "text or json")
	flags.BoolVar(&f.migrate, "migrate", true, "bring the database's schema up to date first")
	flags.DurationVar(&f.wait, "wait", 0, "how long to wait at the start for servers that are not up yet; 0: fail at once")
	flags.BoolVar(&f.chaos, "chaos", false, `let events ask for failures: {"fail_times": N} in their metadata`)
	t := &s.Tuning
	flags.IntVar(&t.Concurrency, "concurrency", t.Concurrency, "events handled at once; those of one aggregate never are")
	flags.IntVar(&s.AMQP.Prefetch, "prefetch", s.AMQP.Prefetch, "deliveries that the broker sends ahead; at least the concurrency")
	flags.IntVar(&t.MaxMessage, "max-message", t.MaxMessage, "most bytes of an event; a larger one is a dead letter, unread")
	flags.IntVar(&t.RetryAttempts, "retry-attempts", t.RetryAttempts, "attempts of a handler before its event becomes a dead letter")
	flags.DurationVar(&t.RetryInitial, "retry-initial", t.RetryInitial, "wait before the second attempt; it doubles from attempt to attempt")
	flags.DurationVar(&t.RetryMax, "retry-max", t.RetryMax, "longest wait between two attempts")
	flags.DurationSliceVar(&s.AMQP.RetryLater, "retry-later", nil,
		"waits before more rounds of attempts, as 10s,1m,10m, in which RabbitMQ keeps the event; the later ones of its aggregate go on")
	flags.StringVar(&f.afterDeadLetter, "after-dead-letter", string(t.AfterDeadLetter),
		"events that follow a dead letter in its aggregate: continue, or park (they wait in the dead letters, and are replayed in order)")
	flags.DurationVar(&t.HandlerTimeout, "handler-timeout", t.HandlerTimeout, "time limit for one attempt of one handler")
	flags.DurationVar(&t.GracePeriod, "grace-period", t.GracePeriod, "how long a stop waits for what is in hand")
	flags.DurationVar(&t.RelayPoll, "relay-poll", t.RelayPoll, "how often the relay looks for events it was not woken for")
	flags.IntVar(&s.Relay.BatchSize, "relay-batch", s.Relay.BatchSize, "most events that the relay publishes at once")
	flags.StringVar(&f.relayStart, "relay-start", string(s.Relay.Start),
		"where the first relay of a database begins: auto (behind the rows of an adopted table), beginning, end")
	flags.BoolVar(&s.Relay.OnlyOwn, "relay-only-own", false, "relay only the events written by this program, where others publish theirs themselves")
	flags.BoolVar(&s.AMQP.LeavePartitions, "leave-partitions", false, "go back from partitions to one queue, once what lies in them is handled")
	flags.DurationVar(&s.InboxRetention, "inbox-retention", s.InboxRetention,
		"how long it is remembered who has handled what, by which redeliveries are told; 0: for ever")
	flags.BoolVar(&s.IngestDeadLetters, "ingest-dead-letters", s.IngestDeadLetters,
		"take the dead letters out of RabbitMQ's failed queue into the table; without it, worker dlq ingest does")
	flags.DurationVar(&s.DeadLetterRetention, "dead-letter-retention", s.DeadLetterRetention,
		"how long dead letters are kept that were archived, discarded, edited or handled; 0: for ever")
	flags.IntVar(&s.MaxConns, "database-conns", s.MaxConns, "most connections to Postgres")
	complete(c, "log-level", "debug", "info", "warn", "error")
	complete(c, "log-format", "text", "json")
	complete(c, "after-dead-letter", string(handlers.Continue), string(handlers.Park))
	complete(c, "relay-start", string(store.StartAuto), string(store.StartBeginning), string(store.StartEnd))
	return c
}

// whileLevelChanges calls do, during which signals change the level of its log.
func whileLevelChanges(ctx context.Context, level *slog.LevelVar, logger *slog.Logger, do func(context.Context) error) error {
	var watching sync.WaitGroup
	defer watching.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watching.Go(func() { changeLevel(ctx, level, logger) })
	return do(ctx)
}

// newLogger returns a logger whose level can be changed while it is used.
func newLogger(w io.Writer, current *slog.LevelVar, level, format string) (*slog.Logger, error) {
	if err := current.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log-level must be debug, info, warn or error, not %q", level)
	}
	o := &slog.HandlerOptions{Level: current}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	default:
		return nil, fmt.Errorf("log-format must be text or json, not %q", format)
	}
}

func runWorker(
	ctx context.Context, s worker.Settings, f runFlags, all registrations, t *tracing.Tracer, logger *slog.Logger,
) (err error) {
	access, err := f.console.access()
	if err != nil {
		return usageError{err}
	}
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "tcp", f.httpAddr)
	if err != nil {
		return fmt.Errorf("serve --http-addr %s: %w", f.httpAddr, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var health ops.Health
	measures := metrics.New(version())
	var front console.Front
	pages := ops.Handler(&health, measures.Handler())
	pages.Handle("/", &front)
	server := ops.Server(pages, logger)
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			cancel(fmt.Errorf("serve --http-addr %s: %w", f.httpAddr, err))
		}
	}()
	defer func() {
		err = errors.Join(err, server.Close())
		<-served
		cancel(nil)
	}()
	logger.InfoContext(ctx, "serving the console, /healthz, /readyz and /metrics", "address", "http://"+listener.Addr().String())
	if f.serving != nil {
		f.serving("http://" + listener.Addr().String())
	}

	registerAll := func(reg *handlers.Registry, streams events.Streams) {
		all(reg, register.Options{Streams: streams, Chaos: f.chaos})
	}
	w, closeParts, err := worker.Open(ctx, s, worker.OpenOptions{
		Register: registerAll, Migrate: f.migrate, Wait: f.wait, Logger: logger, Metrics: measures, Observers: observers(t),
	})
	if err != nil {
		return ended(ctx, err)
	}
	defer func() { err = errors.Join(err, closeParts()) }()
	health.Report(w)
	closeConsole := consoleOf{
		settings: s, access: access, worker: w, metrics: measures, register: registerAll,
		listening: listener.Addr(), logger: logger,
	}.serve(ctx, &front)
	defer func() { err = errors.Join(err, closeConsole()) }()
	logger.InfoContext(ctx, "opened", "store", s.StoreName(), "bus", s.BusName())
	return errors.Join(w.Run(ctx), ended(ctx, nil))
}

// ended is why a worker ended: nothing, when it was told to before it had begun, or what made it end by itself.
func ended(ctx context.Context, err error) error {
	switch cause := context.Cause(ctx); {
	case cause == nil:
		return err
	case errors.Is(cause, context.Canceled):
		return nil
	default:
		return cause
	}
}

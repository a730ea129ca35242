package cli

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
	"github.com/spf13/pflag"

	"github.com/healz/worker/internal/console"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/metrics"
	"github.com/healz/worker/internal/ops"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/tracing"
	"github.com/healz/worker/internal/worker"
)

// jsonLogFormat is the format of a log of JSON lines, the fatal error of a start included.
const jsonLogFormat = "json"

// defaultHTTPAddr is where a worker serves its console and its health.
const defaultHTTPAddr = "127.0.0.1:8080"

type runFlags struct {
	httpAddr            string
	logLevel, logFormat string
	relayStart          string
	afterDeadLetter     string
	migrate, chaos      bool
	console             console.Access
	wait                time.Duration
	// serving is called with the address of the console; it may be nil.
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
		Long: `run relays the events of the store to the bus, consumes the events of the bus, and runs their handlers.

It serves the console, /healthz (liveness), /readyz (readiness, with the reasons if it is not ready) and /metrics (for
Prometheus). SIGTERM stops it gracefully: events in flight are completed within the grace period, or requeued. A second
SIGTERM ends it at once. SIGUSR1 makes the log one level more verbose, SIGUSR2 resets it. If OTEL_EXPORTER_OTLP_ENDPOINT is
set, it exports traces by OTLP; the other variables of OpenTelemetry apply, too.`,
		Args: noArguments,
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
				return withTracer(ctx, *s, FlushWorker, logger, func(t *tracing.Tracer) error {
					return runWorker(ctx, *s, f, all, t, logger)
				})
			})
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.httpAddr, "http-addr", defaultHTTPAddr,
		"address of the console, /healthz, /readyz and /metrics; port 0 selects a free port")
	addSecret(flags, &f.console.Token, "console-token",
		"token for reading the console. Without a token, the console is served only on loopback addresses")
	addSecret(flags, &f.console.WriteToken, "console-write-token", "token that also permits replay, archive and reveal")
	flags.BoolVar(&f.console.Write, "console-write", false, "permit replay, archive and reveal to all readers of the console")
	flags.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&f.logFormat, "log-format", "text", "text or json")
	flags.BoolVar(&f.migrate, "migrate", true, "migrate the database schema at start")
	flags.DurationVar(&f.wait, "wait", 0, "how long to wait at start, in all, for servers that are not available yet; 0: fail at once")
	flags.BoolVar(&f.chaos, "chaos", false, `for tests: handlers fail N times if the metadata of an event contains {"fail_times": N}`)
	t := &s.Tuning
	flags.IntVar(&t.Concurrency, "concurrency", t.Concurrency, "events handled in parallel; events of one aggregate are always handled one after another")
	flags.IntVar(&s.AMQP.Prefetch, "prefetch", s.AMQP.Prefetch, "prefetch count of the RabbitMQ consumer; at least the concurrency")
	flags.IntVar(&t.MaxMessage, "max-message", t.MaxMessage, "size limit of an event in bytes; a larger one becomes a dead letter without being parsed")
	addAttempts(flags, t)
	flags.DurationSliceVar(&s.AMQP.RetryLater, "retry-later", nil,
		"delays before further rounds of attempts, like 10s,1m,10m; RabbitMQ keeps the event meanwhile, and later events of its aggregate continue")
	flags.StringVar(&f.afterDeadLetter, "after-dead-letter", string(t.AfterDeadLetter),
		"handling of later events of an aggregate with a dead letter: continue, or park (they become dead letters, too, and are replayed in order)")
	flags.DurationVar(&t.GracePeriod, "grace-period", t.GracePeriod, "how long a stop waits for events in flight")
	flags.DurationVar(&t.RelayPoll, "relay-poll", t.RelayPoll, "interval at which the relay polls the store, besides notifications")
	flags.IntVar(&s.Relay.BatchSize, "relay-batch", s.Relay.BatchSize, "at most this number of events per batch of the relay")
	flags.StringVar(&f.relayStart, "relay-start", string(s.Relay.Start),
		"first position of the relay in a database: auto (after the rows of an adopted table), beginning or end")
	flags.BoolVar(&s.Relay.OnlyOwn, "relay-only-own", false, "relay only events that this program wrote, if other programs publish their own")
	flags.BoolVar(&s.AMQP.Competing, "competing-consumers", false,
		"let several workers consume the one queue at once; the order of an aggregate is then not kept between them. Without it, one consumes and the others are on standby")
	flags.BoolVar(&s.AMQP.LeavePartitions, "leave-partitions", false, "return from partitions to one queue, after the messages in the partitions are handled")
	flags.DurationVar(&s.InboxRetention, "inbox-retention", s.InboxRetention,
		"how long the inbox keeps its records, by which redelivered events are detected: more than 1h; 0: unlimited")
	flags.BoolVar(&s.IngestDeadLetters, "ingest-dead-letters", s.IngestDeadLetters,
		"ingest the dead letters of RabbitMQ's failed queue into the table; if false, use worker dlq ingest")
	flags.DurationVar(&s.DeadLetterRetention, "dead-letter-retention", s.DeadLetterRetention,
		"how long to keep archived, discarded, edited and handled dead letters; 0: unlimited")
	flags.IntVar(&s.MaxConns, "database-conns", s.MaxConns, "at most this number of connections to Postgres")
	complete(c, "log-level", "debug", "info", "warn", "error")
	complete(c, "log-format", "text", "json")
	complete(c, "after-dead-letter", string(handlers.Continue), string(handlers.Park))
	complete(c, "relay-start", string(store.StartAuto), string(store.StartBeginning), string(store.StartEnd))
	return c
}

// addAttempts adds the flags that say how often and how long a handler is tried.
func addAttempts(flags *pflag.FlagSet, t *worker.Tuning) {
	flags.IntVar(&t.RetryAttempts, "retry-attempts", t.RetryAttempts, "attempts of a handler before the event becomes a dead letter")
	flags.DurationVar(&t.RetryInitial, "retry-initial", t.RetryInitial, "maximum backoff before the second attempt; it doubles with each attempt, and each backoff is from half of its maximum to all of it")
	flags.DurationVar(&t.RetryMax, "retry-max", t.RetryMax, "maximum backoff between any two attempts")
	flags.DurationVar(&t.HandlerTimeout, "handler-timeout", t.HandlerTimeout, "timeout of one attempt of one handler")
}

// whileLevelChanges calls do. Meanwhile signals change the log level.
func whileLevelChanges(ctx context.Context, level *slog.LevelVar, logger *slog.Logger, do func(context.Context) error) error {
	var changing sync.WaitGroup
	defer changing.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changing.Go(func() { changeLevel(ctx, level, logger) })
	return do(ctx)
}

// newLogger returns a logger whose level is the current value of a variable.
func newLogger(w io.Writer, current *slog.LevelVar, level, format string) (*slog.Logger, error) {
	if err := current.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log-level must be debug, info, warn or error, not %q", level)
	}
	o := &slog.HandlerOptions{Level: current, ReplaceAttr: withUnit}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case jsonLogFormat:
		return slog.New(slog.NewJSONHandler(w, o)), nil
	default:
		return nil, fmt.Errorf("log-format must be text or json, not %q", format)
	}
}

// withUnit makes a duration a number of milliseconds, with the unit in its key.
func withUnit(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		return slog.Float64(a.Key+"_ms", float64(a.Value.Duration().Microseconds())/1e3)
	}
	return a
}

func runWorker(
	ctx context.Context, s worker.Settings, f runFlags, all registrations, t *tracing.Tracer, logger *slog.Logger,
) (err error) {
	if err := f.console.Check(); err != nil {
		return usageError{err}
	}
	if err := all.registry().Check(); err != nil {
		return err
	}
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "tcp", f.httpAddr)
	if err != nil {
		return fmt.Errorf("serve --http-addr %s: %w", f.httpAddr, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	measures := metrics.New(Version())
	if t != nil {
		measures.TraceOf = tracing.TraceID
		measures.Traces(t.Dropped)
	}
	if f.chaos {
		all = all.failingOnDemand()
	}
	service := ops.New(ops.Config{
		Settings: s, Register: all, Migrate: f.migrate, Wait: f.wait, Access: f.console, Listening: listener.Addr(),
		Metrics: measures, Observers: observers(t), Logger: logger,
	})
	server := ops.Server(service, logger)
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

	if err := service.Open(ctx); err != nil {
		return ended(ctx, errors.Join(err, service.Close()))
	}
	defer func() { err = errors.Join(err, service.Close()) }()
	return errors.Join(service.Run(ctx), ended(ctx, nil))
}

// ended returns why a worker ended: nil if it was stopped, or the cause of the cancellation, or err.
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

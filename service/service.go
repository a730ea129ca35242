// Package service runs a worker: as a program with all its commands ([Main]), or inside an existing program ([New]).
//
//	func main() { service.Main(register) }
//
//	func register(app *worker.App) {
//		worker.On(app, "PatientRegistered", "welcome-patient", welcomePatient)
//	}
//
// A program that only appends needs neither: see [worker.OpenStore].
package service

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"os"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/healz/worker"
	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/cli"
	"github.com/healz/worker/internal/metrics"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/ops"
	"github.com/healz/worker/internal/tracing"
)

// Main is the main function of a worker with the handlers that register registers: `run`, which relays and handles events, and
// the commands to operate it, such as `append`, `dlq`, `trace`, `migrate` and `doctor`. It reads the command line and the
// environment, and ends the program.
//
// register is called by several commands, some of them without a store, and more than once: it only registers.
func Main(register func(*worker.App)) { os.Exit(cli.Main(register)) }

// Service is a worker inside a program. Its methods are safe for concurrent use, but for Run and Close.
type Service struct {
	ops    *ops.Service
	traces func(context.Context)
}

// ErrBrokerUnavailable says that RabbitMQ could not be reached now; [worker.ErrUnavailable] says so of the store.
var ErrBrokerUnavailable = amqp.ErrUnavailable

// New opens the store and the bus, migrates the schema, and assembles a worker, which does nothing before [Service.Run]. The
// error names all that is wrong with the settings and the registrations, by the names of the flags of `run`; it wraps
// [worker.ErrUnavailable] or [ErrBrokerUnavailable] if a server cannot be reached now. ctx bounds New alone. register may be called
// more than once: it only registers.
//
// There may be several services in one program. New reads no environment variables but those of libpq (PGUSER, …), as pgx does, and
// those of OpenTelemetry where [Config.OTLP] asks for it.
func New(ctx context.Context, c Config, register func(*worker.App)) (*Service, error) {
	settings, access := c.settings(), c.access()
	var registered worker.App
	problem := errors.New("register is nil")
	if register != nil {
		register(&registered)
		problem = registered.Check()
	}
	if c.Wait < 0 {
		problem = errors.Join(problem, fmt.Errorf("wait must not be negative, but is %s", c.Wait))
	}
	if err := errors.Join(settings.Check(), access.Check(), problem); err != nil {
		return nil, fmt.Errorf("open a service: %w", err)
	}
	s := &Service{traces: func(context.Context) {}}
	logger := c.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	measures := metrics.New(cli.Version())
	var observers observe.All
	if c.OTLP {
		t, stop, err := tracing.Start(ctx, cli.Version(), settings.Places(), os.Getenv, logger)
		if err != nil {
			return nil, fmt.Errorf("export traces: %w", err)
		}
		s.traces = stop
		if t != nil {
			observers = observe.All{t}
			measures.TraceOf = tracing.TraceID
			measures.Traces(t.Dropped)
		}
	}
	s.ops = ops.New(ops.Config{
		Settings: settings, Register: register, Migrate: !c.NoMigrate, Wait: c.Wait, Access: access,
		Metrics: measures, Observers: observers, Logger: logger,
	})
	if err := s.ops.Open(ctx); err != nil {
		return nil, errors.Join(err, s.Close()) //nolint:contextcheck // the export of the last traces has a time of its own
	}
	return s, nil
}

// Run works until ctx is done. Then it begins no new message, lets those in flight finish for up to [Config.GracePeriod], gives
// back the others, and returns nil. An error tells why the worker cannot work at all. A service runs once.
func (s *Service) Run(ctx context.Context) error { return s.ops.Run(ctx) }

// Append appends all events or none; its errors are those of [worker.Store.Append]. It also works while the service does not
// run: then another worker of the database relays the events, or this one later.
func (s *Service) Append(ctx context.Context, batch ...worker.Event) error {
	return s.AppendMany(ctx, batch)
}

// AppendMany is [Service.Append] of a slice. With it a service is the [worker.Streams] of a [worker.Repository].
func (s *Service) AppendMany(ctx context.Context, batch []worker.Event) error {
	return s.ops.Streams().AppendMany(ctx, batch)
}

// AppendTx appends events in a transaction of the caller's own, on the database of the service; see [worker.Store.AppendTx].
func (s *Service) AppendTx(ctx context.Context, tx pgx.Tx, batch ...worker.Event) error {
	return s.ops.Streams().AppendTx(ctx, tx, batch)
}

// Stream yields the events of an aggregate, as [worker.Store.Stream] does.
func (s *Service) Stream(
	ctx context.Context, aggregateType string, aggregateID uuid.UUID, afterVersion int,
) iter.Seq2[worker.Event, error] {
	return s.ops.Streams().Stream(ctx, aggregateType, aggregateID, afterVersion)
}

// Handler serves /healthz, /readyz, /metrics (for Prometheus) and the console. Its links begin with "/": it is for the root of a
// server, or of a host. The console is served only with a [Config.ConsoleToken] or a [Config.ConsoleWriteToken], or where
// [Config.ConsoleOpen] says that the program itself decides who sees it.
func (s *Service) Handler() http.Handler { return s.ops }

// Close closes what New has opened, and exports the last traces. It comes after Run, and after the last Append.
func (s *Service) Close() error {
	err := s.ops.Close()
	ctx, cancel := context.WithTimeout(context.Background(), cli.FlushWorker)
	defer cancel()
	s.traces(ctx)
	return err
}

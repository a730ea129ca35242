package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/bus/inprocess"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/metrics"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/migrations"
)

// maxWaitInterval is the longest backoff while a server is not up.
const maxWaitInterval = 2 * time.Second

// lastTry is how long before the end of the wait for a server the last try begins.
const lastTry = 200 * time.Millisecond

// OpenOptions are what [Open] needs besides the settings.
type OpenOptions struct {
	// Register registers the handlers.
	Register func(*handlers.Registry)
	// Migrate brings the schema up to date first.
	Migrate bool
	// Wait is how long to wait for servers that are not up yet.
	Wait   time.Duration
	Logger *slog.Logger
	// Metrics measure the worker; nil measures nothing. Observers are told what the worker does, besides the metrics.
	Metrics   *metrics.Metrics
	Observers observe.All
}

// Open opens all that a worker needs and assembles it. The returned function closes it again, after [Worker.Run]. An
// error that wraps [store.ErrUnavailable] or [amqp.ErrUnavailable] may pass.
func Open(ctx context.Context, s Settings, o OpenOptions) (*Worker, func() error, error) {
	var closers closers
	w, err := open(ctx, s, o, &closers)
	if err != nil {
		return nil, nil, errors.Join(err, closers.close())
	}
	return w, closers.close, nil
}

func open(ctx context.Context, s Settings, o OpenOptions, closers *closers) (*Worker, error) {
	if err := s.CheckBus(); err != nil {
		return nil, err
	}
	wait := newWait(o)
	backend, err := openBackend(ctx, s, o, wait)
	if err != nil {
		return nil, err
	}
	closers.add(backend.Close)
	observers := slices.Clone(o.Observers)
	if o.Metrics != nil {
		observers = append(observers, o.Metrics)
	}
	streams := observed{backend, observers}
	backend = streams
	tail, err := backend.Tail(ctx, s.Relay)
	if err != nil {
		return nil, fmt.Errorf("open the tail of the store: %w", err)
	}
	closers.add(tail.Close)

	registered := s.Registry(o.Register)
	parts := Parts{
		Inbox: backend, Streams: streams, Tail: tail, Letters: deadletter.NewTable(backend.SQL()), Handlers: registered,
		InboxRetention: s.InboxRetention, LetterRetention: s.DeadLetterRetention,
		Metrics: o.Metrics, Observers: o.Observers,
	}
	var conn *amqp.Connection
	if s.AMQP.URL == "" {
		b := inprocess.New(s.Tuning.Concurrency)
		closers.add(b.Close)
		parts.Bus, parts.Sink, parts.Embedded = embeddedBus{b}, parts.Letters, true
	} else {
		s.AMQP.Types = EventTypes(registered)
		if conn, err = dial(ctx, s, o, wait, observers); err != nil {
			return nil, err
		}
		closers.add(conn.Close)
		conn.WarnOfLimits(ctx)
		conn.WatchConsumers(ctx)
		publisher := amqp.NewPublisher(conn)
		publisher.AllowUnwanted = true // the event stays in the store
		closers.add(publisher.Close)
		failed := amqp.NewFailedQueue(conn)
		failed.Table = parts.Letters
		parts.Bus, parts.Sink, parts.Replays = broker{amqp.NewSubscriber(conn), publisher, conn}, failed, failed
		if s.IngestDeadLetters {
			parts.Ingester, parts.IngestTask = amqp.NewIngester(conn, parts.Letters, o.Logger), ingestTask(s.AMQP.Service)
		}
	}
	w, err := New(ctx, parts, s.Tuning, o.Logger)
	if err == nil {
		w.sources = sources(w, backend, parts.Letters, conn)
	}
	return w, err
}

func openBackend(ctx context.Context, s Settings, o OpenOptions, wait wait) (Backend, error) {
	var backend Backend
	err := wait.until(ctx, store.ErrUnavailable, func(trying context.Context) error {
		b, err := s.OpenStore(trying)
		if err != nil {
			return err
		}
		if o.Migrate { // which the end of the wait must not interrupt
			err = MigrateAll(ctx, b, o.Register)
		}
		if err == nil {
			err = b.Ping(ctx)
		}
		if err != nil {
			return errors.Join(err, b.Close())
		}
		backend = b
		return nil
	})
	return backend, err
}

// ingestTask is the task whose leader takes dead letters from a service's queue into the table.
func ingestTask(service string) string { return deadletter.OfService(service, "ingest") }

// EventTypes are those that handlers are for, as [amqp.Config] has them.
func EventTypes(reg *handlers.Registry) []string {
	types, all := handlers.Types(reg)
	if all {
		return []string{"#"}
	}
	return types
}

// MigrateAll brings the schema up to date, and then the tables of the program's own.
func MigrateAll(ctx context.Context, b Backend, register func(*handlers.Registry)) error {
	if err := b.Migrate(ctx); err != nil {
		return err
	}
	registered := &handlers.Registry{}
	register(registered)
	for _, set := range handlers.MigrationsOf(registered) {
		err := b.WithMigrations(ctx, set, func(ctx context.Context, m *migrations.Migrator) error { return m.Up(ctx) })
		if err != nil {
			return err
		}
	}
	return nil
}

func dial(ctx context.Context, s Settings, o OpenOptions, wait wait, watcher amqp.Watcher) (*amqp.Connection, error) {
	config := s.AMQP
	config.Concurrency, config.MaxMessage = s.Tuning.Concurrency, s.Tuning.MaxMessage
	config.DrainTimeout, config.Logger, config.Watcher = s.Tuning.GracePeriod, o.Logger, watcher
	var conn *amqp.Connection
	err := wait.until(ctx, amqp.ErrUnavailable, func(trying context.Context) (err error) {
		conn, err = amqp.Dial(trying, config)
		return err
	})
	return conn, err
}

// wait is the wait for all servers at the start.
type wait struct {
	end    time.Time // zero: there is one try
	logger *slog.Logger
}

func newWait(o OpenOptions) wait {
	w := wait{logger: o.Logger}
	if o.Wait > 0 {
		w.end = time.Now().Add(o.Wait)
	}
	return w
}

// until tries again until the wait ends, while the error is the one that can pass. The context of a try ends with the wait,
// but for the first: a server that is available is reached however late its turn is, as after a long migration.
func (w wait) until(ctx context.Context, passing error, try func(context.Context) error) error {
	again, cancel := context.WithDeadline(ctx, w.end)
	defer cancel()
	waits := backoff.NewExponentialBackOff()
	waits.MaxInterval = maxWaitInterval
	var outage observe.Outage
	err := try(ctx)
	for {
		left := time.Until(w.end.Add(-lastTry))
		switch {
		case err == nil:
			outage.Over(ctx, w.logger, "the server is available")
			return nil
		case !errors.Is(err, passing) || left <= 0:
			return err
		}
		delay := min(waits.NextBackOff(), left)
		outage.Fails(ctx, w.logger, slog.LevelWarn, "waiting for a server", "error", err, "wait", delay)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return fmt.Errorf("%w while waiting: %w", ctx.Err(), err)
		}
		last := err
		if err = try(again); err != nil && again.Err() != nil && ctx.Err() == nil {
			return last // what the end of the wait has interrupted says less
		}
	}
}

// closers close what was opened, the last first.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

func (c *closers) close() error {
	var errs []error
	for _, f := range slices.Backward(*c) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// embeddedBus is the bus inside the process, which is always ready.
type embeddedBus struct{ *inprocess.Bus }

func (embeddedBus) Ready() error               { return nil }
func (embeddedBus) Consuming() (string, error) { return "", nil }

// broker is RabbitMQ as a bus.
type broker struct {
	*amqp.Subscriber
	publisher *amqp.Publisher
	conn      *amqp.Connection
}

func (b broker) PublishBatch(ctx context.Context, batch []*message.Message) error {
	return b.publisher.PublishBatch(ctx, batch)
}
func (b broker) Topics() []string { return b.conn.Topics() }
func (b broker) Ready() error     { return b.conn.Ready() }
func (b broker) Split() error     { return b.conn.Split() }

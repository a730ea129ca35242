package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/sqlite"
	"github.com/healz/worker/migrations"
)

// ErrNoBroker says that what was asked for needs RabbitMQ, and none is set.
var ErrNoBroker = errors.New("this needs RabbitMQ: set RABBITMQ_URL or --rabbitmq-url")

// Settings say which store and which bus to use, and how. Either store goes with either bus.
type Settings struct {
	// DatabaseURL is the Postgres database; "" means the SQLite file.
	DatabaseURL string
	// MaxConns is the most connections to Postgres.
	MaxConns int
	// InboxRetention is how long the store remembers who has handled what; 0 is for ever. An event that is delivered
	// again after that is handled again.
	InboxRetention time.Duration
	// SQLitePath is the file of the embedded default.
	SQLitePath string
	// AMQP is the broker; without a URL the bus is inside the process.
	AMQP   amqp.Config
	Relay  store.TailConfig
	Tuning Tuning
}

// DefaultSettings is the embedded default.
func DefaultSettings() Settings {
	return Settings{
		MaxConns:       20,
		InboxRetention: 30 * 24 * time.Hour,
		SQLitePath:     "healz.db",
		AMQP: amqp.Config{
			Prefix: amqp.DefaultPrefix, Prefetch: amqp.DefaultPrefetch, Heartbeat: amqp.DefaultHeartbeat,
			QueueType: amqp.ClassicQueues,
		},
		Relay:  store.TailConfig{BatchSize: 1000, Start: store.StartAuto},
		Tuning: DefaultTuning(),
	}
}

// Check says what is out of range.
func (s Settings) Check() error {
	problems := []error{s.Tuning.Check()}
	problem := func(bad bool, format string, args ...any) {
		if bad {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	if s.DatabaseURL != "" {
		_, err := pgconn.ParseConfig(s.DatabaseURL)
		problem(err != nil, "database-url is not a Postgres URL (it is not shown, as it may hold a password)")
	}
	if s.AMQP.URL != "" {
		_, err := amqp091.ParseURI(s.AMQP.URL)
		problem(err != nil, "rabbitmq-url is not amqp[s]://user:password@host:port/vhost (it is not shown, as it may hold a password)")
	}
	problem(s.Embedded() && s.SQLitePath == "", "sqlite-path must not be empty")
	problem(s.MaxConns < 2, "database-conns must be at least 2, but is %d", s.MaxConns)
	problem(s.InboxRetention < 0, "inbox-retention must not be negative, but is %s", s.InboxRetention)
	problem(s.AMQP.Prefetch < s.Tuning.Concurrency || s.AMQP.Prefetch > maxPrefetch,
		"prefetch must be from the concurrency (%d) to %d, but is %d", s.Tuning.Concurrency, maxPrefetch, s.AMQP.Prefetch)
	problem(s.AMQP.Prefix == "", "rabbitmq-prefix must not be empty")
	problem(s.AMQP.Heartbeat < time.Second, "rabbitmq-heartbeat must be at least 1s, but is %s", s.AMQP.Heartbeat)
	problem(s.AMQP.Partitions < 0 || s.AMQP.Partitions > amqp.MaxPartitions,
		"partitions must be from 0 to %d, but are %d", amqp.MaxPartitions, s.AMQP.Partitions)
	problem(s.AMQP.Partitions > 0 && s.AMQP.URL == "", "partitions need RabbitMQ: set rabbitmq-url")
	problem(s.AMQP.Partitions > 0 && s.AMQP.LeavePartitions, "leave-partitions goes with partitions 0")
	problem(s.AMQP.QueueType != amqp.ClassicQueues && s.AMQP.QueueType != amqp.QuorumQueues,
		"queue-type must be %s or %s, not %q", amqp.ClassicQueues, amqp.QuorumQueues, s.AMQP.QueueType)
	problem(len(s.AMQP.RetryLater) > 0 && s.AMQP.URL == "", "retry-later needs RabbitMQ: set rabbitmq-url")
	for _, wait := range s.AMQP.RetryLater {
		problem(wait < time.Millisecond || wait > maxRetryLater, "retry-later must be from 1ms to %s, but is %s", maxRetryLater, wait)
	}
	problem(s.Relay.BatchSize < 1 || s.Relay.BatchSize > store.MaxLimit,
		"relay-batch must be from 1 to %d, but is %d", store.MaxLimit, s.Relay.BatchSize)
	switch s.Relay.Start {
	case store.StartAuto, store.StartBeginning, store.StartEnd:
	default:
		problem(true, "relay-start must be auto, beginning or end, not %q", s.Relay.Start)
	}
	return errors.Join(problems...)
}

// maxRetryLater is the longest step of a retry.
const maxRetryLater = 24 * time.Hour

// maxPrefetch is the most that AMQP can say.
const maxPrefetch = 65535

// Backend is a store with all that belongs to it.
type Backend interface {
	store.Store
	deadletter.Shelf
	deadletter.ArchiveTable
	handlers.Tried

	// Migrate brings the schema up to date; nothing happens when it is.
	Migrate(ctx context.Context) error
	// MigrateDown takes the newest version of the schema back, and never destroys events.
	MigrateDown(ctx context.Context) error
	// MigrationStatus lists the versions of the schema.
	MigrationStatus(ctx context.Context) ([]migrations.Status, error)
	// Tail opens the relay's side of the store.
	Tail(ctx context.Context, c store.TailConfig) (*store.Tail, error)
	// CountLetters counts the letters on the shelf, up to [store.MaxCount].
	CountLetters(ctx context.Context) (int, error)
	// Pools is the state of the store's connections.
	Pools() []store.Pool
}

// StoreName and BusName say what the settings name, without its credentials.
func (s Settings) StoreName() string {
	if s.Embedded() {
		path, err := filepath.Abs(s.SQLitePath)
		if err != nil {
			path = s.SQLitePath
		}
		return "SQLite " + path
	}
	c, err := pgconn.ParseConfig(s.DatabaseURL)
	if err != nil {
		return "Postgres"
	}
	return fmt.Sprintf("Postgres %s:%d/%s", c.Host, c.Port, c.Database)
}

// BusName is as StoreName.
func (s Settings) BusName() string {
	if s.AMQP.URL == "" {
		return "in-process"
	}
	u, err := url.Parse(s.AMQP.URL)
	if err != nil {
		return "RabbitMQ"
	}
	return fmt.Sprintf("RabbitMQ %s%s %s", u.Host, u.Path, s.AMQP.Prefix)
}

// MessagingSystem is the bus by its name in traces.
func (s Settings) MessagingSystem() string {
	if s.AMQP.URL == "" {
		return "in_process"
	}
	return "rabbitmq"
}

// Embedded tells whether the store is the SQLite file.
func (s Settings) Embedded() bool { return s.DatabaseURL == "" }

// OpenStore opens the store that the settings name. Its schema is [Backend.Migrate]'s.
func (s Settings) OpenStore(ctx context.Context) (Backend, error) {
	if !s.Embedded() {
		return postgres.Open(ctx, s.DatabaseURL, postgres.Options{MaxConns: s.MaxConns})
	}
	return sqlite.Open(ctx, s.SQLitePath)
}

// OpenExisting opens the store for reading what is there: a SQLite file that does not exist is an error, rather than a new
// and empty store in the wrong folder.
func (s Settings) OpenExisting(ctx context.Context) (Backend, error) {
	if s.Embedded() {
		if _, err := os.Stat(s.SQLitePath); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("there is no database: %s (`worker run` and `worker append` make it)", s.StoreName())
		}
	}
	return s.OpenStore(ctx)
}

// OpenPublisher opens RabbitMQ for publishing; [ErrNoBroker] if none is set.
func (s Settings) OpenPublisher(ctx context.Context) (bus.BatchPublisher, func() error, error) {
	if s.AMQP.URL == "" {
		return nil, nil, ErrNoBroker
	}
	conn, err := amqp.Dial(ctx, s.AMQP)
	if err != nil {
		return nil, nil, err
	}
	p := amqp.NewPublisher(conn)
	return p, func() error { return errors.Join(p.Close(), conn.Close()) }, nil
}

// OpenDeadLetters opens the dead letters where the settings have them: on the broker, or else in the store.
func (s Settings) OpenDeadLetters(ctx context.Context) (deadletter.Queue, func() error, error) {
	if s.AMQP.URL == "" {
		b, err := s.OpenExisting(ctx)
		if err != nil {
			return nil, nil, err
		}
		return deadletter.NewShelfQueue(b), b.Close, nil
	}
	conn, err := amqp.Dial(ctx, s.AMQP)
	if err != nil {
		return nil, nil, err
	}
	return brokersLetters{amqp.NewFailedQueue(conn), s}, conn.Close, nil
}

// brokersLetters are the dead letters of a broker, behind which events may be parked in the store.
type brokersLetters struct {
	*amqp.FailedQueue
	settings Settings
}

// Replay looks up in the store what was handled, if there is a store.
func (l brokersLetters) Replay(
	ctx context.Context, f deadletter.Filter, o deadletter.ReplayOptions,
) iter.Seq2[deadletter.Progress, error] {
	return func(yield func(deadletter.Progress, error) bool) {
		if o.Inbox == nil && l.hasStore() {
			b, err := l.settings.OpenStore(ctx)
			if err == nil {
				defer b.Close() // it was only read
				err = b.Ping(ctx)
			}
			if err != nil && !errors.Is(err, store.ErrNoSchema) {
				yield(deadletter.Progress{}, fmt.Errorf("open the store, to follow the replay: %w", err))
				return
			}
			if err == nil {
				o.Inbox = b
			}
		}
		l.FailedQueue.Replay(ctx, f, o)(yield)
	}
}

// hasStore tells whether there is a store: none shall be made.
func (l brokersLetters) hasStore() bool {
	_, err := os.Stat(l.settings.SQLitePath)
	return !l.settings.Embedded() || !errors.Is(err, fs.ErrNotExist)
}

// Purge destroys all letters, and lets nothing wait behind them any longer.
func (l brokersLetters) Purge(ctx context.Context) (int, error) {
	n, err := l.FailedQueue.Purge(ctx)
	if err != nil || !l.hasStore() {
		return n, err
	}
	if err := l.unpark(ctx); err != nil && !errors.Is(err, store.ErrNoSchema) {
		return n, fmt.Errorf("%d dead letters were purged, but in the store events are still parked behind them: %w", n, err)
	}
	return n, nil
}

func (l brokersLetters) unpark(ctx context.Context) error {
	b, err := l.settings.OpenStore(ctx)
	if err != nil {
		return err
	}
	return errors.Join(b.UnparkAll(ctx), b.Close())
}

package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/bus/inprocess"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/relay"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/sqlite"
	"github.com/healz/worker/internal/tracing"
	"github.com/healz/worker/migrations"
)

// ErrNoBroker says that what was asked for needs RabbitMQ, and none is set.
var ErrNoBroker = errors.New("this needs RabbitMQ: set RABBITMQ_URL or --rabbitmq-url")

// ErrNoDatabase says that there is no SQLite file of that name.
var ErrNoDatabase = errors.New("there is no database")

// Settings say which store and which bus to use, and how. Either store goes with either bus.
type Settings struct {
	// DatabaseURL is the Postgres database; "" means the SQLite file, unless there is a Pool.
	DatabaseURL string
	// Pool is a pool of others in place of a DatabaseURL. It is not closed.
	Pool *pgxpool.Pool
	// MaxConns is the most connections to Postgres; with a Pool, 0 shares its connections.
	MaxConns int
	// InboxRetention is how long the store remembers who has handled what, more than [relay.MaxAhead]; 0 is for ever. An event
	// that is delivered again after that is handled again.
	InboxRetention time.Duration
	// DeadLetterRetention is how long letters are kept that were archived, discarded or handled; 0 is for ever.
	DeadLetterRetention time.Duration
	// IngestDeadLetters lets the worker take the dead letters out of the broker's queue into the table.
	IngestDeadLetters bool
	// SQLitePath is the file of the embedded default; "" with a DatabaseURL.
	SQLitePath string
	// AMQP is the broker; without a URL the bus is inside the process.
	AMQP   amqp.Config
	Relay  store.TailConfig
	Tuning Tuning
}

// DefaultSettings is the embedded default, without the path of its file.
func DefaultSettings() Settings {
	return Settings{
		MaxConns:          20,
		InboxRetention:    30 * 24 * time.Hour,
		IngestDeadLetters: true,
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
	if s.AMQP.ManagementURL != "" {
		_, err := amqp.ParseManagementURL(s.AMQP.ManagementURL)
		problem(err != nil, "rabbitmq-management-url is not http[s]://host:port (it is not shown, as it may hold a password)")
	}
	problem(s.Embedded() && s.SQLitePath == "", "sqlite-path must not be empty")
	problem(s.DatabaseURL != "" && s.Pool != nil, "database-url and a pool contradict each other, as a worker has one store")
	problem(!s.Embedded() && s.SQLitePath != "", "database-url and sqlite-path contradict each other, as a worker has one store: "+
		"set one of DATABASE_URL or --database-url, and WORKER_SQLITE_PATH or --sqlite-path; pass --sqlite-path= or --database-url= to ignore a variable")
	problem(s.Pool != nil && s.MaxConns != 0, "database-conns and a pool contradict each other: the pool's connections are shared")
	problem(s.Pool == nil && s.MaxConns < 2, "database-conns must be at least 2, but is %d", s.MaxConns)
	problem(s.InboxRetention != 0 && s.InboxRetention <= relay.MaxAhead,
		"inbox-retention must be 0, or more than %s, but is %s", relay.MaxAhead, s.InboxRetention)
	problem(s.DeadLetterRetention < 0, "dead-letter-retention must not be negative, but is %s", s.DeadLetterRetention)
	problem(s.AMQP.Prefetch < s.Tuning.Concurrency || s.AMQP.Prefetch > math.MaxUint16, // the most that AMQP can say
		"prefetch must be from the concurrency (%d) to %d, but is %d", s.Tuning.Concurrency, math.MaxUint16, s.AMQP.Prefetch)
	problem(s.AMQP.Prefix == "", "rabbitmq-prefix must not be empty")
	if err := amqp.CheckService(s.AMQP.Service); err != nil {
		problem(true, "service must be the name of a service: %w", err)
	}
	problem(s.AMQP.Heartbeat < time.Second, "rabbitmq-heartbeat must be at least 1s, but is %s", s.AMQP.Heartbeat)
	problem(s.AMQP.Partitions < 0 || s.AMQP.Partitions > amqp.MaxPartitions,
		"partitions must be from 0 to %d, but are %d", amqp.MaxPartitions, s.AMQP.Partitions)
	problem(s.AMQP.Partitions > 0 && s.AMQP.URL == "", "partitions need RabbitMQ: set rabbitmq-url")
	problem(s.AMQP.Partitions > 0 && s.AMQP.LeavePartitions, "leave-partitions goes with partitions 0")
	problem(s.AMQP.Partitions > 0 && s.AMQP.Competing, "competing-consumers goes with partitions 0")
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

// CheckBus says that a worker cannot have a service name: on a database without a broker, the one that relays would handle the
// events of all services. Commands that need no bus can.
func (s Settings) CheckBus() error {
	if s.AMQP.Service != "" && s.AMQP.URL == "" && !s.Embedded() {
		return fmt.Errorf("service %q on Postgres: %w", s.AMQP.Service, ErrNoBroker)
	}
	return nil
}

// Registry is what register registers, for the service that is set.
func (s Settings) Registry(register func(*handlers.Registry)) *handlers.Registry {
	reg := &handlers.Registry{}
	register(reg)
	handlers.BelongTo(reg, s.AMQP.Service)
	return reg
}

// maxRetryLater is the longest step of a retry.
const maxRetryLater = 24 * time.Hour

// Backend is a store with all that belongs to it.
type Backend interface {
	store.Store
	handlers.DryStore

	// Migrate brings the schema up to date; nothing happens when it is.
	Migrate(ctx context.Context) error
	// MigrateDown takes the newest version of the schema back, and never destroys events.
	MigrateDown(ctx context.Context) error
	// MigrateRestored replaces the transaction ids of another cluster, from whose dump the database was restored.
	MigrateRestored(ctx context.Context) (store.Renumbered, error)
	// MigrationStatus lists the versions of the schema.
	MigrationStatus(ctx context.Context) ([]migrations.Status, error)
	// WithMigrations calls do with the migrator of a set of others.
	WithMigrations(ctx context.Context, set migrations.Set, do func(context.Context, *migrations.Migrator) error) error
	// Tail opens the relay's side of the store.
	Tail(ctx context.Context, c store.TailConfig) (*store.Tail, error)
	// SQL is the database, for tables of others, as that of the dead letters.
	SQL() store.SQL
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
	c, err := s.connConfig()
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
	name := fmt.Sprintf("RabbitMQ %s%s %s", u.Host, u.Path, s.AMQP.Prefix)
	if s.AMQP.Service != "" {
		name += ", service " + s.AMQP.Service
	}
	return name
}

// Places are the bus and the store as traces name them, without credentials.
func (s Settings) Places() tracing.Places {
	p := tracing.Places{Bus: tracing.Place{System: "in_process", Name: inprocess.Topic}, Store: tracing.Place{System: "sqlite"}}
	if s.AMQP.URL != "" {
		p.Bus.System, p.Bus.Name = "rabbitmq", s.AMQP.Prefix
		if u, err := amqp091.ParseURI(s.AMQP.URL); err == nil {
			p.Bus.Host, p.Bus.Port = u.Host, u.Port
		}
	}
	if !s.Embedded() {
		p.Store.System = "postgresql"
		if c, err := s.connConfig(); err == nil {
			p.Store.Name, p.Store.Host, p.Store.Port = cmp.Or(c.Database, c.User), c.Host, int(c.Port)
		}
	}
	return p
}

// Embedded tells whether the store is the SQLite file.
func (s Settings) Embedded() bool { return s.DatabaseURL == "" && s.Pool == nil }

// connConfig is how to connect to the Postgres database.
func (s Settings) connConfig() (*pgconn.Config, error) {
	if s.Pool != nil {
		return &s.Pool.Config().ConnConfig.Config, nil
	}
	return pgconn.ParseConfig(s.DatabaseURL)
}

// OpenStore opens the store that the settings name. Its schema is [Backend.Migrate]'s.
func (s Settings) OpenStore(ctx context.Context) (Backend, error) {
	if !s.Embedded() {
		return postgres.Open(ctx, s.DatabaseURL, postgres.Options{MaxConns: s.MaxConns, Pool: s.Pool})
	}
	return sqlite.Open(ctx, s.SQLitePath)
}

// OpenForAppend opens the store, and makes the schema in a new SQLite file. An older schema is left to `worker migrate up` and
// `worker run`.
func (s Settings) OpenForAppend(ctx context.Context) (Backend, error) {
	if !s.Embedded() {
		return s.OpenStore(ctx)
	}
	b, err := sqlite.Open(ctx, s.SQLitePath)
	if err != nil {
		return nil, err
	}
	if err := b.Create(ctx); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// OpenExisting opens the store for reading what is there: a SQLite file that does not exist is an error, rather than a new
// and empty store in the wrong folder.
func (s Settings) OpenExisting(ctx context.Context) (Backend, error) {
	if s.Embedded() {
		if _, err := os.Stat(s.SQLitePath); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s (`worker run` and `worker append` make it)", ErrNoDatabase, s.StoreName())
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

// QueuedDeadLetters returns how many dead letters are in the failed queue and not ingested yet; 0 without a broker. It
// declares nothing.
func (s Settings) QueuedDeadLetters(ctx context.Context) (int, error) {
	if s.AMQP.URL == "" {
		return 0, nil
	}
	c := s.AMQP
	c.Partitions, c.RetryLater = 0, nil // these queues are not of interest
	survey, err := amqp.Inspect(ctx, c)
	if err != nil {
		return 0, err
	}
	for _, p := range survey.Parts {
		if p.Failed {
			return p.Messages, p.Err
		}
	}
	return 0, nil
}

// IngestQueued ingests the dead letters of the failed queue into the table, and returns how many. It returns [ErrNoBroker]
// if there is no broker.
func (s Settings) IngestQueued(ctx context.Context, table *deadletter.Table) (int, error) {
	if s.AMQP.URL == "" {
		return 0, ErrNoBroker
	}
	conn, err := amqp.Dial(ctx, s.AMQP)
	if err != nil {
		return 0, err
	}
	n, err := amqp.NewIngester(conn, table, slog.New(slog.DiscardHandler)).Drain(ctx)
	return n, errors.Join(err, conn.Close())
}

package service

import (
	"cmp"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/healz/worker/internal/console"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/worker"
)

// Forever is an InboxRetention without an end.
const Forever time.Duration = -1

// Config is how a [Service] works. It holds what the flags of `run` hold, by the same names; see `run --help` and
// docs/operations.md. Only the flags read a file where the value is @FILE. The zero value is the embedded default: the SQLite file healz.db and a bus inside the process. Each zero
// field is the default that its comment names.
type Config struct {
	// DatabaseURL is the Postgres database, postgres://…
	DatabaseURL string
	// Pool is a pool of the program's own in place of DatabaseURL, whose connections handlers and appends share; 20 are enough. It is
	// not closed. Besides, the worker has up to 10 connections of its own, for the relay, the console and migrations, which are made
	// with the settings of the pool and its hooks BeforeConnect and AfterConnect. See also [worker.StoreConfig].
	Pool *pgxpool.Pool
	// DatabaseConns is the most connections to DatabaseURL (not with a Pool), for handlers and appends: 20.
	DatabaseConns int
	// SQLitePath is the file of the embedded default, where there is no Postgres: healz.db.
	SQLitePath string
	// NoMigrate leaves the schema as it is: `migrate up` has brought it up to date.
	NoMigrate bool
	// Wait is how long New waits, in all, for servers that are not available yet: it does not.
	Wait time.Duration

	// RabbitMQURL is the broker, amqp://… or amqps://…; without it the bus is inside the process.
	RabbitMQURL string
	// RabbitMQManagementURL is the broker's management API, which tells of policies: the default port of the broker's host.
	RabbitMQManagementURL string
	// RabbitMQPrefix is the prefix of the names of exchanges and queues: healz.events.
	RabbitMQPrefix string
	// Service is the name of the service that the handlers belong to, which has its own queues: the contract's queue.
	Service string
	// RabbitMQHeartbeat is the heartbeat interval of the connection: 1m.
	RabbitMQHeartbeat time.Duration
	// QueueType is classic or quorum: classic.
	QueueType string
	// Partitions is the number of partition queues by aggregate, the same for all workers and commands: one queue.
	Partitions int
	// LeavePartitions returns from partitions to one queue, after the messages in them are handled.
	LeavePartitions bool
	// CompetingConsumers lets several workers consume the one queue at once, without the order of an aggregate.
	CompetingConsumers bool
	// Prefetch is the prefetch count of the consumer, at least Concurrency: 256.
	Prefetch int

	// Concurrency is how many events are handled at once; those of one aggregate never are: 32.
	Concurrency int
	// MaxMessage is the most bytes of an event; a larger one becomes a dead letter: 16 MiB.
	MaxMessage int
	// RetryAttempts is how many attempts a handler has before its event becomes a dead letter: 4.
	RetryAttempts int
	// RetryInitial and RetryMax are the longest first and the longest wait between attempts: 100ms and 5s.
	RetryInitial, RetryMax time.Duration
	// RetryLater are the delays before further rounds of attempts, for which RabbitMQ keeps the event: none.
	RetryLater []time.Duration
	// HandlerTimeout bounds one attempt of one handler: 30s.
	HandlerTimeout time.Duration
	// AfterDeadLetter is what happens to later events of an aggregate with a dead letter, continue or park: continue.
	AfterDeadLetter string
	// GracePeriod is how long the end of Run waits for events in flight: 20s.
	GracePeriod time.Duration
	// InboxRetention is how long redelivered events are recognised, more than 1h, or [Forever]: 30 days.
	InboxRetention time.Duration

	// RelayPoll is how often the relay polls the store, besides notifications: 1s.
	RelayPoll time.Duration
	// RelayBatch is the most events of a batch of the relay: 1 000.
	RelayBatch int
	// RelayStart is where a first relay begins in a database, auto, beginning or end: auto, which is after the rows of an
	// adopted table.
	RelayStart string
	// RelayOnlyOwn relays only events that workers wrote, if other programs publish their own.
	RelayOnlyOwn bool

	// NoIngest leaves the dead letters in RabbitMQ's failed queue, for `dlq ingest`.
	NoIngest bool
	// DeadLetterRetention is how long decided dead letters are kept: forever.
	DeadLetterRetention time.Duration

	// ConsoleToken is for reading the console, ConsoleWriteToken also for replay, archive and reveal.
	ConsoleToken, ConsoleWriteToken string
	// ConsoleWrite permits replay, archive and reveal to all readers.
	ConsoleWrite bool
	// ConsoleOpen serves the console without a token: the program itself has to decide who reaches [Service.Handler].
	ConsoleOpen bool

	// OTLP exports traces, as the environment variables of OpenTelemetry say. Failures to export are logged and counted; what
	// OpenTelemetry reports besides goes to the error handler that the program has set.
	OTLP bool
	// Logger is for the log, which contains no data of events: it is discarded.
	Logger *slog.Logger
}

// defaultSQLitePath is the file of the embedded default.
const defaultSQLitePath = "healz.db"

func (c Config) settings() worker.Settings {
	s := worker.DefaultSettings()
	s.DatabaseURL, s.Pool, s.SQLitePath = c.DatabaseURL, c.Pool, c.SQLitePath
	if s.Embedded() {
		s.SQLitePath = cmp.Or(c.SQLitePath, defaultSQLitePath)
	}
	if s.MaxConns = cmp.Or(c.DatabaseConns, s.MaxConns); c.Pool != nil {
		s.MaxConns = c.DatabaseConns
	}
	s.DeadLetterRetention, s.IngestDeadLetters = c.DeadLetterRetention, !c.NoIngest
	if s.InboxRetention = cmp.Or(c.InboxRetention, s.InboxRetention); c.InboxRetention == Forever {
		s.InboxRetention = 0
	}

	a := &s.AMQP
	a.URL, a.ManagementURL = c.RabbitMQURL, c.RabbitMQManagementURL
	a.Prefix, a.Heartbeat = cmp.Or(c.RabbitMQPrefix, a.Prefix), cmp.Or(c.RabbitMQHeartbeat, a.Heartbeat)
	a.Service = c.Service
	a.QueueType, a.Partitions, a.LeavePartitions = cmp.Or(c.QueueType, a.QueueType), c.Partitions, c.LeavePartitions
	a.Competing, a.RetryLater = c.CompetingConsumers, c.RetryLater

	t := &s.Tuning
	t.Concurrency, t.MaxMessage = cmp.Or(c.Concurrency, t.Concurrency), cmp.Or(c.MaxMessage, t.MaxMessage)
	t.RetryAttempts = cmp.Or(c.RetryAttempts, t.RetryAttempts)
	t.RetryInitial, t.RetryMax = cmp.Or(c.RetryInitial, t.RetryInitial), cmp.Or(c.RetryMax, t.RetryMax)
	t.HandlerTimeout, t.GracePeriod = cmp.Or(c.HandlerTimeout, t.HandlerTimeout), cmp.Or(c.GracePeriod, t.GracePeriod)
	t.AfterDeadLetter = cmp.Or(handlers.AfterDeadLetter(c.AfterDeadLetter), t.AfterDeadLetter)
	t.RelayPoll = cmp.Or(c.RelayPoll, t.RelayPoll)
	a.Prefetch = cmp.Or(c.Prefetch, max(a.Prefetch, t.Concurrency))

	s.Relay.BatchSize = cmp.Or(c.RelayBatch, s.Relay.BatchSize)
	s.Relay.Start, s.Relay.OnlyOwn = cmp.Or(store.Start(c.RelayStart), s.Relay.Start), c.RelayOnlyOwn
	return s
}

func (c Config) access() console.Access {
	return console.Access{Token: c.ConsoleToken, WriteToken: c.ConsoleWriteToken, Write: c.ConsoleWrite, Open: c.ConsoleOpen}
}

package worker

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/sqlite"
)

// StoreConfig says which event store to open: one of DatabaseURL, Pool and SQLitePath.
type StoreConfig struct {
	// DatabaseURL is the Postgres database (postgres://…, or libpq's keywords and values).
	DatabaseURL string
	// Pool is a pool of the caller's own, whose connections the store shares. It is the caller's to close, after the store. Its
	// default_query_exec_mode must be cache_statement (pgx's default), cache_describe or describe_exec; behind a pooler such as
	// pgbouncer, cache_describe is the one that works with every version. Migrate has connections of its own, with the pool's settings
	// and its hooks BeforeConnect and AfterConnect.
	//
	// A call of the store needs a connection: who makes it while holding one, as in a transaction, may wait for ever in a pool
	// that is used up. In a transaction of one's own, AppendTx is the way.
	Pool *pgxpool.Pool
	// SQLitePath is the file of the embedded default; it is made if there is none.
	SQLitePath string
	// MaxConns is the most connections to DatabaseURL; 0 is what the URL says in pool_max_conns, or else pgxpool's default.
	MaxConns int
}

// Store is an event store: events are kept there for good, in order, and are never changed. What was appended reaches the bus,
// by the relay of a worker that runs on the same database. All methods are safe for concurrent use.
//
// A program that appends needs no connection to a broker, and links neither its client nor the console, metrics or traces.
type Store struct {
	backend interface {
		store.Store
		Migrate(ctx context.Context) error
	}
	postgres *postgres.Store // nil on SQLite
}

// OpenStore opens an event store. On Postgres it makes no tables: those are made by `worker migrate up`, a starting worker, or
// [Store.Migrate]. A new SQLite file gets them at once. [Store.Ping] tells whether they are there.
//
// The error wraps [ErrUnavailable] when the server or the file cannot be reached now, and never contains a password.
func OpenStore(ctx context.Context, c StoreConfig) (*Store, error) {
	named := 0
	for _, is := range []bool{c.DatabaseURL != "", c.Pool != nil, c.SQLitePath != ""} {
		if is {
			named++
		}
	}
	switch {
	case named != 1:
		return nil, fmt.Errorf("open the store: set one of DatabaseURL, Pool and SQLitePath, not %d of them", named)
	case c.MaxConns < 0, c.MaxConns > 0 && c.DatabaseURL == "":
		return nil, fmt.Errorf("open the store: MaxConns (%d) is the size of the pool that is made for a DatabaseURL", c.MaxConns)
	case c.SQLitePath != "":
		s, err := sqlite.Open(ctx, c.SQLitePath)
		if err != nil {
			return nil, err
		}
		if err := s.Create(ctx); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		return &Store{backend: s}, nil
	}
	s, err := postgres.Open(ctx, c.DatabaseURL, postgres.Options{MaxConns: c.MaxConns, Pool: c.Pool})
	if err != nil {
		return nil, err
	}
	return &Store{backend: s, postgres: s}, nil
}

// Append appends all events or none, in one round trip; none is no error. The events may belong to several aggregates; within
// an aggregate they are in version order and continue what the store has.
//
// The error wraps one of: *[InvalidError], *[ConflictError] (which is an [ErrConflict]), *[DuplicateError], *[GapError],
// [ErrOtherTenant]; and [ErrUnknownOutcome], when the connection broke at the wrong moment. Whatever else it is, nothing was
// appended.
func (s *Store) Append(ctx context.Context, batch ...Event) error { return s.AppendMany(ctx, batch) }

// AppendMany is [Store.Append] of a slice. With it a store is the [Streams] of a [Repository].
func (s *Store) AppendMany(ctx context.Context, batch []Event) error {
	return s.backend.AppendMany(ctx, batch)
}

// AppendTx appends events in a transaction of the caller's own, on the database of the store: they are committed with the
// caller's rows, or not at all. Its errors are those of [Store.Append], but for [ErrUnknownOutcome]. After an error nothing of the
// call is in the transaction, which can go on, unless ctx has ended: that may cost the connection.
//
// An [ErrConflict] that is no *[ConflictError] says that the transaction has to be begun again: it was chosen to end a deadlock, or
// its snapshot (repeatable read, serializable) is older than a version that another one has taken.
//
// From the call on, the transaction holds back the relay, for the whole database: commit soon. On SQLite it is an error.
func (s *Store) AppendTx(ctx context.Context, tx pgx.Tx, batch ...Event) error {
	if s.postgres == nil {
		return errors.New("append in a transaction: the store is SQLite, and the transaction Postgres's")
	}
	return s.postgres.AppendTx(ctx, tx, batch)
}

// Stream yields the events of an aggregate after the given version (0: all), by version ascending, without holding more than a
// page of them in memory. An unknown aggregate yields nothing.
func (s *Store) Stream(
	ctx context.Context, aggregateType string, aggregateID uuid.UUID, afterVersion int,
) iter.Seq2[Event, error] {
	return s.backend.Stream(ctx, aggregateType, aggregateID, afterVersion)
}

// Query says which part of a result to read. Limit is the most events, 100 if it is 0, at most 10 000. After is the Next of an
// earlier [Page], and continues behind it at the same cost however far in; Offset skips events at the cost of reading them. MaxBytes
// ends the page before the event with which Data and Metadata exceed so many bytes, but not before the first; 0 is no bound.
// WithoutData leaves these two empty, and unread. Check returns the query with its defaults, or what is out of range.
type Query = store.Query

// Page is a part of a result: Events, and Next, the cursor to the page after this one, "" when there was no further event.
type Page = store.Page

// ByAggregate reads a page of an aggregate's events, by version ascending. Of this and the three below: an unknown id or type
// is an empty page, not an error.
func (s *Store) ByAggregate(ctx context.Context, aggregateType string, aggregateID uuid.UUID, q Query) (Page, error) {
	return s.backend.ByAggregate(ctx, aggregateType, aggregateID, q)
}

// ByCorrelation reads a page of a chain of causes, oldest first.
func (s *Store) ByCorrelation(ctx context.Context, correlationID uuid.UUID, q Query) (Page, error) {
	return s.backend.ByCorrelation(ctx, correlationID, q)
}

// ByType reads a page of the events of a type, newest first.
func (s *Store) ByType(ctx context.Context, eventType string, q Query) (Page, error) {
	return s.backend.ByType(ctx, eventType, q)
}

// ByTenant reads a page of a tenant's events, newest first.
func (s *Store) ByTenant(ctx context.Context, tenantID uuid.UUID, q Query) (Page, error) {
	return s.backend.ByTenant(ctx, tenantID, q)
}

// ByID reads one event. The error wraps [ErrNoEvent] if there is none of that id.
func (s *Store) ByID(ctx context.Context, eventID uuid.UUID) (Event, error) {
	recorded, err := s.backend.ByID(ctx, eventID)
	return recorded.Event, err
}

// Migrate brings the schema up to date, as `worker migrate up` does; nothing happens when it is. Of several processes that
// begin at once one does it. On Postgres it needs the rights of the tables' owner.
func (s *Store) Migrate(ctx context.Context) error { return s.backend.Migrate(ctx) }

// Ping says whether the store answers and has the schema that this version needs. The error wraps [ErrUnavailable],
// [ErrNoSchema] or [ErrNewerSchema].
func (s *Store) Ping(ctx context.Context) error { return s.backend.Ping(ctx) }

// Close waits for the calls that run and closes the connections. A Pool of the caller's is left open, and its calls not waited for.
func (s *Store) Close() error { return s.backend.Close() }

// Inbox is the side of the store that records what handlers have handled. It is for package workertest.
func (s *Store) Inbox() handlers.Inbox { return s.backend }

// Package store is the event store: events are kept there for good, in order, and are never changed.
//
// There are two stores of one interface, [postgres] and [sqlite], held to one conformance suite (storetest).
// Appending is all there is to writing: the events table is also the outbox that the relay tails, so an append
// that returned will reach the bus.
//
// [postgres]: https://pkg.go.dev/github.com/healz/worker/internal/store/postgres
// [sqlite]: https://pkg.go.dev/github.com/healz/worker/internal/store/sqlite
package store

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

// Store is what both stores offer. All methods are safe for concurrent use.
type Store interface {
	Writer
	Reader
	Inbox

	// Ping says whether the store answers and has the schema that this version of the worker needs.
	Ping(ctx context.Context) error

	// Close waits for the calls that run and closes the connections.
	Close() error
}

// Writer appends events.
type Writer interface {
	// Append appends one event; it is AppendMany of one.
	Append(ctx context.Context, e events.Event) error

	// AppendMany appends all events or none, in one round trip; none is no error. The events may belong to
	// several aggregates; within an aggregate they are in version order and continue what the store has.
	//
	// The error wraps one of: *[events.InvalidError], *[ConflictError], *[DuplicateError], *[GapError] and
	// [events.ErrOtherTenant], these in an *[EventError] that names the event; and, when the connection broke at the
	// wrong moment, [ErrUnknownOutcome]. Whatever else it is, nothing was appended.
	AppendMany(ctx context.Context, batch []events.Event) error

	// AppendWith is AppendMany, and executes a statement of [SQL], which the batch does not depend on, in the same transaction.
	AppendWith(ctx context.Context, batch []events.Event, statement string, args ...any) error
}

// Reader reads events.
type Reader interface {
	// Stream yields the events of an aggregate after the given version (0: all), by version ascending, without
	// holding more than a page of them in memory. An unknown aggregate yields nothing.
	Stream(ctx context.Context, aggregateType string, aggregateID uuid.UUID, afterVersion int) iter.Seq2[events.Event, error]

	// Version is the version of the aggregate's last event, 0 when it has none.
	Version(ctx context.Context, aggregateType string, aggregateID uuid.UUID) (int, error)

	// ByAggregate reads a page of an aggregate's events, by version ascending. Of this and the three below: an
	// unknown id or type is an empty page, not an error.
	ByAggregate(ctx context.Context, aggregateType string, aggregateID uuid.UUID, q Query) (Page, error)
	// ByCorrelation reads a page of a chain of causes, oldest first.
	ByCorrelation(ctx context.Context, correlationID uuid.UUID, q Query) (Page, error)
	// ByType reads a page of the events of a type, newest first.
	ByType(ctx context.Context, eventType string, q Query) (Page, error)
	// ByTenant reads a page of a tenant's events, newest first.
	ByTenant(ctx context.Context, tenantID uuid.UUID, q Query) (Page, error)

	// Search reads a page of the events that s chooses, newest first. It examines no more than [SearchReach] events for
	// it, so a page may have fewer events than its limit, or none, and yet a Next, which continues the search. An offset
	// or a bound of bytes is a *[QueryError].
	Search(ctx context.Context, s Search, q Query) (Page, error)

	// End is the position that [Reader.All] has come to when it ends now.
	End(ctx context.Context) (Position, error)
	// Since is a position behind which are all events that were created at t or later, by their created_at, and few others;
	// End, if there are none.
	Since(ctx context.Context, t time.Time) (Position, error)

	// ByID reads one event; it is [ErrNoEvent] if there is none of that id.
	ByID(ctx context.Context, eventID uuid.UUID) (Recorded, error)

	// All yields the events after a position in commit order, which is the order in which the relay publishes
	// them, and ends at the last that is certain to have no earlier one uncommitted before it.
	All(ctx context.Context, after Position) iter.Seq2[Recorded, error]
}

// Inbox records which handler has handled which event.
type Inbox interface {
	// Handled returns the names of the handlers that have handled e. It is [ErrContradiction] when an event of
	// the same id that said something else was handled.
	Handled(ctx context.Context, e events.Event) ([]string, error)

	// HandledOf returns by whom and when the events were handled, for each event the earliest first, as far as that is
	// still on record. It reads all that it is asked for at once: ask for a page of events at a time.
	HandledOf(ctx context.Context, eventIDs []uuid.UUID) (map[uuid.UUID][]Handling, error)

	// Attempt returns the context for one attempt of a handler, in which it can register SQL of its own with the store's
	// InTx, to be done by the Record that is called with the same context.
	Attempt(ctx context.Context) context.Context

	// Record appends followUps together with the record that handler has handled e, in one transaction. It is
	// [ErrHandled], and nothing is done, when that is on record already, and [ErrContradiction] when what is on
	// record is an event of the same id that said something else. Work that was registered in ctx, which comes from
	// Attempt, is done in the same transaction, last; when it fails nothing is recorded, and the error is a *[WorkError].
	// Otherwise errors are as of AppendMany.
	Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error

	// Park records that e is a dead letter of handler, unless handler has handled it. [Inbox.Record] removes that record.
	// Parking twice is the same as once.
	Park(ctx context.Context, handler string, e events.Event) error

	// Parked returns for each of the handlers, if e has to wait behind a parked event of its aggregate, that is, one of
	// a lower version, the id of the first such event.
	Parked(ctx context.Context, e events.Event, handlers []string) (map[string]uuid.UUID, error)

	// PruneHandled deletes up to limit records that are older than age, the oldest first, and returns how many. An event
	// that is delivered again after that is handled again.
	PruneHandled(ctx context.Context, age time.Duration, limit int) (int, error)
}

// Bounds of a page.
const (
	DefaultLimit = 100
	MaxLimit     = 10_000
	// PageBytes is how many bytes of events or dead letters the worker reads, writes or holds at once, or one that is
	// larger. (The statement tail.sql has the same number.)
	PageBytes = 8 << 20
)

// Query says which part of a result to read.
type Query struct {
	// Limit is the most events to read. 0 is [DefaultLimit]; below 0 or above [MaxLimit] is a *[QueryError].
	Limit int
	// Offset is how many events to skip first, at the cost of reading them. Below 0 is a *[QueryError].
	Offset int
	// After continues behind an earlier page, at the same cost however far in. "" begins at the beginning.
	After Cursor
	// MaxBytes ends the page before the event with which event_data and metadata exceed so many bytes, but not before the
	// first event; Next continues. 0 is no bound: the page is as large as its events are.
	MaxBytes int
	// WithoutData leaves Data and Metadata of the events empty, and unread.
	WithoutData bool
}

// Cursor is the position after the last event of a page. It is opaque, belongs to the read that gave it, and stays
// valid: events appended meanwhile neither repeat nor hide others.
type Cursor string

// Page is part of a result.
type Page struct {
	Events []events.Event
	// Next is the cursor to the page after this one, "" when there was no further event.
	Next Cursor
}

// Recorded is an event with its position in the store.
type Recorded struct {
	events.Event
	Position Position
}

// Size is how many bytes of data the event has.
func (r Recorded) Size() int { return len(r.Data) + len(r.Metadata) }

// Renumbered is what was done to a database that was restored from a dump of another cluster; zero if it was not.
type Renumbered struct {
	// Events is the number of events that were restored, and Waiting of those among them that were not relayed.
	Events, Waiting int
	// New is the number of events that were appended since, and were not relayed.
	New int
}

// Handling is the record that a handler has handled an event.
type Handling struct {
	Handler string
	// At is when it was recorded, by the clock of the database or, on SQLite, of the worker.
	At time.Time
}

// Position is an event's position in commit order. The zero value is before the first event.
type Position struct {
	// Transaction is the id of the transaction that wrote the event; 0 where the store has no need of it.
	Transaction uint64
	// ID is the event's id column.
	ID int64
}

// Check returns q with its defaults filled in, or a *[QueryError].
func (q Query) Check() (Query, error) {
	switch {
	case q.Limit < 0 || q.Limit > MaxLimit:
		return q, &QueryError{Field: "limit", Problem: fmt.Sprintf("must be from 0 (meaning %d) to %d, not %d", DefaultLimit, MaxLimit, q.Limit)}
	case q.Offset < 0:
		return q, &QueryError{Field: "offset", Problem: fmt.Sprintf("must not be negative, but is %d", q.Offset)}
	case q.MaxBytes < 0:
		return q, &QueryError{Field: "max_bytes", Problem: fmt.Sprintf("must not be negative, but is %d", q.MaxBytes)}
	case q.Limit == 0:
		q.Limit = DefaultLimit
	}
	return q, nil
}

package store

import (
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

var (
	// ErrHandled says that the handler has handled the event before; nothing was done.
	ErrHandled = errors.New("already handled")
	// ErrContradiction says that an event of the same id, saying something else, was handled before.
	ErrContradiction = errors.New("event_id was handled before with other contents")
	// ErrUnknownOutcome says that the connection broke after the append was sent: it may or may not have
	// happened. Append the same events again to find out: a *[DuplicateError] means that it had.
	ErrUnknownOutcome = errors.New("the connection broke and the outcome is unknown")
	// ErrUnavailable says that the store could not be reached or could not serve: the fault is not the event's,
	// and the same call can succeed later.
	ErrUnavailable = errors.New("the store is unavailable")
	// ErrReadOnly is an [ErrUnavailable] that says why: the server takes no writes.
	ErrReadOnly = fmt.Errorf("%w: the server is read-only, as a standby or by default_transaction_read_only", ErrUnavailable)
	// ErrNoPosition says that the row of relay_position was deleted after a relay had run: nothing tells what is published.
	ErrNoPosition = errors.New("the row of relay_position is missing, so that it is not known which events are published: " +
		"restore it from a backup, or see docs/operations.md to publish all events from the first one")
	// ErrRestored says that the database was restored from a dump of another Postgres cluster: the events have transaction
	// ids of that cluster, by which the relay cannot read in commit order.
	ErrRestored = errors.New("the database was restored from a dump of another cluster, so that events would not be relayed: " +
		"run `worker migrate restored` as the owner of the tables")
	// ErrNoEvent says that no event has the id that was asked for.
	ErrNoEvent = errors.New("no such event")
	// ErrNoSchema says that the database has no schema of the worker, or lacks a newer version of it.
	ErrNoSchema = errors.New("the schema is missing, or too old for this version of the worker: " +
		"run `worker migrate up`, or `worker run` with --migrate")
	// ErrWouldLose says that a schema cannot be taken back, as something would be lost with it.
	ErrWouldLose = errors.New("the schema is not taken back: events that were not relayed yet, the record of what was " +
		"handled, dead letters, or what is parked behind them would be lost")
	// ErrForeignTable says that there is a table events of another program, with other columns.
	ErrForeignTable = errors.New("there is a table events that is not the contract's")
	// ErrUnfitTable says that a table events of another service breaks the contract by its rows, or by an index.
	ErrUnfitTable = errors.New("the table events cannot be adopted, and is not changed: " +
		"correct it as docs/operations.md says")
	// ErrNewerSchema says that a newer version of the worker has migrated the database, so that this one cannot work with it.
	ErrNewerSchema = errors.New("the database has the schema of a newer version of the worker, which this one does not know")
)

// ConflictError says that a version was taken: another writer was first. It wraps [events.ErrConflict].
type ConflictError struct {
	AggregateType string
	AggregateID   uuid.UUID
	// Wanted is the version that the append asked for, Found the version that the aggregate has.
	Wanted, Found int
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s: %s %s: version %d is taken, the aggregate is at version %d",
		events.ErrConflict, e.AggregateType, e.AggregateID, e.Wanted, e.Found)
}

// Unwrap makes errors.Is(err, events.ErrConflict) true.
func (e *ConflictError) Unwrap() error { return events.ErrConflict }

// DuplicateError says that an event of the same id is in the store, or twice in the batch.
type DuplicateError struct{ EventID uuid.UUID }

func (e *DuplicateError) Error() string {
	return fmt.Sprintf("duplicate event: event_id %s is already in the store", e.EventID)
}

// GapError says that a version does not follow the aggregate's last one.
type GapError struct {
	AggregateType string
	AggregateID   uuid.UUID
	// Wanted is the version that the append asked for, Found the version that the aggregate has.
	Wanted, Found int
}

func (e *GapError) Error() string {
	return fmt.Sprintf("gap in versions: %s %s: version %d does not follow version %d",
		e.AggregateType, e.AggregateID, e.Wanted, e.Found)
}

// RefusedError says that the database refused rows, by a constraint, an index or a trigger of others. Its text names that
// and quotes nothing of the rows.
type RefusedError struct {
	// By is what the database tells of the reason: its code, and the names of the constraint, table, column or trigger.
	By string
	// Err is the error of the database. Its text, and its other fields, may quote the rows.
	Err error
}

func (e *RefusedError) Error() string { return "the database refuses it: " + e.By }
func (e *RefusedError) Unwrap() error { return e.Err }

// EventError says which event of a batch the error is about.
type EventError struct {
	// Index is the event's index in the batch, from 0, and Of the size of the batch.
	Index, Of int
	Err       error
}

func (e *EventError) Error() string { return fmt.Sprintf("event %d of %d: %s", e.Index+1, e.Of, e.Err) }
func (e *EventError) Unwrap() error { return e.Err }

// QueryError says what is wrong with a read's limit, offset, cursor or position.
type QueryError struct{ Field, Problem string }

func (e *QueryError) Error() string { return e.Field + " " + e.Problem }

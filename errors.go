package worker

import (
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// What a caller may decide on. They are wrapped: use errors.Is.
var (
	// ErrConflict says that another writer appended to the aggregate first; a *[ConflictError] has the versions.
	ErrConflict = events.ErrConflict
	// ErrNotFound says that an aggregate has no events.
	ErrNotFound = events.ErrNotFound
	// ErrOtherTenant says that an aggregate belongs to another tenant than the one that asks for it.
	ErrOtherTenant = events.ErrOtherTenant
	// ErrNoEvent says that no event has the id that was asked for.
	ErrNoEvent = store.ErrNoEvent
	// ErrUnavailable says that the store could not be reached or could not serve: the fault is not the event's, and the same
	// call can succeed later.
	ErrUnavailable = store.ErrUnavailable
	// ErrReadOnly is an [ErrUnavailable] that says why: the server takes no writes.
	ErrReadOnly = store.ErrReadOnly
	// ErrUnknownOutcome says that the connection broke after the append was sent: it may or may not have happened. Append the
	// same events again to find out: a *[DuplicateError] means that it had.
	ErrUnknownOutcome = store.ErrUnknownOutcome
	// ErrNoSchema says that the database has no schema of the worker, or lacks a newer version of it.
	ErrNoSchema = store.ErrNoSchema
	// ErrNewerSchema says that a newer version of the worker has migrated the database, so that this one cannot work with it.
	ErrNewerSchema = store.ErrNewerSchema
	// ErrNoTransaction says that [InTx] was called outside of a handler, or on a worker whose store is another one.
	ErrNoTransaction = store.ErrNoTransaction
)

// InvalidError says all that is wrong with an event: its Fields are the bad ones. It quotes no values of the event's data or
// metadata.
type InvalidError = events.InvalidError

// FieldError says what is wrong with one field: Field is its JSON name, or "" when the whole is at fault, and Problem completes the
// sentence "the field …".
type FieldError = events.FieldError

// ConflictError says that a version of an aggregate (AggregateType, AggregateID) was taken: Wanted is the version that the append
// asked for, Found the one that the aggregate has. It is an [ErrConflict].
type ConflictError = store.ConflictError

// GapError says that a version does not follow the last one of the aggregate (AggregateType, AggregateID); Wanted and Found are as in
// [ConflictError].
type GapError = store.GapError

// DuplicateError says that an event of the same id (EventID) is in the store, or twice in the batch.
type DuplicateError = store.DuplicateError

// EventError says which event of a batch (Index, from 0, of Of) an error is about, and wraps that: Err.
type EventError = store.EventError

// RefusedError says that the database refused rows, by a constraint, an index or a trigger of others, which By names. Its text
// quotes nothing of the rows; the error that it wraps, Err, may.
type RefusedError = store.RefusedError

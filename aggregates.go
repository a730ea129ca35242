package worker

import (
	"iter"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

// Aggregate is what users write: a struct that embeds [Root], and has two methods.
//
//   - AggregateType names the kind of aggregate, at most 50 characters.
//   - Apply changes the state as an event says. It must not refuse what has happened: an error means that the event cannot be
//     understood. It must have no other effect, as it runs again at every load. It should ignore event types that it does not
//     know, so that an older program reads a newer history.
//
// Its other methods are its commands: they check what must hold, and [Raise] events.
type Aggregate = events.Aggregate

// Root is the base to embed in an aggregate. It gives it ID, Version (of the last event, 0 if there is none), TenantID, and
// Uncommitted, the events that were raised since it was loaded, which ClearUncommitted forgets once they are in the store. It is
// not safe for concurrent use.
type Root = events.Root

// Stateful is an [Aggregate] that shows its state to people: State is what the events so far have made of it, as something that
// can be encoded as JSON. See [ShowState].
type Stateful = events.Stateful

// Streams is what a [Repository] needs of an event store: AppendMany appends all events or none, and Stream yields the events
// of an aggregate after a version. A [Store], an [App] and the Streams of package workertest are some.
type Streams = events.Streams

// Raise makes data the next event of a: it is applied to the state, queued as uncommitted, and the version is one higher. When
// it fails, nothing of that has happened, provided that Apply left the state alone.
func Raise(a Aggregate, data Data) error { return events.Raise(a, data) }

// Begin gives a its id, and the [Origin] that its next events inherit. A [Repository] does so by itself. On an aggregate that
// was loaded it sets the origin of what is raised from now on; an id or a tenant other than the loaded one is an error.
func Begin(a Aggregate, id uuid.UUID, origin Origin) error { return events.Begin(a, id, origin) }

// Load applies a history, oldest first, and takes its version. The events must be of a's type, of one aggregate and one tenant,
// and without a gap. Most callers want a [Repository].
func Load(a Aggregate, history iter.Seq2[Event, error]) error { return events.Load(a, history) }

// Repository loads aggregates of one kind and saves what they raise. It is safe for concurrent use.
//
//   - Execute(ctx, origin, id, command) runs a command on an aggregate, new or existing, and saves what it raises. On a
//     concurrency conflict the command runs again on the newer aggregate, so it must have no effect but the events it raises.
//     The command's own error is returned as it is, and nothing is saved.
//   - Decide(ctx, origin, id, command) runs a command and returns what it raises, without saving it. It is for handlers, whose
//     events are appended together with the record that they have handled their event.
//   - Load(ctx, origin, id) returns the aggregate. The error wraps [ErrNotFound] when it has no events, and [ErrOtherTenant]
//     when they are of another tenant than origin's.
//   - Save(ctx, a) appends what a has raised, all or nothing. The error wraps [ErrConflict] when the aggregate has moved on
//     since it was loaded; a is then of no further use.
type Repository[A Aggregate] = events.Repository[A]

// NewRepository returns the repository of the aggregates that empty makes: each call must return a new one. streams is a
// [Store] or, for handlers, the [App] that they are registered with.
func NewRepository[A Aggregate](streams Streams, empty func() A) *Repository[A] {
	return events.NewRepository(streams, empty)
}

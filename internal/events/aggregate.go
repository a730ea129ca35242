package events

import (
	"fmt"
	"iter"
	"slices"

	"github.com/google/uuid"
)

// Aggregate is what users write: a struct that embeds [Root] and says how an event changes its state.
type Aggregate interface {
	// AggregateType names the kind of aggregate, at most 50 characters.
	AggregateType() string
	// Apply changes the state as the event says. It must not refuse what has happened: an error means that
	// the event cannot be understood. It must have no other effect, as it runs again at every load. Event
	// types it does not know it should ignore, so that an older worker reads a newer history.
	Apply(e Event) error

	root() *Root
}

// Root is the base to embed in an aggregate. Its zero value is an aggregate that has not begun, version 0;
// [Begin], [Load] and the [Repository] give it its identity. It is not safe for concurrent use.
type Root struct {
	id          uuid.UUID
	version     int
	origin      Origin
	uncommitted []Event
}

func (r *Root) root() *Root { return r }

// ID is the id of the aggregate.
func (r *Root) ID() uuid.UUID { return r.id }

// Version is the version of the last event raised or loaded, 0 if there is none.
func (r *Root) Version() int { return r.version }

// TenantID is the tenant that the aggregate belongs to.
func (r *Root) TenantID() uuid.UUID { return r.origin.TenantID }

// Uncommitted returns a copy of the events raised since the last load or [Root.ClearUncommitted].
func (r *Root) Uncommitted() []Event { return slices.Clone(r.uncommitted) }

// ClearUncommitted forgets the raised events, once they are in the store.
func (r *Root) ClearUncommitted() { r.uncommitted = nil }

// Begin gives a its id, and the origin that its next events inherit. On an aggregate that was loaded it sets
// the origin of what is raised from now on; the id and the tenant must then be the loaded ones.
func Begin(a Aggregate, id uuid.UUID, origin Origin) error {
	r := a.root()
	if r.version > 0 && r.id != id {
		return fmt.Errorf("begin %s %s: it already is %s", a.AggregateType(), id, r.id)
	}
	if r.version > 0 && r.origin.TenantID != origin.TenantID {
		return fmt.Errorf("begin %s %s: %w", a.AggregateType(), id, ErrOtherTenant)
	}
	r.id, r.origin = id, origin.withCorrelation()
	return nil
}

// Raise makes data the next event of a: it is applied to the state, queued as uncommitted, and the version is
// one higher. When it fails, nothing of that has happened, provided that Apply left the state alone.
func Raise(a Aggregate, data Data) error {
	r := a.root()
	r.origin = r.origin.withCorrelation() // one chain, even if it was never begun
	e, err := New(r.origin, a.AggregateType(), r.id, r.version+1, data)
	if err != nil {
		return fmt.Errorf("raise %s: %w", data.EventType(), err)
	}
	if err := a.Apply(e); err != nil {
		return fmt.Errorf("raise %s: apply: %w", data.EventType(), err)
	}
	r.version = e.AggregateVersion
	r.uncommitted = append(r.uncommitted, e)
	return nil
}

// Load applies the history, oldest first, and takes its version. The events must be of a's type, of one
// aggregate and one tenant, and without a gap; anything else is an error, as is one that history yields.
func Load(a Aggregate, history iter.Seq2[Event, error]) error {
	r := a.root()
	for e, err := range history {
		if err != nil {
			return fmt.Errorf("load %s: %w", a.AggregateType(), err)
		}
		switch {
		case e.AggregateType != a.AggregateType():
			return fmt.Errorf("load %s: event %s is of a %s", a.AggregateType(), e.ID, e.AggregateType)
		case e.AggregateVersion != r.version+1:
			return fmt.Errorf("load %s %s: version %d follows version %d", a.AggregateType(), e.AggregateID,
				e.AggregateVersion, r.version)
		case r.version > 0 && e.AggregateID != r.id:
			return fmt.Errorf("load %s %s: event %s is of %s", a.AggregateType(), r.id, e.ID, e.AggregateID)
		case r.version > 0 && e.TenantID != r.origin.TenantID:
			return fmt.Errorf("load %s %s: event %s: %w", a.AggregateType(), r.id, e.ID, ErrOtherTenant)
		}
		if err := a.Apply(e); err != nil {
			return fmt.Errorf("load %s %s: apply version %d: %w", a.AggregateType(), e.AggregateID, e.AggregateVersion, err)
		}
		r.id, r.version, r.origin.TenantID = e.AggregateID, e.AggregateVersion, e.TenantID
	}
	return nil
}

// Stateful is an aggregate that shows its state to people.
type Stateful interface {
	Aggregate
	// State is what the events so far have made of the aggregate, as something that can be encoded as JSON.
	State() any
}

package intake

import (
	"context"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// Recorder is the part of a store that [Audited] uses.
type Recorder interface {
	Versions
	AppendWith(ctx context.Context, batch []events.Event, statement string, args ...any) error
	SQL() store.SQL
}

// Audited returns a store for [Append] that records each batch in the transaction in which it is appended.
func Audited(s Recorder, by audit.Actor) Store { return audited{s, s, by} }

type audited struct {
	Versions

	store Recorder
	by    audit.Actor
}

// AppendMany appends a batch. A single event is recorded by its id, and several by those of the first and the last one.
func (a audited) AppendMany(ctx context.Context, batch []events.Event) error {
	if len(batch) == 0 {
		return nil
	}
	first, last := batch[0], batch[len(batch)-1]
	subject := audit.Subject{"event_id": first.ID.String(), "type": first.Type}
	if len(batch) > 1 {
		subject = audit.Subject{"first_event_id": first.ID.String(), "last_event_id": last.ID.String()}
	}
	statement, args := audit.Statement(a.store.SQL().Dialect, a.by.Did(audit.Append, subject, len(batch)))
	return a.store.AppendWith(ctx, batch, statement, args...)
}

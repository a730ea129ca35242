package store

import (
	"fmt"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

// CheckBatch finds what is wrong with a batch whatever the store holds: an invalid event, an id that occurs twice, an
// aggregate with two tenants or types, or versions that do not ascend by one. The error is as of [Store.AppendMany]
// and wrapped in an *[EventError].
func CheckBatch(batch []events.Event) error {
	for i, e := range batch {
		if err := e.Validate(); err != nil {
			return inBatch(i, batch, err)
		}
	}
	ids := make(map[uuid.UUID]struct{}, len(batch))
	heads := make(map[uuid.UUID]events.Event)
	for i, e := range batch {
		if _, twice := ids[e.ID]; twice {
			return inBatch(i, batch, &DuplicateError{EventID: e.ID})
		}
		ids[e.ID] = struct{}{}
		if head, found := heads[e.AggregateID]; found {
			if err := Continues(head, e); err != nil {
				return inBatch(i, batch, err)
			}
		}
		heads[e.AggregateID] = e
	}
	return nil
}

// Continues tells why e cannot stand right behind head, the last event of the same aggregate: of the two only the
// tenant, the type and the version of the aggregate count.
func Continues(head, e events.Event) error {
	switch {
	case e.TenantID != head.TenantID:
		return fmt.Errorf("%s %s: %w", e.AggregateType, e.AggregateID, events.ErrOtherTenant)
	case e.AggregateType != head.AggregateType:
		return &events.InvalidError{Fields: []events.FieldError{{
			Field: "aggregate_type", Problem: "is not that of the aggregate's earlier events",
		}}}
	case e.AggregateVersion != head.AggregateVersion+1:
		return &GapError{
			AggregateType: e.AggregateType, AggregateID: e.AggregateID,
			Wanted: e.AggregateVersion, Found: head.AggregateVersion,
		}
	}
	return nil
}

func inBatch(i int, batch []events.Event, err error) error {
	return &EventError{Index: i, Of: len(batch), Err: err}
}

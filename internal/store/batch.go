package store

import (
	"bytes"
	"errors"
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
			return InBatch(batch, i, err)
		}
	}
	ids := make(map[uuid.UUID]struct{}, len(batch))
	heads := make(map[uuid.UUID]events.Event)
	for i, e := range batch {
		if _, twice := ids[e.ID]; twice {
			return InBatch(batch, i, &DuplicateError{EventID: e.ID})
		}
		ids[e.ID] = struct{}{}
		if head, found := heads[e.AggregateID]; found {
			if err := continues(head, e); err != nil {
				return InBatch(batch, i, err)
			}
		}
		heads[e.AggregateID] = e
	}
	return nil
}

// CheckNext finds why e cannot be the next event of an aggregate whose last event is head, of which the tenant, the type
// and the version of the aggregate are enough. Without a head the aggregate has no events.
func CheckNext(head *events.Event, e events.Event) error {
	if head == nil {
		head = &events.Event{AggregateType: e.AggregateType, TenantID: e.TenantID}
	}
	err := continues(*head, e)
	if gap, is := errors.AsType[*GapError](err); is && gap.Wanted <= gap.Found {
		return new(ConflictError(*gap))
	}
	return err
}

func continues(head, e events.Event) error {
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

// InBatch wraps the error of an event in an *[EventError].
func InBatch(batch []events.Event, i int, err error) error {
	return &EventError{Index: i, Of: len(batch), Err: err}
}

// HandledBy is the record that a handler has handled an event with this fingerprint.
type HandledBy struct {
	Handler     string
	Fingerprint []byte
}

// HandlersOf returns the handlers of all records of an event, or [ErrContradiction].
func HandlersOf(e events.Event, records []HandledBy) ([]string, error) {
	if len(records) == 0 {
		return nil, nil
	}
	names := make([]string, len(records))
	want := e.Fingerprint()
	for i, r := range records {
		if !bytes.Equal(r.Fingerprint, want[:]) {
			return nil, fmt.Errorf("event %s: %w", e.ID, ErrContradiction)
		}
		names[i] = r.Handler
	}
	return names, nil
}

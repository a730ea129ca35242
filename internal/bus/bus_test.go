package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/events"
)

// recorder keeps what is published through it.
type recorder struct {
	batches [][]*message.Message
	err     error
}

func (r *recorder) PublishBatch(_ context.Context, batch []*message.Message) error {
	r.batches = append(r.batches, batch)
	if r.err == nil {
		for _, m := range batch {
			m.Ack()
		}
	}
	return r.err
}

func event(version int) events.Event {
	return events.Event{
		ID:               uuid.Must(uuid.NewV7()),
		Type:             "PatientMoved",
		AggregateType:    "Patient",
		AggregateID:      uuid.MustParse("0198c9ab-0000-7000-8000-000000000001"),
		AggregateVersion: version,
		TenantID:         uuid.MustParse("0198c9ab-0000-7000-8000-000000000002"),
		CorrelationID:    uuid.MustParse("0198c9ab-0000-7000-8000-000000000003"),
		CreatedAt:        time.Date(2026, 7, 30, 9, 30, 0, 123_456_000, time.UTC),
		Data:             json.RawMessage(`{"street": "Main", "balance": 9007199254740993.10}`),
	}
}

func TestPublishMany(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	batch := []events.Event{event(1), event(2)}

	require.NoError(t, bus.New(r).PublishMany(t.Context(), batch))

	require.Len(t, r.batches, 1, "one batch")
	require.Len(t, r.batches[0], 2)
	for i, m := range r.batches[0] {
		require.Equal(t, batch[i].ID.String(), m.UUID)
		require.Equal(t, message.Metadata{
			bus.EventTypeKey:     "PatientMoved",
			bus.AggregateIDKey:   "0198c9ab-0000-7000-8000-000000000001",
			bus.CorrelationIDKey: "0198c9ab-0000-7000-8000-000000000003",
			bus.CreatedAtKey:     "2026-07-30T09:30:00.123Z",
		}, m.Metadata)
		e, err := events.Parse(m.Payload)
		require.NoError(t, err)
		require.Equal(t, batch[i].Fingerprint(), e.Fingerprint())
		require.Contains(t, string(m.Payload), "9007199254740993.10")
	}
}

func TestPublishManyIsAllOrNothingWhenAnEventIsInvalid(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	bad := event(2)
	bad.Type = "#"

	err := bus.New(r).PublishMany(t.Context(), []events.Event{event(1), bad})

	invalid, isInvalid := errors.AsType[*events.InvalidError](err)
	require.True(t, isInvalid, "%v", err)
	require.Equal(t, "event_type", invalid.Fields[0].Field)
	require.ErrorContains(t, err, "event 2 of 2")
	require.Empty(t, r.batches)
}

func TestPublishReturnsThePublishersError(t *testing.T) {
	t.Parallel()
	r := &recorder{err: errors.New("the broker is away")}
	require.ErrorIs(t, bus.New(r).Publish(t.Context(), event(1)), r.err)
}

func TestNewMessageOfABodyThatIsNoEvent(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		body     string
		uuid     string
		metadata message.Metadata
	}{
		"empty":    {body: "", metadata: message.Metadata{}},
		"not JSON": {body: "\xff{", metadata: message.Metadata{}},
		"an array": {body: `[{"event_id": "x"}]`, metadata: message.Metadata{}},
		"truncated": {
			body: `{"event_type": "PatientMoved", "aggregate_id": "b`, metadata: message.Metadata{bus.EventTypeKey: "PatientMoved"},
		},
		"some fields of another type": {
			body:     `{"event_id": 1, "event_type": "PatientMoved", "aggregate_id": null, "created_at": {}}`,
			metadata: message.Metadata{bus.EventTypeKey: "PatientMoved"},
		},
		"fields of no interest": {
			body:     `{"event_id": "one", "else": [1, 2, {"event_id": "two"}]}`,
			uuid:     "one",
			metadata: message.Metadata{},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := bus.NewMessage([]byte(test.body))
			require.Equal(t, test.body, string(m.Payload), "the body stays as it is")
			require.Equal(t, test.uuid, m.UUID)
			require.Equal(t, test.metadata, m.Metadata)
		})
	}
}

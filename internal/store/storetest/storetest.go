// Package storetest is the conformance suite of the event stores: each promise of [store.Store] and [store.Tail] as a
// test. A store's own tests run it and add what only that store can be asked.
package storetest

import (
	"context"
	"encoding/json"
	"iter"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// Run holds stores to [store.Store]. Each call of open returns a store on a new, migrated, empty database; the suite
// closes it.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	t.Helper()
	opened := func(t *testing.T) store.Store {
		t.Helper()
		s := open(t)
		t.Cleanup(func() { require.NoError(t, s.Close()) })
		return s
	}
	for name, tests := range map[string]map[string]func(*testing.T, store.Store){
		"Append": appendTests(),
		"Reads":  readTests(),
		"Stream": streamTests(),
		"All":    allTests(),
		"Search": searchTests(),
		"Inbox":  inboxTests(),
		"Lookup": lookupTests(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runAll(t, opened, tests)
		})
	}
}

// runAll runs tests side by side, each with what open returns.
func runAll[S any](t *testing.T, open func(*testing.T) S, tests map[string]func(*testing.T, S)) {
	t.Helper()
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

// Stream makes the events of one aggregate.
type Stream struct {
	AggregateType string
	AggregateID   uuid.UUID
	TenantID      uuid.UUID
	CorrelationID uuid.UUID
	EventType     string
	version       int
}

// NewStream returns the stream of a new aggregate of a new tenant.
func NewStream() *Stream {
	return &Stream{
		AggregateType: "Patient",
		AggregateID:   uuid.New(),
		TenantID:      uuid.New(),
		CorrelationID: events.NewCorrelationID(),
		EventType:     "PatientRegistered",
	}
}

// Next returns the event of the next version.
func (s *Stream) Next() events.Event {
	s.version++
	return s.At(s.version)
}

// At returns a new event of the given version, whichever is next.
func (s *Stream) At(version int) events.Event {
	return events.Event{
		ID:               uuid.Must(uuid.NewV7()),
		Type:             s.EventType,
		AggregateType:    s.AggregateType,
		AggregateID:      s.AggregateID,
		AggregateVersion: version,
		TenantID:         s.TenantID,
		CorrelationID:    s.CorrelationID,
		CreatedAt:        time.Now().UTC().Truncate(time.Millisecond),
		Data:             json.RawMessage(`{"name":"Ana"}`),
	}
}

// Take returns the events of the next n versions.
func (s *Stream) Take(n int) []events.Event {
	taken := make([]events.Event, n)
	for i := range taken {
		taken[i] = s.Next()
	}
	return taken
}

// requireSame compares events as a store must keep them: JSON by its meaning, times by the microsecond.
func requireSame(t *testing.T, want, got []events.Event) {
	t.Helper()
	require.Equal(t, ids(want), ids(got))
	for i := range want {
		require.Equal(t, want[i].Fingerprint(), got[i].Fingerprint(), "%s became %s", want[i].Data, got[i].Data)
		require.JSONEq(t, object(want[i].Metadata), object(got[i].Metadata))
		require.Equal(t, envelope(want[i]), envelope(got[i]))
	}
}

// object is metadata as an object: absent and empty mean the same.
func object(metadata json.RawMessage) string {
	if len(metadata) == 0 {
		return "{}"
	}
	return string(metadata)
}

func envelope(e events.Event) events.Event {
	e.CreatedAt = e.CreatedAt.UTC().Truncate(time.Microsecond)
	e.Data, e.Metadata = nil, nil
	return e
}

func ids(list []events.Event) []uuid.UUID {
	ids := make([]uuid.UUID, len(list))
	for i, e := range list {
		ids[i] = e.ID
	}
	return ids
}

func reversed(list []events.Event) []events.Event {
	r := make([]events.Event, len(list))
	for i, e := range list {
		r[len(list)-1-i] = e
	}
	return r
}

func collect[T any](t *testing.T, seq iter.Seq2[T, error]) []T {
	t.Helper()
	var all []T
	for v, err := range seq {
		require.NoError(t, err)
		all = append(all, v)
	}
	return all
}

// stored is the aggregate's events as the store has them.
func stored(t *testing.T, s store.Store, stream *Stream) []events.Event {
	t.Helper()
	return collect(t, s.Stream(t.Context(), stream.AggregateType, stream.AggregateID, 0))
}

func appendAll(t *testing.T, s store.Store, batch []events.Event) {
	t.Helper()
	require.NoError(t, s.AppendMany(t.Context(), batch))
}

func canceled(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

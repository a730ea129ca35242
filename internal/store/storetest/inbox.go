package storetest

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

func inboxTests() map[string]func(*testing.T, store.Store) {
	return map[string]func(*testing.T, store.Store){
		"an event that nobody has handled":              noneHandled,
		"a record with follow-ups":                      recordsWithFollowUps,
		"a record of an event that is not in the store": recordsForeignEvent,
		"a second record appends nothing":               recordsOnce,
		"a record that fails is none":                   failedRecord,
		"of concurrent records one wins":                concurrentRecords,
		"another event of the same id":                  contradiction,
		"the same event in another form":                sameInOtherForm,
		"a canceled context records nothing":            canceledRecord,
		"old records are pruned":                        pruned,
		"events are parked and wait":                    parks,
		"what was handled is not parked":                parksNoHandled,
	}
}

func requireHandled(t *testing.T, s store.Store, e events.Event, handlers ...string) {
	t.Helper()
	handled, err := s.Handled(t.Context(), e)
	require.NoError(t, err)
	require.ElementsMatch(t, handlers, handled)
}

func noneHandled(t *testing.T, s store.Store) {
	t.Helper()
	requireHandled(t, s, NewStream().Next())
}

func recordsWithFollowUps(t *testing.T, s store.Store) {
	t.Helper()
	cause, one, other := NewStream().Next(), NewStream(), NewStream()
	followUps := []events.Event{one.Next(), one.Next(), other.Next()}

	require.NoError(t, s.Record(t.Context(), "first", cause, followUps))
	require.NoError(t, s.Record(t.Context(), "second", cause, nil))

	requireHandled(t, s, cause, "first", "second")
	requireHandled(t, s, NewStream().Next())
	requireSame(t, followUps[:2], stored(t, s, one))
	requireSame(t, followUps[2:], stored(t, s, other))
}

func recordsForeignEvent(t *testing.T, s store.Store) {
	t.Helper()
	stream := NewStream()
	foreign := stream.Next()

	require.NoError(t, s.Record(t.Context(), "handler", foreign, nil))

	requireHandled(t, s, foreign, "handler")
	require.Empty(t, stored(t, s, stream))
}

func recordsOnce(t *testing.T, s store.Store) {
	t.Helper()
	cause, stream, again := NewStream().Next(), NewStream(), NewStream()
	followUp := stream.Next()
	require.NoError(t, s.Record(t.Context(), "handler", cause, []events.Event{followUp}))

	for _, followUps := range [][]events.Event{nil, {followUp}, {again.Next()}, {stream.At(7)}} {
		require.ErrorIs(t, s.Record(t.Context(), "handler", cause, followUps), store.ErrHandled)
	}

	requireHandled(t, s, cause, "handler")
	requireSame(t, []events.Event{followUp}, stored(t, s, stream))
	require.Empty(t, stored(t, s, again))
}

func failedRecord(t *testing.T, s store.Store) {
	t.Helper()
	cause, stream, other := NewStream().Next(), NewStream(), NewStream()
	appendAll(t, s, stream.Take(2))

	var conflict *store.ConflictError
	require.ErrorAs(t, s.Record(t.Context(), "handler", cause, []events.Event{other.At(1), stream.At(2)}), &conflict)
	var gap *store.GapError
	require.ErrorAs(t, s.Record(t.Context(), "handler", cause, []events.Event{other.At(1), stream.At(4)}), &gap)
	var invalid *events.InvalidError
	require.ErrorAs(t, s.Record(t.Context(), "handler", cause, []events.Event{other.At(1), stream.At(0)}), &invalid)

	requireHandled(t, s, cause)
	require.Empty(t, stored(t, s, other))
	require.NoError(t, s.Record(t.Context(), "handler", cause, stream.Take(1)))
	requireHandled(t, s, cause, "handler")
}

func concurrentRecords(t *testing.T, s store.Store) {
	t.Helper()
	const writers = 8
	cause := NewStream().Next()
	streams := make([]*Stream, writers)
	results := make([]error, writers)
	var done sync.WaitGroup
	for i := range writers {
		streams[i] = NewStream()
		done.Go(func() {
			results[i] = s.Record(t.Context(), "handler", cause, []events.Event{streams[i].Next()})
		})
	}
	done.Wait()

	won := 0
	for i, err := range results {
		if err == nil {
			won++
			require.Len(t, stored(t, s, streams[i]), 1)
			continue
		}
		require.ErrorIs(t, err, store.ErrHandled)
		require.Empty(t, stored(t, s, streams[i]))
	}
	require.Equal(t, 1, won)
}

func contradiction(t *testing.T, s store.Store) {
	t.Helper()
	e := NewStream().Next()
	require.NoError(t, s.Record(t.Context(), "handler", e, nil))
	other := e
	other.Data = json.RawMessage(`{"name":"Bea"}`)

	_, err := s.Handled(t.Context(), other)
	require.ErrorIs(t, err, store.ErrContradiction)
	require.ErrorIs(t, s.Record(t.Context(), "handler", other, nil), store.ErrContradiction)
	requireHandled(t, s, e, "handler")
}

func sameInOtherForm(t *testing.T, s store.Store) {
	t.Helper()
	e := NewStream().Next()
	e.Data = json.RawMessage(`{"a":1.10,"b":2}`)
	require.NoError(t, s.Record(t.Context(), "handler", e, nil))
	other := e
	other.Data = json.RawMessage(`{ "b": 2, "a": 1.1 }`)

	requireHandled(t, s, other, "handler")
	require.ErrorIs(t, s.Record(t.Context(), "handler", other, nil), store.ErrHandled)
}

func canceledRecord(t *testing.T, s store.Store) {
	t.Helper()
	cause, stream := NewStream().Next(), NewStream()

	err := s.Record(canceled(t), "handler", cause, []events.Event{stream.Next()})

	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, store.ErrUnknownOutcome)
	requireHandled(t, s, cause)
	require.Empty(t, stored(t, s, stream))
}

func pruned(t *testing.T, s store.Store) {
	t.Helper()
	stream := NewStream()
	handled := stream.Take(5)
	for _, e := range handled {
		require.NoError(t, s.Record(t.Context(), "handler", e, nil))
	}
	prune := func(age time.Duration, limit int) int {
		t.Helper()
		n, err := s.PruneHandled(t.Context(), age, limit)
		require.NoError(t, err)
		return n
	}
	require.Zero(t, prune(time.Hour, 10), "none is so old")
	require.Equal(t, 2, prune(0, 2))
	requireHandled(t, s, handled[0])
	requireHandled(t, s, handled[1])
	requireHandled(t, s, handled[2], "handler")
	require.Equal(t, 3, prune(0, 10))
	require.Zero(t, prune(0, 10))
}

// requireParked checks behind which event e has to wait, for each handler that it has to wait for.
func requireParked(t *testing.T, s store.Store, e events.Event, want map[string]uuid.UUID) {
	t.Helper()
	parked, err := s.Parked(t.Context(), e, []string{"one", "other", "third"})
	require.NoError(t, err)
	require.Equal(t, want, parked)
}

func parks(t *testing.T, s store.Store) {
	t.Helper()
	none := map[string]uuid.UUID{}
	stream := NewStream()
	e := stream.Take(5)
	requireParked(t, s, e[4], none)
	for _, i := range []int{3, 1, 1} {
		require.NoError(t, s.Park(t.Context(), "one", e[i]))
	}
	require.NoError(t, s.Park(t.Context(), "other", e[2]))
	require.NoError(t, s.Park(t.Context(), "handler of none", e[0]))

	requireParked(t, s, e[1], none)
	requireParked(t, s, e[2], map[string]uuid.UUID{"one": e[1].ID})
	requireParked(t, s, e[4], map[string]uuid.UUID{"one": e[1].ID, "other": e[2].ID})
	requireParked(t, s, NewStream().At(7), none)

	require.NoError(t, s.Record(t.Context(), "other", e[1], nil))
	requireParked(t, s, e[2], map[string]uuid.UUID{"one": e[1].ID})
	require.NoError(t, s.Record(t.Context(), "one", e[1], nil))
	requireParked(t, s, e[4], map[string]uuid.UUID{"one": e[3].ID, "other": e[2].ID})
}

func parksNoHandled(t *testing.T, s store.Store) {
	t.Helper()
	stream := NewStream()
	first, second := stream.Next(), stream.Next()
	require.NoError(t, s.Record(t.Context(), "one", first, nil))
	require.NoError(t, s.Park(t.Context(), "one", first))
	requireParked(t, s, second, map[string]uuid.UUID{})
}

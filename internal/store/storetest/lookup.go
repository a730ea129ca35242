package storetest

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

func lookupTests() map[string]func(*testing.T, store.Store) {
	return map[string]func(*testing.T, store.Store){
		"an event by its id":           byID,
		"who has handled which events": handledOf,
		"where to begin":               beginnings,
		"where to begin meanwhile":     beginningsMeanwhile,
	}
}

func byID(t *testing.T, s store.Store) {
	t.Helper()
	batch := NewStream().Take(2)
	batch[1].CausationID = uuid.NullUUID{UUID: batch[0].ID, Valid: true}
	appendAll(t, s, batch)

	for i, e := range batch {
		found, err := s.ByID(t.Context(), e.ID)
		require.NoError(t, err)
		requireSame(t, batch[i:i+1], []events.Event{found.Event})
		require.Positive(t, found.Position.ID)
	}
	_, err := s.ByID(t.Context(), uuid.New())
	require.ErrorIs(t, err, store.ErrNoEvent)
	_, err = s.ByID(canceled(t), batch[0].ID)
	require.Error(t, err)
	require.NotErrorIs(t, err, store.ErrNoEvent)
}

func handledOf(t *testing.T, s store.Store) {
	t.Helper()
	e := NewStream().Take(4)
	before := time.Now()
	require.NoError(t, s.Record(t.Context(), "second by name", e[0], nil))
	require.NoError(t, s.Record(t.Context(), "first by name", e[0], nil))
	require.NoError(t, s.Record(t.Context(), "handler", e[1], nil))
	require.NoError(t, s.Record(t.Context(), "handler", e[2], nil))

	handled, err := s.HandledOf(t.Context(), []uuid.UUID{e[0].ID, e[1].ID, e[3].ID, e[1].ID})
	require.NoError(t, err)
	require.Len(t, handled, 2, "of those that were asked for, those that were handled")
	require.Len(t, handled[e[1].ID], 1)
	require.Equal(t, "second by name", handled[e[0].ID][0].Handler, "the earliest first")
	require.Equal(t, "first by name", handled[e[0].ID][1].Handler)
	for _, h := range handled[e[0].ID] {
		require.WithinDuration(t, before, h.At, patience)
		require.Equal(t, time.UTC, h.At.Location())
	}

	none, err := s.HandledOf(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, none)
}

func beginnings(t *testing.T, s store.Store) {
	t.Helper()
	now := time.Now().UTC().Truncate(time.Millisecond)
	begin := func(since time.Time) store.Position {
		t.Helper()
		p, err := s.Since(t.Context(), since)
		require.NoError(t, err)
		return p
	}
	end := func() store.Position {
		t.Helper()
		p, err := s.End(t.Context())
		require.NoError(t, err)
		return p
	}
	require.Equal(t, store.Position{}, end())
	require.Equal(t, store.Position{}, begin(now.Add(-time.Hour)))

	// In commit order the second is older than the first, and so is the last.
	batch := NewStream().Take(5)
	for i, age := range []time.Duration{3 * time.Hour, 4 * time.Hour, 2 * time.Hour, time.Hour, 3 * time.Hour} {
		batch[i].CreatedAt = now.Add(-age)
	}
	appendAll(t, s, batch[:2])
	appendAll(t, s, batch[2:])
	awaitAll(t, s, store.Position{}, batch)

	for i, since := range []time.Duration{4 * time.Hour, 3 * time.Hour, 2 * time.Hour, time.Hour, 0} {
		want := batch[[]int{0, 0, 2, 3, len(batch)}[i]:]
		got := withoutPositions(collect(t, s.All(t.Context(), begin(now.Add(-since)))))
		require.Equal(t, ids(want), ids(got), "since %s", since)
	}
	require.Empty(t, collect(t, s.All(t.Context(), end())))
	next := NewStream().Next()
	before := end()
	appendAll(t, s, []events.Event{next})
	awaitAll(t, s, before, []events.Event{next})
}

// beginningsMeanwhile looks for where to begin while the first event since then is being appended.
func beginningsMeanwhile(t *testing.T, s store.Store) {
	t.Helper()
	stream, now := NewStream(), time.Now().UTC().Truncate(time.Millisecond)
	for i := range 100 {
		e := stream.Next()
		e.CreatedAt = now.Add(time.Duration(i) * time.Hour)
		appended := make(chan error, 1)
		go func() { appended <- s.Append(t.Context(), e) }()
		var begin []store.Position
		for range 10 {
			p, err := s.Since(t.Context(), e.CreatedAt)
			require.NoError(t, err)
			begin = append(begin, p)
		}
		require.NoError(t, <-appended)
		found, err := s.ByID(t.Context(), e.ID)
		require.NoError(t, err)
		for _, p := range begin {
			before := p.Transaction < found.Position.Transaction ||
				p.Transaction == found.Position.Transaction && p.ID < found.Position.ID
			require.True(t, before, "event %d at %v would be skipped from %v", i, found.Position, p)
		}
	}
}

// awaitAll waits until these are the events behind a position: what was appended is there once no older transaction runs.
func awaitAll(t *testing.T, s store.Store, after store.Position, want []events.Event) {
	t.Helper()
	var found []store.Recorded
	require.Eventually(t, func() bool {
		found = collect(t, s.All(t.Context(), after))
		return len(found) == len(want)
	}, patience, 10*time.Millisecond)
	requireSame(t, want, withoutPositions(found))
}

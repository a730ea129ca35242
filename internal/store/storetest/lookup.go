package storetest

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

func testLookup(t *testing.T, open func(*testing.T) store.Store) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, store.Store){
		"an event by its id":           byID,
		"who has handled which events": handledOf,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
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

package storetest

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// Migrated is a store with a schema that can be taken back.
type Migrated interface {
	Tailed
	SQL() store.SQL
	Migrate(ctx context.Context) error
	MigrateDown(ctx context.Context) error
}

// RunMigrateDown holds stores to lose nothing when their schema is taken back, version by version. Each call of open
// returns a store on a new, migrated, empty database, and sees to its end.
func RunMigrateDown(t *testing.T, open func(t *testing.T) Migrated) {
	t.Helper()
	runAll(t, open, map[string]func(*testing.T, Migrated){
		"of an empty database":  takesEmptyBack,
		"keeps events":          keepsEvents,
		"keeps what is handled": keepsHandled,
		"keeps dead letters":    keepsLetters,
		"keeps the position":    keepsPosition,
	})
}

// downAndUp takes back as many versions as it can, and returns the error that ended it, after all were applied again.
func downAndUp(t *testing.T, s Migrated) error {
	t.Helper()
	var refused error
	for refused == nil {
		refused = s.MigrateDown(t.Context())
	}
	require.NoError(t, s.Migrate(t.Context()))
	require.NoError(t, s.Ping(t.Context()))
	return refused
}

func takesEmptyBack(t *testing.T, s Migrated) {
	t.Helper()
	Subscribe(t, s, store.TailConfig{BatchSize: 1}).Close(t)

	require.ErrorIs(t, downAndUp(t, s), store.ErrNoSchema)

	require.NoError(t, s.Append(t.Context(), NewStream().Next()))
}

func keepsEvents(t *testing.T, s Migrated) {
	t.Helper()
	stream := NewStream()
	want := stream.Take(2)
	appendAll(t, s, want)

	require.ErrorIs(t, downAndUp(t, s), store.ErrWouldLose)

	requireSame(t, want, stored(t, s, stream))
	require.Equal(t, ids(want), ids(Subscribe(t, s, store.TailConfig{BatchSize: 1}).Take(t, 2)), "none is passed over")
}

func keepsHandled(t *testing.T, s Migrated) {
	t.Helper()
	e := NewStream().Next()
	require.NoError(t, s.Record(t.Context(), "welcome-patient", e, nil))

	require.ErrorIs(t, downAndUp(t, s), store.ErrWouldLose)

	handled, err := s.Handled(t.Context(), e)
	require.NoError(t, err)
	require.Equal(t, []string{"welcome-patient"}, handled)
}

func keepsLetters(t *testing.T, s Migrated) {
	t.Helper()
	body, err := NewStream().Next().MarshalJSON()
	require.NoError(t, err)
	table := deadletter.NewTable(s.SQL())
	require.NoError(t, table.Ingest(t.Context(), []deadletter.Arrival{{Letter: deadletter.Complete(deadletter.Letter{ID: "1", Body: body})}}))

	require.ErrorIs(t, downAndUp(t, s), store.ErrWouldLose)

	got, err := table.Find(t.Context(), "1")
	require.NoError(t, err)
	require.Equal(t, body, got.Body)
}

func keepsPosition(t *testing.T, s Migrated) {
	t.Helper()
	stream := NewStream()
	appendAll(t, s, stream.Take(2))
	tail := Subscribe(t, s, store.TailConfig{BatchSize: 2})
	tail.Take(t, 2)
	tail.Close(t)
	unrelayed := stream.Next()
	require.NoError(t, s.Append(t.Context(), unrelayed))

	require.ErrorIs(t, downAndUp(t, s), store.ErrWouldLose)

	require.Equal(t, ids([]events.Event{unrelayed}), ids(Subscribe(t, s, store.TailConfig{BatchSize: 2}).Take(t, 1)))
}

package deadletter_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/sqlite"
	"github.com/healz/worker/internal/store/storetest"
	"github.com/healz/worker/internal/test/testservers"
)

func TestMain(m *testing.M) { testservers.Main(m) }

// backend is a store with the table.
type backend interface {
	store.Store
	Migrate(ctx context.Context) error
	SQL() store.SQL
	Tail(ctx context.Context, c store.TailConfig) (*store.Tail, error)
}

// onBoth runs a test with the table of a new database on each store.
func onBoth(t *testing.T, test func(t *testing.T, b backend, table *deadletter.Table)) {
	t.Helper()
	for name, open := range map[string]func(t *testing.T) (backend, error){
		"sqlite": func(t *testing.T) (backend, error) {
			t.Helper()
			return sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "healz.db"))
		},
		"postgres": func(t *testing.T) (backend, error) {
			t.Helper()
			return postgres.Open(t.Context(), testservers.Postgres(t), postgres.Options{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := open(t)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, b.Close()) })
			require.NoError(t, b.Migrate(t.Context()))
			test(t, b, deadletter.NewTable(b.SQL()))
		})
	}
}

// letterOf is a letter of an event, as it arrives.
func letterOf(t *testing.T, s *storetest.Stream, handler, reason string) deadletter.Arrival {
	t.Helper()
	body, err := s.Next().MarshalJSON()
	require.NoError(t, err)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return deadletter.Arrival{MessageID: uuid.NewString(), Letter: deadletter.Complete(deadletter.Letter{
		ID: "", Body: body, Source: "healz.events", Headers: map[string]any{"a": "b"},
		Failure: deadletter.Failure{Handler: handler, Reason: reason, Attempts: 3, FirstFailed: at, LastFailed: at},
	})}
}

func all(t *testing.T, table *deadletter.Table, f deadletter.Filter) []deadletter.Letter {
	t.Helper()
	var letters []deadletter.Letter
	for l, err := range table.List(t.Context(), f) {
		require.NoError(t, err)
		letters = append(letters, l)
	}
	return letters
}

func TestSmoke(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		ctx := t.Context()
		stream := storetest.NewStream()
		arrivals := []deadletter.Arrival{
			letterOf(t, stream, "send-invoice", "no address 1"), letterOf(t, stream, "send-invoice", "no address 2"),
			letterOf(t, storetest.NewStream(), "other", "gone"),
		}
		require.NoError(t, table.Ingest(ctx, arrivals))
		require.NoError(t, table.Ingest(ctx, arrivals), "again")
		require.NoError(t, table.Acked(ctx, arrivals))
		letters := all(t, table, deadletter.Filter{})
		require.Len(t, letters, 3)
		groups, err := table.Groups(ctx, deadletter.Filter{})
		require.NoError(t, err)
		require.Len(t, groups, 2)
		n, err := table.Count(ctx)
		require.NoError(t, err)
		require.Equal(t, 3, n)
		l, err := table.Find(ctx, letters[0].ID)
		require.NoError(t, err)
		require.Equal(t, arrivals[0].Body, l.Body)
		require.Equal(t, map[string]any{"a": "b"}, l.Headers)
		failed, err := table.Failed(ctx, []uuid.UUID{l.Event.ID, uuid.New()})
		require.NoError(t, err)
		require.Len(t, failed, 1)
		require.Len(t, all(t, table, deadletter.Filter{
			IDs: []string{l.Event.ID.String()}, Group: l.Group, Type: l.Type, Handler: l.Handler, Tenant: l.Event.TenantID,
			Aggregate: l.Event.AggregateID, Correlation: l.Event.CorrelationID, Since: l.LastFailed, Until: l.LastFailed.Add(time.Second),
		}), 1)

		n, err = table.PutAside(ctx, deadletter.Filter{Handler: "other"}, deadletter.Discarded, audit.Actor{By: "ana", Reason: "why"})
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.Len(t, all(t, table, deadletter.Filter{States: []deadletter.State{deadletter.Discarded}}), 1)
		n, err = table.Restore(ctx, deadletter.Filter{States: []deadletter.State{deadletter.Discarded}}, audit.Actor{By: "ben"})
		require.NoError(t, err)
		require.Equal(t, 1, n)

		edited, err := table.Edit(ctx, letters[2].ID, func(body []byte, check func([]byte) error) ([]byte, error) {
			return deadletter.Patch(body, []byte(`{"event_data":{"x":"y"}}`))
		}, audit.Actor{By: "ana", Reason: "typo"})
		require.NoError(t, err)
		require.Equal(t, letters[2].ID, edited.LetterID)

		ran, cancel := context.WithCancel(ctx)
		defer cancel()
		sent := &recorder{table: table}
		go deadletter.NewReplayer(table, sent, testLogger(t)).Run(ran, nil)
		var last deadletter.Progress
		for p, err := range table.Replay(ctx, deadletter.Filter{}, deadletter.ReplayOptions{MaxFailures: 0, Patience: 5 * time.Second}) {
			require.NoError(t, err)
			last = p
		}
		require.Equal(t, deadletter.Done, last.Step)
		require.Equal(t, deadletter.Counts{Chosen: 2, Sent: 2, Handled: 2}, last.Counts)
		require.Empty(t, all(t, table, deadletter.Filter{}))
		n, err = table.PurgeDecided(ctx, time.Now().Add(time.Hour), 10, nil)
		require.NoError(t, err)
		require.Equal(t, 4, n)
		n, err = table.PurgeWaiting(ctx, audit.Actor{})
		require.NoError(t, err)
		require.Zero(t, n)
	})
}

package sqlite

import (
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/storetest"
)

func TestEventsAreAppendOnly(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s, stream := opened(t, path), storetest.NewStream()
	want := stream.Take(3)
	require.NoError(t, s.AppendMany(t.Context(), want))
	db := rawDB(t, path)
	for _, statement := range []string{
		"UPDATE events SET event_data = '{}'",
		"UPDATE events SET own = 0 WHERE id = 1",
		"UPDATE OR REPLACE events SET aggregate_version = 1",
		"DELETE FROM events",
		"DELETE FROM events WHERE id = 1",
		"INSERT OR REPLACE INTO events (id, event_id, event_type, aggregate_type, aggregate_id, aggregate_version, " +
			"tenant_id, correlation_id, created_at, event_data) SELECT id, event_id, event_type, aggregate_type, " +
			"aggregate_id, aggregate_version, tenant_id, correlation_id, created_at, '{}' FROM events",
	} {
		_, err := db.ExecContext(t.Context(), statement)
		require.ErrorContains(t, err, "events is append-only", statement)
	}
	other := stream.At(2)
	require.ErrorContains(t, insertForeign(t, db, "INSERT OR REPLACE", other), "events is append-only")
	other = storetest.NewStream().Next()
	other.ID = want[0].ID
	require.ErrorContains(t, insertForeign(t, db, "REPLACE", other), "events is append-only")

	page, err := s.ByAggregate(t.Context(), stream.AggregateType, stream.AggregateID, store.Query{})
	require.NoError(t, err)
	require.Equal(t, want, page.Events)
}

func TestForeignRowsThatNobodyCouldReadAreRefused(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	opened(t, path)
	db := rawDB(t, path)
	for name, spoil := range map[string]func(*events.Event){
		"data that is no JSON":       func(e *events.Event) { e.Data = []byte(`{`) },
		"metadata that is no JSON":   func(e *events.Event) { e.Metadata = []byte(`{`) },
		"metadata that is no object": func(e *events.Event) { e.Metadata = []byte(`[]`) },
		"no type":                    func(e *events.Event) { e.Type = "" },
		"a long type":                func(e *events.Event) { e.Type = strings.Repeat("x", events.MaxTypeLength+1) },
		"a long aggregate type": func(e *events.Event) {
			e.AggregateType = strings.Repeat("x", events.MaxAggregateTypeLength+1)
		},
		"version 0": func(e *events.Event) { e.AggregateVersion = 0 },
	} {
		e := storetest.NewStream().Next()
		spoil(&e)
		require.ErrorContains(t, insertForeign(t, db, "INSERT", e), "CHECK constraint failed", name)
	}
	e := storetest.NewStream().Next()
	for _, id := range []string{"", "x", strings.ToUpper(e.ID.String()), strings.ReplaceAll(e.ID.String(), "-", "")} {
		_, err := db.ExecContext(t.Context(), `INSERT INTO events (event_id, event_type, aggregate_type, aggregate_id,
			aggregate_version, tenant_id, correlation_id, event_data) VALUES (?, 'T', 'A', ?, 1, ?, ?, '1')`,
			id, e.AggregateID.String(), e.TenantID.String(), e.CorrelationID.String())
		require.ErrorContains(t, err, "CHECK constraint failed", id)
	}
	requireIntact(t, path, 0)
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	t.Run("before it there is no schema", func(t *testing.T) {
		t.Parallel()
		s, err := Open(t.Context(), newPath(t))
		require.NoError(t, err)
		defer func() { require.NoError(t, s.Close()) }()
		stream := storetest.NewStream()

		require.ErrorIs(t, s.Ping(t.Context()), store.ErrNoSchema)
		require.ErrorIs(t, s.Append(t.Context(), stream.Next()), store.ErrNoSchema)
		_, err = s.ByTenant(t.Context(), stream.TenantID, store.Query{})
		require.ErrorIs(t, err, store.ErrNoSchema)
		_, err = s.Tail(t.Context(), store.TailConfig{BatchSize: 1})
		require.ErrorIs(t, err, store.ErrNoSchema)
		require.ErrorIs(t, s.MigrateDown(t.Context()), store.ErrNoSchema)
		require.ErrorIs(t, s.Ping(t.Context()), store.ErrNoSchema)
		requireApplied(t, s, false)

		require.NoError(t, s.Migrate(t.Context()))
		require.NoError(t, s.Ping(t.Context()))
		require.NoError(t, s.Append(t.Context(), stream.At(1)))
		requireApplied(t, s, true)
	})
	t.Run("up, up, down, up", func(t *testing.T) {
		t.Parallel()
		s := opened(t, newPath(t))
		require.NoError(t, s.Migrate(t.Context()))
		require.NoError(t, s.MigrateDown(t.Context()))
		require.ErrorIs(t, s.Ping(t.Context()), store.ErrNoSchema)
		require.NoError(t, s.Migrate(t.Context()))
		require.NoError(t, s.Append(t.Context(), storetest.NewStream().Next()))
	})
	t.Run("down never forgets what is parked", func(t *testing.T) {
		t.Parallel()
		s := opened(t, newPath(t))
		require.NoError(t, s.Park(t.Context(), "handler", storetest.NewStream().Next()))
		var err error
		for err == nil {
			err = s.MigrateDown(t.Context())
		}
		require.ErrorIs(t, err, store.ErrWouldLose)
	})
	t.Run("only a new file is given a schema by Create", func(t *testing.T) {
		t.Parallel()
		s, err := Open(t.Context(), newPath(t))
		require.NoError(t, err)
		defer func() { require.NoError(t, s.Close()) }()
		requireApplied(t, s, false) // this makes the table of versions
		require.NoError(t, s.Create(t.Context()))
		require.NoError(t, s.Ping(t.Context()))
		require.NoError(t, s.MigrateDown(t.Context()))
		require.NoError(t, s.Create(t.Context()))
		require.ErrorIs(t, s.Ping(t.Context()), store.ErrNoSchema)
	})
	t.Run("a table of another program", func(t *testing.T) {
		t.Parallel()
		path := newPath(t)
		s, err := Open(t.Context(), path)
		require.NoError(t, err)
		defer func() { require.NoError(t, s.Close()) }()
		_, err = rawDB(t, path).ExecContext(t.Context(), "CREATE TABLE events (at text)")
		require.NoError(t, err)
		require.ErrorIs(t, s.Migrate(t.Context()), store.ErrForeignTable)
		require.ErrorIs(t, s.Create(t.Context()), store.ErrForeignTable)
		require.ErrorIs(t, s.Append(t.Context(), storetest.NewStream().Next()), store.ErrNoSchema)
	})
	t.Run("a newer schema", func(t *testing.T) {
		t.Parallel()
		path := newPath(t)
		s := opened(t, path)
		_, err := rawDB(t, path).ExecContext(t.Context(),
			"INSERT INTO worker_migrations (version_id, is_applied) VALUES (99999, 1)")
		require.NoError(t, err)
		require.NoError(t, s.Ping(t.Context()))
		require.NoError(t, s.Migrate(t.Context()))
		require.NoError(t, s.Create(t.Context()))
		require.ErrorIs(t, s.MigrateDown(t.Context()), store.ErrNewerSchema)
		_, err = rawDB(t, path).ExecContext(t.Context(), "PRAGMA user_version = 99998")
		require.NoError(t, err)
		require.ErrorIs(t, s.Ping(t.Context()), store.ErrNewerSchema)
		require.ErrorIs(t, s.Migrate(t.Context()), store.ErrNewerSchema)
		require.ErrorIs(t, s.Create(t.Context()), store.ErrNewerSchema)
	})
}

func requireApplied(t *testing.T, s *Store, want bool) {
	t.Helper()
	list, err := s.MigrationStatus(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, list)
	require.Equal(t, "events", list[0].Name)
	require.Equal(t, want, !list[0].AppliedAt.IsZero())
}

// TestReadsFollowIndexes holds the reads to cost no more than the rows that they return, however many there are.
func TestReadsFollowIndexes(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	opened(t, path)
	db := rawDB(t, path)
	id := uuid.NewString()
	for name, test := range map[string]struct {
		query string
		args  []any
		plan  string
	}{
		"by aggregate": {
			selectByAggregate,
			[]any{"A", id, 1, 2, 10, 0},
			"SEARCH events USING INDEX idx_events_aggregate (aggregate_type=? AND aggregate_id=? AND aggregate_version>?)",
		},
		"by correlation": {
			selectByCorrelation,
			[]any{id, 1, 2, 10, 0},
			"SEARCH events USING INDEX idx_events_correlation (correlation_id=? AND created_at>?)",
		},
		"by type": {
			selectByType,
			[]any{"T", 1, 2, 10, 0},
			"SEARCH events USING INDEX idx_events_type (event_type=? AND created_at<?)",
		},
		"by tenant": {
			selectByTenant,
			[]any{id, 1, 2, 10, 0},
			"SEARCH events USING INDEX idx_events_tenant (tenant_id=? AND created_at<?)",
		},
		"all":     {selectAll, []any{1, 10, 0}, "SEARCH events USING INTEGER PRIMARY KEY (rowid>?)"},
		"last id": {selectLastID, nil, "SEARCH events"},
		"head": {
			selectHead,
			[]any{id},
			"SEARCH events USING INDEX events_aggregate_version_unique (aggregate_id=?)",
		},
		"version": {
			selectVersion,
			[]any{"A", id},
			"SEARCH events USING COVERING INDEX idx_events_aggregate (aggregate_type=? AND aggregate_id=?)",
		},
		"handled": {selectHandled, []any{id}, "SEARCH handled USING PRIMARY KEY (event_id=?)"},
	} {
		rows, err := db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+test.query, test.args...)
		require.NoError(t, err, name)
		var plan []string
		for rows.Next() {
			var detail string
			var ignored int
			require.NoError(t, rows.Scan(&ignored, &ignored, &ignored, &detail))
			plan = append(plan, detail)
		}
		require.NoError(t, rows.Err())
		require.NoError(t, rows.Close())
		require.Equal(t, []string{test.plan}, plan, name)
	}
}

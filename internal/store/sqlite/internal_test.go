package sqlite

import (
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
)

func newPath(tb testing.TB) string {
	tb.Helper()
	return filepath.Join(tb.TempDir(), "events.db")
}

// migrated returns a store with its schema, to be closed by the caller.
func migrated(tb testing.TB, path string) *Store {
	tb.Helper()
	s, err := Open(tb.Context(), path)
	require.NoError(tb, err)
	require.NoError(tb, s.Migrate(tb.Context()))
	return s
}

// opened is migrated, and closes the store at the end of the test.
func opened(tb testing.TB, path string) *Store {
	tb.Helper()
	s := migrated(tb, path)
	tb.Cleanup(func() { require.NoError(tb, s.Close()) })
	return s
}

// rawDB is the database as another program has it open.
func rawDB(tb testing.TB, path string) *sql.DB {
	tb.Helper()
	db, err := sql.Open("sqlite", (&Store{path: path, busyTimeout: busyTimeout}).dsn(writing))
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, db.Close()) })
	return db
}

// insertForeign inserts as a program does that knows the contract's columns and nothing of the worker.
func insertForeign(tb testing.TB, db *sql.DB, verb string, e events.Event) error {
	tb.Helper()
	var metadata any
	if len(e.Metadata) > 0 {
		metadata = string(e.Metadata)
	}
	_, err := db.ExecContext(tb.Context(), verb+` INTO events (event_id, event_type, aggregate_type, aggregate_id,
		aggregate_version, tenant_id, clinic_id, causation_id, correlation_id, user_id, created_at, event_data, metadata)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		e.ID.String(), e.Type, e.AggregateType, e.AggregateID.String(), e.AggregateVersion, e.TenantID.String(),
		e.ClinicID, e.CausationID, e.CorrelationID.String(), e.UserID, e.CreatedAt.UnixMicro(), string(e.Data), metadata)
	return err
}

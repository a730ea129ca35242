package sqlite_test

import (
	"database/sql"
	"net/url"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/sqlite"
	"github.com/healz/worker/internal/store/storetest"
)

func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store {
		t.Helper()
		return openUnclosed(t, migrated(t))
	})
}

func TestMigrateDown(t *testing.T) {
	t.Parallel()
	storetest.RunMigrateDown(t, func(t *testing.T) storetest.Migrated {
		t.Helper()
		return open(t, migrated(t))
	})
}

func TestTail(t *testing.T) {
	t.Parallel()
	storetest.RunTail(t, func(t *testing.T) storetest.Database {
		t.Helper()
		path := migrated(t)
		return storetest.Database{
			Open: func(t *testing.T) storetest.Tailed {
				t.Helper()
				return openUnclosed(t, path)
			},
			Insert: func(t *testing.T, e events.Event) {
				t.Helper()
				insert(t, connect(t, path), e)
			},
			Execute: func(t *testing.T, statement string) {
				t.Helper()
				_, err := connect(t, path).ExecContext(t.Context(), statement)
				require.NoError(t, err)
			},
		}
	})
}

// A damaged row holds back what follows it, not what is before it, and the error names it without its data.
func TestRowThatCannotBeRelayed(t *testing.T) {
	t.Parallel()
	for name, values := range map[string]string{
		"data that is no JSON": `hex(randomblob(16)), 'secret'`,
		"an id that is none":   `'secret', '{}'`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := migrated(t)
			s, db := openUnclosed(t, path), connect(t, path)
			t.Cleanup(func() { require.NoError(t, s.Close()) })
			want := storetest.NewStream().Take(2)
			require.NoError(t, s.AppendMany(t.Context(), want))
			_, err := db.ExecContext(t.Context(), `INSERT INTO events (own, aggregate_id, aggregate_version, event_type,
				aggregate_type, tenant_id, correlation_id, event_id, event_data) SELECT 1, aggregate_id, 3, event_type,
				aggregate_type, tenant_id, correlation_id, `+values+` FROM events LIMIT 1`)
			require.NoError(t, err)
			tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 10})
			require.Len(t, tail.Take(t, 2), 2)
			_, err = tail.Next(t.Context(), nil)
			require.ErrorContains(t, err, "row 3 of events")
			require.NotContains(t, err.Error(), "secret")
		})
	}
}

// migrated returns the path of an empty database that has the schema.
func migrated(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "events.db")
	s := openUnclosed(tb, path)
	require.NoError(tb, s.Migrate(tb.Context()))
	require.NoError(tb, s.Close())
	return path
}

func open(tb testing.TB, path string) *sqlite.Store {
	tb.Helper()
	s := openUnclosed(tb, path)
	tb.Cleanup(func() { require.NoError(tb, s.Close()) })
	return s
}

func openUnclosed(tb testing.TB, path string) *sqlite.Store {
	tb.Helper()
	s, err := sqlite.Open(tb.Context(), path)
	require.NoError(tb, err)
	return s
}

// connect opens the file as a program does that knows nothing of the worker.
func connect(tb testing.TB, path string) *sql.DB {
	tb.Helper()
	dsn := url.URL{Scheme: "file", Path: path, RawQuery: "_busy_timeout=10000"}
	db, err := sql.Open("sqlite", dsn.String())
	require.NoError(tb, err)
	db.SetMaxOpenConns(1)
	tb.Cleanup(func() { require.NoError(tb, db.Close()) })
	return db
}

const (
	contractColumns = `event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id,
		causation_id, correlation_id, user_id, created_at, event_data, metadata`
	placeholders = `?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?`
	insertSQL    = `INSERT INTO events (` + contractColumns + `) VALUES (` + placeholders + `)`
)

func insert(tb testing.TB, db *sql.DB, e events.Event) {
	tb.Helper()
	_, err := db.ExecContext(tb.Context(), insertSQL, row(e)...)
	require.NoError(tb, err)
}

// row is the event in the contract's columns.
func row(e events.Event) []any {
	var metadata any
	if len(e.Metadata) > 0 {
		metadata = string(e.Metadata)
	}
	return []any{
		e.ID.String(), e.Type, e.AggregateType, e.AggregateID.String(), e.AggregateVersion, e.TenantID.String(),
		e.ClinicID, e.CausationID, e.CorrelationID.String(), e.UserID, e.CreatedAt.UnixMicro(), string(e.Data), metadata,
	}
}

func TestCloseWaitsForAppends(t *testing.T) {
	t.Parallel()
	path := migrated(t)
	s, stream := openUnclosed(t, path), storetest.NewStream()
	began := make(chan struct{})
	var appending sync.WaitGroup
	var failed error
	appending.Go(func() {
		failed = s.AppendMany(t.Context(), stream.Take(100))
		close(began)
		for failed == nil {
			failed = s.AppendMany(t.Context(), stream.Take(100))
		}
	})
	<-began

	require.NoError(t, s.Close())
	require.NoFileExists(t, path+"-wal", "nobody has the file open")
	appending.Wait()
	require.ErrorContains(t, failed, "database is closed")
}

// The test runs alone, as it measures the process.
//
//nolint:paralleltest // see above
func TestMemoryOfReadingLargeEvents(t *testing.T) {
	storetest.RunMemory(t, open(t, migrated(t)))
}

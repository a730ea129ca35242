package postgres_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
	"github.com/healz/worker/internal/test/testservers"
)

func TestMain(m *testing.M) { testservers.Main(m) }

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
		url := migrated(t)
		return storetest.Database{
			Open: func(t *testing.T) storetest.Tailed {
				t.Helper()
				return openUnclosed(t, url)
			},
			Insert: func(t *testing.T, e events.Event) {
				t.Helper()
				insert(t, connect(t, url), e)
			},
			Execute: func(t *testing.T, statement string) {
				t.Helper()
				_, err := connect(t, url).Exec(t.Context(), statement)
				require.NoError(t, err)
			},
		}
	})
}

// migrated returns the URL of an empty database that has the schema.
func migrated(tb testing.TB) string {
	tb.Helper()
	url := testservers.Postgres(tb)
	s, err := postgres.Open(tb.Context(), url, postgres.Options{MaxConns: 1})
	require.NoError(tb, err)
	require.NoError(tb, s.Migrate(tb.Context()))
	require.NoError(tb, s.Close())
	return url
}

func openUnclosed(tb testing.TB, url string) *postgres.Store {
	tb.Helper()
	s, err := postgres.Open(tb.Context(), url, postgres.Options{MaxConns: 10})
	require.NoError(tb, err)
	return s
}

func open(tb testing.TB, url string) *postgres.Store {
	tb.Helper()
	s := openUnclosed(tb, url)
	tb.Cleanup(func() { require.NoError(tb, s.Close()) })
	return s
}

// The test runs alone, as it measures the process.
//
//nolint:paralleltest // see above
func TestMemoryOfReadingLargeEvents(t *testing.T) {
	storetest.RunMemory(t, open(t, migrated(t)))
}

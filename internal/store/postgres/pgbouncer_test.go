package postgres_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/test/testservers"
)

// Behind a pooler the lock of the migrations stays in no session that others get. One process migrates, others wait.
func TestMigrateThroughPGBouncer(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"session", "transaction"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			direct := testservers.Postgres(t)
			url := testservers.PGBouncer(t, direct, mode)
			const migrators = 4
			failures := make(chan error, migrators)
			for range migrators {
				s := open(t, url)
				go func() { failures <- s.Migrate(t.Context()) }()
			}
			for range migrators {
				require.NoError(t, <-failures)
			}
			s := open(t, url)
			require.NoError(t, s.Ping(t.Context()))
			require.NoError(t, s.MigrateDown(t.Context()))
			var locks int
			require.NoError(t, connect(t, direct).QueryRow(t.Context(), `
				SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
					AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&locks))
			require.Zero(t, locks)
		})
	}
}

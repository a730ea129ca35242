package postgres_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pressly/goose/v3/lock"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
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

// Who waits for another process that migrates has no transaction meanwhile: to build an index concurrently is to wait for the
// end of those that have a snapshot at that moment.
func TestWhoWaitsToMigrateHasNoTransaction(t *testing.T) {
	t.Parallel()
	url := testservers.Postgres(t)
	other, err := connect(t, url).Begin(t.Context())
	require.NoError(t, err)
	_, err = other.Exec(t.Context(), "SELECT pg_advisory_xact_lock($1)", lock.DefaultLockID)
	require.NoError(t, err)
	s := open(t, url)
	migrated := make(chan error, 1)
	go func() { migrated <- s.Migrate(t.Context()) }()

	observer := connect(t, url)
	require.Eventually(t, func() (waits bool) {
		require.NoError(t, observer.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> $1 AND query = 'rollback' AND state = 'idle')`,
			other.Conn().PgConn().PID()).Scan(&waits))
		return waits
	}, 30*time.Second, 5*time.Millisecond, "it has tried, and ended that")
	require.NoError(t, other.Rollback(t.Context()))
	require.NoError(t, <-migrated)
}

// A pool of others may lead to a pooler: what the store does beside it works there, and modes that do not are refused.
func TestAPoolThroughPGBouncer(t *testing.T) {
	t.Parallel()
	url := testservers.PGBouncer(t, testservers.Postgres(t), "transaction")
	pool := newPool(t, url, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeDescribeExec })
	_, err := postgres.Open(t.Context(), "", postgres.Options{Pool: pool})
	require.ErrorContains(t, err, "must not be describe_exec")

	pool = newPool(t, url, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe })
	s, stream := openOn(t, pool), storetest.NewStream()
	require.NoError(t, s.Migrate(t.Context()))
	want := stream.Take(2)
	require.NoError(t, s.Append(t.Context(), want[0]))
	require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		return s.AppendTx(t.Context(), tx, want[1:])
	}))
	requireIDs(t, want, storetest.Subscribe(t, s, store.TailConfig{BatchSize: 10}).Take(t, 2))
}

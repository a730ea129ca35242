package postgres_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
	"github.com/healz/worker/internal/test/testservers"
)

// longestWait is what a writer may wait for a migration. Measured are 0.01 to 0.31 s, with the lock_timeout of 0.3 s. With
// migrations in transactions and without it, 2.8 to 7.6 s: the 3 s of the open transaction, and the statements behind it.
const longestWait = time.Second

// Writers go on while their table is migrated, also while another transaction keeps the migration from its locks.
func TestWritersGoOnDuringMigrations(t *testing.T) {
	t.Parallel()
	const row = `INSERT INTO events (event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, correlation_id, event_data)
		SELECT 'T', 'A', gen_random_uuid(), 1, gen_random_uuid(), gen_random_uuid(), '{}'`
	for name, test := range map[string]struct {
		table   string
		version int // before it; 0: another service's table
		fill    string
		write   string
		ahead   int64 // of a restored dump
	}{
		"adoption": {"events", 0, row + " FROM generate_series(1, 5000)", row, 0},
		"inbox": {
			"handled", 4,
			"INSERT INTO handled SELECT gen_random_uuid(), 'h', '', now() FROM generate_series(1, 5000)",
			"INSERT INTO handled SELECT gen_random_uuid(), 'h', ''", 0,
		},
		"dead letters": {"dead_letters", 10, letters + " FROM generate_series(1, 1000)", letters, 0},
		"restored":     {"events", 12, row + " FROM generate_series(1, 500)", row, farAhead},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var url string
			if test.version == 0 {
				url = foreign(t, nil)
			} else {
				url = downTo(t, test.version)
			}
			conn := connect(t, url)
			for range 10 { // a long transaction would stop the relays of all tests
				_, err := conn.Exec(t.Context(), test.fill)
				require.NoError(t, err)
			}
			if test.ahead > 0 {
				restore(t, conn, test.ahead)
			}
			const held = 3 * time.Second
			holder := connect(t, withParameter(t, url, "idle_in_transaction_session_timeout", held.String()))
			locked := time.Now()
			_, err := holder.Exec(t.Context(), "BEGIN; LOCK TABLE "+test.table+" IN ROW EXCLUSIVE MODE")
			require.NoError(t, err)
			s := open(t, url)
			migrated := make(chan error)
			go func() {
				if test.ahead == 0 {
					migrated <- s.Migrate(t.Context())
					return
				}
				done, err := s.MigrateRestored(t.Context())
				if err == nil && done.Events < 5000 {
					err = fmt.Errorf("it did nothing: %+v", done)
				}
				migrated <- err
			}()

			longest, written, began := time.Duration(0), 0, time.Now()
			for done := false; !done; written++ {
				sent := time.Now()
				_, err := conn.Exec(t.Context(), test.write)
				require.NoError(t, err)
				waited := time.Since(sent)
				if test.ahead > 0 { // then the rows are rewritten, for which writers wait
					waited = min(waited, locked.Add(held).Sub(sent))
				}
				longest = max(longest, waited)
				select {
				case err := <-migrated:
					require.NoError(t, err)
					done = true
				case <-time.After(2 * time.Millisecond):
				}
			}

			t.Logf("%d rows written in %s, the longest wait was %s", written, time.Since(began), longest)
			require.Greater(t, time.Since(began), 2*time.Second, "the migration waits for the open transaction")
			require.Less(t, longest, longestWait)
			require.NoError(t, s.Ping(t.Context()))
			requireValidIndexes(t, conn)
		})
	}
}

const letters = `INSERT INTO dead_letters (id, identity, arrival, state, event_type, aggregate_type, aggregate_version, handler, group_id,
			reason, attempts, first_failed_at, last_failed_at, replays, replay_id, source, body, bytes)
		SELECT gen_random_uuid(), gen_random_uuid(), '', 'waiting', 'T', 'A', 1, 'h', 'g', '', 1, now(), now(), 0, '', '', '', 0`

// downTo returns the URL of an empty database that has an older version of the schema.
func downTo(t *testing.T, version int) string {
	t.Helper()
	url := migrated(t)
	s := open(t, url)
	versions, err := s.MigrationStatus(t.Context())
	require.NoError(t, err)
	for range len(versions) - version {
		require.NoError(t, s.MigrateDown(t.Context()))
	}
	return url
}

func requireValidIndexes(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	var invalid int
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_index WHERE NOT indisvalid").Scan(&invalid))
	require.Zero(t, invalid)
}

// The error names the session that holds a lock, and not its statement. The next call goes on.
func TestMigrationNamesWhoBlocksIt(t *testing.T) {
	t.Parallel()
	url := foreign(t, storetest.NewStream().Take(2))
	holder := connect(t, withParameter(t, url, "application_name", "another-service"))
	_, err := holder.Exec(t.Context(), "BEGIN; SELECT 'Ana' FROM events")
	require.NoError(t, err)
	s := open(t, url)

	err = s.Migrate(t.Context())

	require.ErrorIs(t, err, store.ErrUnavailable)
	require.ErrorContains(t, err, fmt.Sprintf("pid %d (another-service), idle in transaction, in a transaction since 20", holder.PgConn().PID()))
	require.NotContains(t, err.Error(), "Ana")
	_, err = holder.Exec(t.Context(), "COMMIT")
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))

	require.NoError(t, s.AppendMany(t.Context(), storetest.NewStream().Take(2)))
	restore(t, connect(t, url), farAhead)
	_, err = holder.Exec(t.Context(), "BEGIN; SELECT FROM events")
	require.NoError(t, err)
	_, err = s.MigrateRestored(t.Context())
	require.ErrorIs(t, err, store.ErrUnavailable)
	require.ErrorContains(t, err, "(another-service), idle in transaction")
	_, err = holder.Exec(t.Context(), "COMMIT; BEGIN; SELECT FROM relay_position")
	require.NoError(t, err)
	done, err := s.MigrateRestored(t.Context())
	require.NoError(t, err)
	require.Equal(t, 4, done.Events)
	_, err = holder.Exec(t.Context(), "COMMIT; BEGIN; SELECT FROM events")
	require.NoError(t, err)
	done, err = s.MigrateRestored(t.Context())
	require.NoError(t, err)
	require.Zero(t, done, "nothing to do, which needs no lock")
}

// An automatic vacuum, which would take minutes here, is ended by migrations.
func TestMigrationsEndAVacuum(t *testing.T) {
	t.Parallel()
	server, err := testservers.StartPostgres(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop()) })
	admin := connect(t, server.URL())
	const fill = `INSERT INTO events (event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, correlation_id, event_data)
		SELECT 'T', 'A', gen_random_uuid(), 1, gen_random_uuid(), gen_random_uuid(), '{}' FROM generate_series(1, 20000)`
	for _, statement := range []string{
		"ALTER SYSTEM SET autovacuum_naptime = '1s'", "SELECT pg_reload_conf()", foreignSQL,
		`ALTER TABLE events SET (autovacuum_vacuum_insert_threshold = 0, autovacuum_vacuum_insert_scale_factor = 0,
			autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)`,
		fill,
	} {
		_, err := admin.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
	requireVacuum := func() {
		require.Eventually(t, func() bool {
			var runs bool
			require.NoError(t, admin.QueryRow(t.Context(),
				"SELECT EXISTS (SELECT FROM pg_stat_progress_vacuum WHERE relid = 'events'::regclass)").Scan(&runs))
			return runs
		}, time.Minute, 10*time.Millisecond)
	}
	s := open(t, server.URL())

	requireVacuum()
	require.NoError(t, s.Migrate(t.Context()))

	_, err = admin.Exec(t.Context(), fill)
	require.NoError(t, err)
	restore(t, admin, farAhead)
	requireVacuum()
	done, err := s.MigrateRestored(t.Context())
	require.NoError(t, err)
	require.Equal(t, 40000, done.Events)
}

// An index whose build was interrupted is invalid. It does not keep the table from being adopted, and is built anew.
func TestInterruptedAdoptionIsResumed(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]string{
		"of an index that is missing": "",
		"of the index on versions":    "DROP INDEX events_aggregate_version_unique",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stream := storetest.NewStream()
			url := foreign(t, stream.Take(2))
			conn := connect(t, url)
			_, err := conn.Exec(t.Context(), change)
			require.NoError(t, err)
			holder := connect(t, url)
			_, err = holder.Exec(t.Context(), "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1") // the build ends after its snapshot
			require.NoError(t, err)
			s := open(t, url)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			interrupted := make(chan error)
			go func() { interrupted <- s.Migrate(ctx) }()
			var invalid string
			require.Eventually(t, func() bool {
				return conn.QueryRow(t.Context(), "SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid AND indisready").Scan(&invalid) == nil
			}, 30*time.Second, 10*time.Millisecond)
			cancel()
			require.ErrorIs(t, <-interrupted, context.Canceled)
			require.ErrorIs(t, s.Ping(t.Context()), store.ErrNoSchema)
			_, err = holder.Exec(t.Context(), "COMMIT")
			require.NoError(t, err)
			require.NoError(t, postgres.CheckAdoption(t.Context(), conn))

			require.NoError(t, s.Migrate(t.Context()))

			requireValidIndexes(t, conn)
			insert(t, conn, stream.Next())
			require.ErrorContains(t, tryInsert(t, conn, stream.At(1)), "events_aggregate_version_unique")
		})
	}
}

// tryInsert inserts another event of a version that is taken.
func tryInsert(t *testing.T, conn *pgx.Conn, e events.Event) error {
	t.Helper()
	_, err := conn.Exec(t.Context(), insertSQL, insertArgs(e)...)
	return err
}

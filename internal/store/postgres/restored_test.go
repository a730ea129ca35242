package postgres_test

import (
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/storetest"
)

// restore makes a database as a restored dump is: its rows are written by a transaction of this cluster, and name those
// of a cluster whose ids are greater by ahead.
func restore(t *testing.T, conn *pgx.Conn, ahead int64) {
	t.Helper()
	_, err := conn.Exec(t.Context(), `
		SET session_replication_role = replica;
		CREATE OR REPLACE FUNCTION pg_temp.shifted(id xid8) RETURNS text LANGUAGE sql AS 'SELECT (id::text::bigint + `+strconv.FormatInt(ahead, 10)+`)::text';
		UPDATE events SET transaction_id = pg_temp.shifted(transaction_id)::xid8 WHERE transaction_id > '2';
		UPDATE relay_position SET transaction_id = pg_temp.shifted(transaction_id)::xid8 WHERE transaction_id > '2';
		UPDATE relay_position SET passed_over = concat(pg_temp.shifted(pg_snapshot_xmin(passed_over)), ':',
			pg_temp.shifted(pg_snapshot_xmax(passed_over)), ':',
			(SELECT string_agg(pg_temp.shifted(x), ',' ORDER BY x) FROM pg_snapshot_xip(passed_over) AS x))::pg_snapshot WHERE passed_over IS NOT NULL;
		SET session_replication_role = DEFAULT`)
	require.NoError(t, err)
}

const farAhead = 1_000_000_000_000

// The relay goes on exactly where it was: with what it had not relayed, and then with what was appended since the restore.
func TestRestoredDatabaseSkipsNothing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		start store.Start
		begun bool // the relay has relayed, and the batch before that is what was passed over or relayed
	}{
		"of a relay that began at the first event": {store.StartAuto, true},
		"of a relay that began at the end":         {store.StartEnd, true},
		"of a relay that has never run":            {store.StartAuto, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stream, other, late := storetest.NewStream(), storetest.NewStream(), storetest.NewStream()
			adopted := stream.Take(2)
			url := foreign(t, adopted)
			s, conn := open(t, url), connect(t, url)
			require.NoError(t, s.Migrate(t.Context()))
			config := store.TailConfig{BatchSize: 100, Start: test.start}
			open, err := connect(t, url).Begin(t.Context()) // while the relay begins
			require.NoError(t, err)
			insert(t, open, late.Next())
			want := stream.Take(3)
			require.NoError(t, s.AppendMany(t.Context(), want))
			if test.begun {
				tail := storetest.Subscribe(t, s, config)
				require.NoError(t, open.Commit(t.Context()))
				if test.start == store.StartEnd {
					tail.Take(t, 1)
				} else {
					tail.Take(t, 4)
				}
				tail.Close(t)
				want = nil
			} else {
				require.NoError(t, open.Rollback(t.Context()))
			}
			for range 2 { // not relayed
				want = append(want, stream.Next(), other.Next())
				require.NoError(t, s.AppendMany(t.Context(), want[len(want)-2:]))
			}
			restored := len(want)

			restore(t, conn, farAhead)
			_, err = s.Tail(t.Context(), config)
			require.ErrorIs(t, err, store.ErrRestored)
			want = append(want, stream.Next(), stream.Next(), other.Next())
			insert(t, conn, want[restored])
			tx, err := conn.Begin(t.Context())
			require.NoError(t, err)
			savepoint, err := tx.Begin(t.Context())
			require.NoError(t, err)
			insert(t, savepoint, want[restored+1])
			require.NoError(t, savepoint.Commit(t.Context()))
			require.NoError(t, tx.Commit(t.Context()))
			require.NoError(t, s.Append(t.Context(), want[restored+2]))
			var count int
			require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM events").Scan(&count))

			done, err := s.MigrateRestored(t.Context())
			require.NoError(t, err)
			require.Equal(t, store.Renumbered{Events: count - 3, Waiting: restored, New: 3}, done)

			tail := storetest.Subscribe(t, s, config)
			requireIDs(t, want, tail.Take(t, len(want)))
			tail.Silent(t)
			require.Len(t, readAll(t, s), count)
			want = append(want[:0], stream.Next(), stream.Next())
			require.NoError(t, s.Append(t.Context(), want[0]))
			insert(t, conn, want[1])
			requireIDs(t, want, tail.Take(t, 2))
			_, err = conn.Exec(t.Context(), "DELETE FROM events")
			require.ErrorContains(t, err, "append-only")

			done, err = s.MigrateRestored(t.Context())
			require.NoError(t, err)
			require.Zero(t, done, "the second time")
			tail.Silent(t)

			restore(t, conn, 2*farAhead) // the dump of the dump
			want = append(want[:0], stream.Next())
			insert(t, conn, want[0])
			done, err = s.MigrateRestored(t.Context())
			require.NoError(t, err)
			require.Equal(t, store.Renumbered{Events: count + 2, New: 1}, done)
		})
	}
}

// A relay that runs while the database is restored under it says so, moves nothing, and goes on when that is mended.
func TestRestoredUnderARunningRelay(t *testing.T) {
	t.Parallel()
	url := migrated(t)
	s, stream, conn := open(t, url), storetest.NewStream(), connect(t, url)
	tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 1})
	want := stream.Take(3)
	require.NoError(t, s.AppendMany(t.Context(), want[:2]))
	requireIDs(t, want[:1], tail.Receive(t))
	restore(t, conn, farAhead)

	_, err := tail.Next(t.Context(), nil)
	require.ErrorIs(t, err, store.ErrRestored)
	_, err = tail.Backlog(t.Context())
	require.ErrorIs(t, err, store.ErrRestored)
	_, err = s.End(t.Context())
	require.ErrorIs(t, err, store.ErrRestored)

	done, err := s.MigrateRestored(t.Context())
	require.NoError(t, err)
	require.Equal(t, store.Renumbered{Events: 2, Waiting: 2}, done)
	require.ErrorIs(t, tail.TryAck(t), store.ErrNotLeader, "the position is one of the other cluster")
	require.NoError(t, s.Append(t.Context(), want[2]))
	backlog, err := tail.Backlog(t.Context())
	require.NoError(t, err)
	require.Equal(t, 3, backlog.Events)
	requireIDs(t, want, storetest.Subscribe(t, s, store.TailConfig{BatchSize: 10}).Take(t, 3))
}

// The ids of the cluster may have come to those of the dump before anybody has looked.
func TestRestoredLongAgo(t *testing.T) {
	t.Parallel()
	url := migrated(t)
	s, stream, conn := open(t, url), storetest.NewStream(), connect(t, url)
	want := stream.Take(3)
	require.NoError(t, s.AppendMany(t.Context(), want[:2]))
	tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 1})
	tail.Take(t, 1)
	tail.Take(t, 1)
	const ahead = 3000
	restore(t, conn, ahead)
	insert(t, conn, want[2])
	_, err := conn.Exec(t.Context(), `DO $$ BEGIN FOR i IN 1..`+strconv.FormatInt(ahead, 10)+` LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$`)
	require.NoError(t, err)

	_, err = tail.Next(t.Context(), nil)
	require.ErrorIs(t, err, store.ErrRestored)
	done, err := s.MigrateRestored(t.Context())
	require.NoError(t, err)
	require.Equal(t, store.Renumbered{Events: 2, New: 1}, done)
	requireIDs(t, want[2:], storetest.Subscribe(t, s, store.TailConfig{BatchSize: 1}).Take(t, 1))
}

// A dump that is restored into the same cluster, or one with greater ids, or a copy of its files, works as it is.
func TestRestoredWithLowerIDsIsLeftAsItIs(t *testing.T) {
	t.Parallel()
	for start, relayed := range map[store.Start]int{store.StartAuto: 2, store.StartEnd: 1} {
		for _, behind := range []int{0, 10} {
			url := migrated(t)
			s, stream, conn := open(t, url), storetest.NewStream(), connect(t, url)
			require.NoError(t, s.Append(t.Context(), stream.Next()))
			config := store.TailConfig{BatchSize: 10, Start: start}
			tail := storetest.Subscribe(t, s, config)
			want := stream.Take(4)
			require.NoError(t, s.Append(t.Context(), want[0]))
			tail.Take(t, relayed)
			tail.Close(t)
			require.NoError(t, s.Append(t.Context(), want[1]))
			if behind > 0 {
				restore(t, conn, -int64(behind))
			}
			require.NoError(t, s.Append(t.Context(), want[2]))

			done, err := s.MigrateRestored(t.Context())
			require.NoError(t, err)
			require.Zero(t, done)
			requireIDs(t, want[1:3], storetest.Subscribe(t, s, config).Take(t, 2))
		}
	}
}

package postgres_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
)

// Ids are given at the INSERT, rows become visible at the COMMIT: a lower id may come later.
func TestLateCommitIsNotSkipped(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	s := open(t, address)
	early, late := storetest.NewStream().Next(), storetest.NewStream().Next()
	tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 10})
	tx, err := connect(t, address).Begin(t.Context())
	require.NoError(t, err)
	insert(t, tx, early)
	require.NoError(t, s.Append(t.Context(), late))

	tail.Silent(t)
	require.Empty(t, readAll(t, s))
	require.NoError(t, tx.Commit(t.Context()))

	requireIDs(t, []events.Event{early, late}, tail.Take(t, 2))
	requireIDs(t, []events.Event{early, late}, readAll(t, s))
}

func readAll(t *testing.T, s store.Store) []events.Event {
	t.Helper()
	var list []events.Event
	for r, err := range s.All(t.Context(), store.Position{}) {
		require.NoError(t, err)
		list = append(list, r.Event)
	}
	return list
}

// A transaction that is older than the versions it has seen stands before them in commit order.
func TestVersionsStayInOrderWhenATransactionIsOlder(t *testing.T) {
	t.Parallel()
	for name, between := range map[string]int{
		"within a batch":               2,
		"over the border of a batch":   7,
		"over many borders of a batch": 150,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := migrated(t)
			s, stream := open(t, address), storetest.NewStream()
			tx, err := connect(t, address).Begin(t.Context())
			require.NoError(t, err)
			_, err = tx.Exec(t.Context(), "SELECT pg_current_xact_id()")
			require.NoError(t, err)
			others := 0
			for i := range between { // commits with younger transactions, of which the last two are seen
				if i < between-2 {
					require.NoError(t, s.Append(t.Context(), storetest.NewStream().Next()))
					others++
				} else {
					require.NoError(t, s.Append(t.Context(), stream.Next()))
				}
			}
			insert(t, tx, stream.Next())
			insert(t, tx, stream.Next())
			require.NoError(t, tx.Commit(t.Context()))

			tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 5})
			seen := make(map[int]bool)
			others -= countOthers(t, tail, stream, seen, others+4)

			require.Zero(t, others, "nothing is skipped")
			require.Len(t, seen, 4)
		})
	}
}

// countOthers takes events until it has seen so many different ones; those of the stream must not come before the
// versions below them. It returns how many were of other streams.
func countOthers(
	t *testing.T, tail *storetest.Subscription, stream *storetest.Stream, seen map[int]bool, want int,
) int {
	t.Helper()
	others := 0
	for others+len(seen) < want {
		for _, e := range tail.Receive(t) {
			if e.AggregateID != stream.AggregateID {
				others++
				continue
			}
			for lower := 1; lower < e.AggregateVersion; lower++ {
				require.True(t, seen[lower], "version %d came before %d", e.AggregateVersion, lower)
			}
			seen[e.AggregateVersion] = true
		}
		tail.Ack(t)
	}
	return others
}

// While a batch is handled, the tail holds no transaction id: readers in commit order, of any program, go on.
func TestHandlersDelayNobody(t *testing.T) {
	t.Parallel()
	s, stream := open(t, migrated(t)), storetest.NewStream()
	require.NoError(t, s.Append(t.Context(), stream.Next()))
	tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 1})
	tail.Receive(t)
	second := stream.Next()
	require.NoError(t, s.Append(t.Context(), second))

	require.Eventually(t, func() bool { return len(readAll(t, s)) == 2 }, time.Minute, 10*time.Millisecond)

	tail.Ack(t)
	requireIDs(t, []events.Event{second}, tail.Take(t, 1))
}

// A batch that is in flight for long outlives the sessions.
func TestBatchOutlivesSessions(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	s := open(t, address)
	want := storetest.NewStream().Take(4)
	require.NoError(t, s.AppendMany(t.Context(), want))
	tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 2})
	requireIDs(t, want[:2], tail.Receive(t))

	terminateAll(t.Context(), t, connect(t, address))

	require.Eventually(t, func() bool { return tail.TryAck(t) == nil }, time.Minute, 10*time.Millisecond)
	requireIDs(t, want[2:], tail.Take(t, 2))
}

func TestWakes(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	s, stream := open(t, address), storetest.NewStream()
	tail, err := s.Tail(t.Context(), store.TailConfig{BatchSize: 1})
	require.NoError(t, err)
	defer func() { require.NoError(t, tail.Close()) }()
	admin := connect(t, address)
	requireWake(t, tail) // the listener listens
	insert(t, admin, stream.Next())
	requireWake(t, tail)

	terminateAll(t.Context(), t, admin)
	requireWake(t, tail) // it listens again, and something may have been missed
	insert(t, admin, stream.Next())
	requireWake(t, tail)
}

func requireWake(t *testing.T, tail *store.Tail) {
	t.Helper()
	select {
	case <-tail.Wake:
	case <-time.After(20 * time.Second):
		require.FailNow(t, "the tail was not woken")
	}
}

func TestTailRefusesBadSettings(t *testing.T) {
	t.Parallel()
	s := open(t, migrated(t))
	for _, config := range []store.TailConfig{{}, {BatchSize: -1}, {BatchSize: 1, Start: "middle"}} {
		_, err := s.Tail(t.Context(), config)
		require.Error(t, err)
	}
}

// The batch is found by an index whatever the planner knows of the table.
func TestTailScansAnIndex(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	s := open(t, address)
	require.NoError(t, s.AppendMany(t.Context(), storetest.NewStream().Take(2000)))
	type tail struct{ onlyOwn, after bool }
	for p, index := range map[tail]string{
		{}: "events_transaction_unique", {after: true}: "events_transaction_unique",
		{onlyOwn: true}: "events_own", {onlyOwn: true, after: true}: "events_own",
	} {
		var transaction, id any
		if p.after {
			transaction, id = pgtype.Uint64{Uint64: 1000, Valid: true}, 1000
		}
		conn := connect(t, address)
		batch := &pgx.Batch{}
		settings, statement := postgres.TailStatements(p.onlyOwn)
		batch.Queue(settings)
		batch.Queue("EXPLAIN "+statement, 100, transaction, id)
		results := conn.SendBatch(t.Context(), batch)
		_, err := results.Exec()
		require.NoError(t, err)
		rows, err := results.Query()
		require.NoError(t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		require.NoError(t, results.Close())
		plan := strings.Join(lines, "\n")
		require.Contains(t, plan, "Index Scan using "+index+" on events")
		require.NotContains(t, plan, "Seq Scan on events")
		var kept string
		require.NoError(t, conn.QueryRow(t.Context(), "SHOW enable_seqscan").Scan(&kept))
		require.Equal(t, "on", kept, "the session is as before")
	}
}

// Whatever another program has inserted goes over the wire as the JSON it is, for the consumer to judge.
func TestRelaysOddRows(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	s, conn := open(t, address), connect(t, address)
	_, err := conn.Exec(t.Context(), `INSERT INTO events (event_type, aggregate_type, aggregate_id, aggregate_version,
		tenant_id, correlation_id, created_at, event_data, metadata) VALUES
		(E'with "quotes" and \n', '', gen_random_uuid(), -1, gen_random_uuid(), gen_random_uuid(),
			'0044-03-15 BC', 'null', NULL),
		('', 'x', gen_random_uuid(), 1, gen_random_uuid(), gen_random_uuid(), '12345-01-01', '[1.10]', '[]')`)
	require.NoError(t, err)
	tail, err := s.Tail(t.Context(), store.TailConfig{BatchSize: 10})
	require.NoError(t, err)
	defer func() { require.NoError(t, tail.Close()) }()
	require.Eventually(t, func() bool { return len(readAll(t, s)) == 2 }, time.Minute, 10*time.Millisecond)
	var bodies []map[string]any
	batch, err := tail.Next(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(batch.Events, &bodies))
	require.Equal(t, "with \"quotes\" and \n", bodies[0]["event_type"])
	require.NotContains(t, bodies[0], "metadata")
	require.Equal(t, []any{1.1}, bodies[1]["event_data"])
}

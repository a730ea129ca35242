package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
	"github.com/healz/worker/internal/test/testservers"
)

// newPool is a pool of a caller's own; set may change its configuration.
func newPool(t *testing.T, url string, set func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	require.NoError(t, err)
	set(config)
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func openOn(t *testing.T, pool *pgxpool.Pool) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), "", postgres.Options{Pool: pool})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func TestStoreOnAPoolOfOthers(t *testing.T) {
	t.Parallel()
	url := migrated(t)
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			pool := newPool(t, url, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
			s, stream := openOn(t, pool), storetest.NewStream()
			want := stream.Take(3)
			require.NoError(t, s.Append(t.Context(), want[0]))
			require.NoError(t, s.Record(t.Context(), "h", want[0], want[1:]))
			require.ErrorIs(t, s.Record(t.Context(), "h", want[0], nil), store.ErrHandled)
			var conflict *store.ConflictError
			require.ErrorAs(t, s.AppendMany(t.Context(), []events.Event{stream.At(2), stream.At(3)}), &conflict)
			page, err := s.ByAggregate(t.Context(), stream.AggregateType, stream.AggregateID, store.Query{})
			require.NoError(t, err)
			requireIDs(t, want, page.Events)
			handled, err := s.HandledOf(t.Context(), []uuid.UUID{want[0].ID})
			require.NoError(t, err)
			require.Len(t, handled[want[0].ID], 1)
		})
	}
}

func TestAPoolThatDoesNotFit(t *testing.T) {
	t.Parallel()
	url := migrated(t)
	s := open(t, url)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		pool := newPool(t, url, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
		_, err := postgres.Open(t.Context(), "", postgres.Options{Pool: pool})
		want := fmt.Sprintf("default_query_exec_mode must be cache_statement, cache_describe or describe_exec, not %q", mode)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			return s.AppendTx(t.Context(), tx, storetest.NewStream().Take(1))
		}), want)
	}
}

// All connections are made as the pool's are, also those beside it; and it stays open.
func TestConnectionsAreThoseOfThePool(t *testing.T) {
	t.Parallel()
	url := testservers.Postgres(t)
	var begun, ready atomic.Int64
	pool := newPool(t, url, func(c *pgxpool.Config) {
		database := c.ConnConfig.Database
		c.ConnConfig.Database = "none"
		c.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
			c.Database = database
			begun.Add(1)
			return nil
		}
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS billing; SET search_path = billing")
			ready.Add(1)
			return err
		}
	})
	s, err := postgres.Open(t.Context(), "", postgres.Options{Pool: pool})
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))
	require.NoError(t, s.Ping(t.Context()))
	tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 10})
	e := storetest.NewStream().Next()
	require.NoError(t, s.Append(t.Context(), e))
	requireIDs(t, []events.Event{e}, tail.Take(t, 1))
	tail.Close(t)
	own, err := postgres.Open(t.Context(), "", postgres.Options{Pool: pool, MaxConns: 2})
	require.NoError(t, err)
	require.NoError(t, own.Ping(t.Context()))
	require.NoError(t, own.Close())
	require.NoError(t, s.Close())
	require.Equal(t, begun.Load(), ready.Load())
	require.NoError(t, pool.Ping(t.Context()))
	var schemas []string
	rows, err := connect(t, url).Query(t.Context(), "SELECT schemaname FROM pg_tables WHERE tablename IN ('events', 'worker_migrations')")
	require.NoError(t, err)
	schemas, err = pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Equal(t, []string{"billing", "billing"}, schemas)

	denied := errors.New("no token")
	for name, deny := range map[string]func(*pgxpool.Config){
		"BeforeConnect": func(c *pgxpool.Config) {
			c.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { return denied }
		},
		"AfterConnect": func(c *pgxpool.Config) { c.AfterConnect = func(context.Context, *pgx.Conn) error { return denied } },
	} {
		_, err = postgres.Open(t.Context(), "", postgres.Options{Pool: newPool(t, url, deny)})
		require.ErrorIs(t, err, denied)
		require.ErrorContains(t, err, name)
	}
}

// notes is a table of the caller's.
func notes(t *testing.T, pool *pgxpool.Pool) (add func(pgx.Tx), count func() int) {
	t.Helper()
	_, err := pool.Exec(t.Context(), "CREATE TABLE notes ()")
	require.NoError(t, err)
	add = func(tx pgx.Tx) {
		_, err := tx.Exec(t.Context(), "INSERT INTO notes DEFAULT VALUES")
		require.NoError(t, err)
	}
	count = func() (n int) {
		require.NoError(t, pool.QueryRow(t.Context(), "SELECT count(*) FROM notes").Scan(&n))
		return n
	}
	return add, count
}

func TestAppendTx(t *testing.T) {
	t.Parallel()
	// With one connection, a call that wanted another would wait for ever.
	pool := newPool(t, migrated(t), func(c *pgxpool.Config) { c.MaxConns = 1 })
	s := openOn(t, pool)
	addNote, countNotes := notes(t, pool)
	stream := storetest.NewStream()
	first := stream.Next()
	require.NoError(t, s.Append(t.Context(), first))
	second, third, other := stream.Next(), stream.Next(), storetest.NewStream().Next()

	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	addNote(tx)
	require.NoError(t, s.AppendTx(t.Context(), tx, []events.Event{second, other}))
	require.NoError(t, tx.Rollback(t.Context()))
	version, err := s.Version(t.Context(), stream.AggregateType, stream.AggregateID)
	require.NoError(t, err)
	require.Equal(t, 1, version)
	require.Zero(t, countNotes())

	otherTenant, invalid, unfit, twice := third, third, third, third
	otherTenant.TenantID = uuid.New()
	invalid.Type = ""
	unfit.Data = []byte(`1e200000`)
	twice.ID = first.ID
	tx, err = pool.Begin(t.Context())
	require.NoError(t, err)
	require.NoError(t, s.AppendTx(t.Context(), tx, nil))
	require.NoError(t, s.AppendTx(t.Context(), tx, []events.Event{second}))
	for name, test := range map[string]struct {
		batch []events.Event
		is    func(error) bool
	}{
		"conflict":     {[]events.Event{other, stream.At(2)}, isA[*store.ConflictError]},
		"gap":          {[]events.Event{other, stream.At(4)}, isA[*store.GapError]},
		"duplicate":    {[]events.Event{other, twice}, isA[*store.DuplicateError]},
		"other tenant": {[]events.Event{otherTenant}, func(err error) bool { return errors.Is(err, events.ErrOtherTenant) }},
		"invalid":      {[]events.Event{invalid}, isA[*events.InvalidError]},
		"unfit":        {[]events.Event{other, unfit}, isA[*events.InvalidError]},
	} {
		err := s.AppendTx(t.Context(), tx, test.batch)
		require.Error(t, err, name)
		require.True(t, test.is(err), "%s: %v", name, err)
		require.NotErrorIs(t, err, store.ErrUnknownOutcome, name)
	}
	addNote(tx)
	require.NoError(t, s.AppendTx(t.Context(), tx, []events.Event{third, other}))
	require.NoError(t, tx.Commit(t.Context()))
	page, err := s.ByAggregate(t.Context(), stream.AggregateType, stream.AggregateID, store.Query{})
	require.NoError(t, err)
	requireIDs(t, []events.Event{first, second, third}, page.Events)
	require.Equal(t, 1, countNotes())

	tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 10, OnlyOwn: true})
	requireIDs(t, []events.Event{first, second, third, other}, tail.Take(t, 4))
	require.ErrorContains(t, s.AppendTx(t.Context(), nil, []events.Event{third}), "there is none")
	next := []events.Event{stream.Next()}
	err = s.AppendTx(t.Context(), tx, next)
	require.ErrorIs(t, err, pgx.ErrTxClosed)
	require.NotErrorIs(t, err, store.ErrUnavailable)

	tx, err = pool.BeginTx(t.Context(), pgx.TxOptions{AccessMode: pgx.ReadOnly})
	require.NoError(t, err)
	err = s.AppendTx(t.Context(), tx, next)
	require.ErrorContains(t, err, "the transaction is read-only")
	require.NotErrorIs(t, err, store.ErrUnavailable)
	_, err = tx.Exec(t.Context(), "SELECT 1/0")
	require.Error(t, err)
	require.ErrorContains(t, s.AppendTx(t.Context(), tx, next), "the transaction had failed before")
	require.NoError(t, tx.Rollback(t.Context()))
}

// What another program's index refuses is refused, and no conflict that would pass.
func TestAppendTxThatAnIndexOfOthersRefuses(t *testing.T) {
	t.Parallel()
	pool := newPool(t, migrated(t), func(*pgxpool.Config) {})
	s := openOn(t, pool)
	_, err := pool.Exec(t.Context(), "CREATE UNIQUE INDEX one_of_a_type ON events (event_type)")
	require.NoError(t, err)
	first, second := storetest.NewStream().Next(), storetest.NewStream().Next()
	require.NoError(t, s.Append(t.Context(), first))
	require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		err := s.AppendTx(t.Context(), tx, []events.Event{second})
		var refused *store.RefusedError
		require.ErrorAs(t, err, &refused)
		require.Contains(t, refused.By, "one_of_a_type")
		require.NotErrorIs(t, err, events.ErrConflict)
		return nil
	}))
}

// Two transactions that wait for each other: one of them has to be begun again.
func TestAppendTxInADeadlock(t *testing.T) {
	t.Parallel()
	pool := newPool(t, migrated(t), func(*pgxpool.Config) {})
	s, one, other := openOn(t, pool), storetest.NewStream(), storetest.NewStream()
	txs := make([]pgx.Tx, 2)
	for i, stream := range []*storetest.Stream{one, other} {
		var err error
		txs[i], err = pool.Begin(t.Context())
		require.NoError(t, err)
		require.NoError(t, s.AppendTx(t.Context(), txs[i], []events.Event{stream.At(1)}))
	}
	failed := make(chan error, 2)
	for i, stream := range []*storetest.Stream{other, one} {
		go func() {
			err := s.AppendTx(t.Context(), txs[i], []events.Event{stream.At(1)})
			failed <- errors.Join(err, txs[i].Rollback(t.Context()))
		}()
	}
	conflicts := 0
	for range txs {
		if err := <-failed; err != nil {
			require.ErrorIs(t, err, events.ErrConflict)
			require.NotErrorIs(t, err, store.ErrUnavailable)
			conflicts++
		}
	}
	require.Equal(t, 1, conflicts)
}

type isInsert struct{}

// endsContext ends the context of a call when its INSERT has been answered.
type endsContext struct{ end context.CancelFunc }

func (e endsContext) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, isInsert{}, strings.Contains(data.SQL, "INSERT INTO events"))
}

func (e endsContext) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if is, _ := ctx.Value(isInsert{}).(bool); is {
		e.end()
	}
}

// A call that failed as its context ended has appended nothing, though the transaction goes on.
func TestAppendTxWhoseContextEnds(t *testing.T) {
	t.Parallel()
	ctx, end := context.WithCancel(t.Context())
	pool := newPool(t, migrated(t), func(c *pgxpool.Config) { c.ConnConfig.Tracer = endsContext{end} })
	s, stream := openOn(t, pool), storetest.NewStream()
	addNote, countNotes := notes(t, pool)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	addNote(tx)
	require.ErrorIs(t, s.AppendTx(ctx, tx, stream.Take(1)), context.Canceled)
	require.NoError(t, tx.Commit(t.Context()))
	require.Equal(t, 1, countNotes())
	version, err := s.Version(t.Context(), stream.AggregateType, stream.AggregateID)
	require.NoError(t, err)
	require.Zero(t, version)
}

func isA[E error](err error) bool {
	_, found := errors.AsType[E](err)
	return found
}

// A transaction with a snapshot does not see what another has taken since.
func TestAppendTxWithASnapshot(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			pool := newPool(t, migrated(t), func(*pgxpool.Config) {})
			s, stream := openOn(t, pool), storetest.NewStream()
			require.NoError(t, s.Append(t.Context(), stream.Next()))
			tx, err := pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
			require.NoError(t, err)
			addNote, countNotes := notes(t, pool)
			_, err = tx.Exec(t.Context(), "SELECT 1 FROM events")
			require.NoError(t, err)
			require.NoError(t, s.Append(t.Context(), stream.At(2)))
			again := storetest.NewStream().Next()
			require.NoError(t, s.Append(t.Context(), again))
			again.AggregateID = uuid.New()

			err = s.AppendTx(t.Context(), tx, []events.Event{stream.At(2)})
			require.ErrorIs(t, err, events.ErrConflict)
			require.NotErrorIs(t, err, store.ErrUnknownOutcome)
			require.NotErrorIs(t, err, store.ErrUnavailable)
			if level == pgx.RepeatableRead {
				var duplicate *store.DuplicateError
				require.ErrorAs(t, s.AppendTx(t.Context(), tx, []events.Event{again}), &duplicate)
			}
			addNote(tx)
			require.NoError(t, tx.Commit(t.Context()))
			require.Equal(t, 1, countNotes())
		})
	}
}

// A transaction that is older than a version that it has seen appends the next one.
func TestAppendTxOfAnOlderTransaction(t *testing.T) {
	t.Parallel()
	pool := newPool(t, migrated(t), func(*pgxpool.Config) {})
	s, stream := openOn(t, pool), storetest.NewStream()
	older, err := pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = older.Exec(t.Context(), "SELECT pg_current_xact_id()")
	require.NoError(t, err)
	want := stream.Take(4)
	require.NoError(t, s.Append(t.Context(), want[0]))
	require.NoError(t, s.AppendTx(t.Context(), older, want[1:3]))
	require.NoError(t, older.Commit(t.Context()))
	require.NoError(t, s.Append(t.Context(), want[3]))

	tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 1})
	got := tail.Take(t, 5)
	requireIDs(t, []events.Event{want[0], want[1]}, got[:2])
	seen := newOrderCheck()
	seen.versions[stream.AggregateID] = []int{1, 2, 3, 4}
	seen.read(t, got)
	require.True(t, seen.isComplete())
}

// Sessions of a server that is read-only are made anew, until one may write: that of the tail on a pool of others, too.
func TestTheTailOnAPoolOutlastsAReadOnlyServer(t *testing.T) {
	t.Parallel()
	url := migrated(t)
	s := openOn(t, newPool(t, url, func(*pgxpool.Config) {}))
	tail, err := s.Tail(t.Context(), store.TailConfig{BatchSize: 10})
	require.NoError(t, err)
	defer func() { require.NoError(t, tail.Close()) }()
	take := func() error {
		_, err := tail.TakeLease(t.Context(), store.RelayTask, "holder", time.Minute)
		return err
	}
	require.NoError(t, take())
	admin := connect(t, url)
	execute := func(statement string) {
		_, err := admin.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
	const endSessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
	execute(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$`)
	execute(endSessions)
	require.Eventually(t, func() bool { return errors.Is(take(), store.ErrReadOnly) }, 20*time.Second, 20*time.Millisecond)
	execute("SET default_transaction_read_only = off")
	execute(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET default_transaction_read_only', current_database()); END $$`)
	require.Eventually(t, func() bool { return take() == nil }, 20*time.Second, 20*time.Millisecond)
}

package postgres_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
)

// hold begins to insert an event as another program does, without a commit, and starts an append of the same version,
// which waits for it. Those who come next find the way taken, and share a statement.
func hold(t *testing.T, address string, s *postgres.Store, calls *sync.WaitGroup) pgx.Tx {
	t.Helper()
	stream := storetest.NewStream()
	tx, err := connect(t, address).Begin(t.Context())
	require.NoError(t, err)
	insert(t, tx, stream.At(1))
	calls.Go(func() {
		if err := s.Append(t.Context(), stream.At(1)); err != nil {
			t.Error("the append that waited:", err)
		}
	})
	requireLockWait(t, connect(t, address))
	return tx
}

func requireLockWait(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	require.Eventually(t, func() bool {
		var waiting bool
		err := conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waiting)
		return err == nil && waiting
	}, 30*time.Second, time.Millisecond)
}

// attempt is an append, or the record of an event together with one, and what is to become of it.
type attempt struct {
	handled *events.Event
	batch   []events.Event
	want    func(error) bool
	err     error
}

func succeeds(err error) bool { return err == nil }

func is(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }

func as[E error](err error) bool { _, is := errors.AsType[E](err); return is }

// Whatever becomes of calls that share a statement is what would have become of each alone, also when the server refuses
// the statement for the sake of some.
func TestSharedWritesStandOrFallAlone(t *testing.T) {
	t.Parallel()
	for name, refused := range map[string]bool{"by what the statement tells": false, "by what the server refuses": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := withParameter(t, migrated(t), "max_stack_depth", "100kB")
			s := open(t, address)
			attempts := differentAttempts(t, s)
			if refused {
				attempts = append(attempts, refusedAttempts(t, s)...)
			}
			var calls sync.WaitGroup
			other := hold(t, address, s, &calls)
			for _, a := range attempts {
				calls.Go(func() {
					if a.handled == nil {
						a.err = s.AppendMany(t.Context(), a.batch)
					} else {
						a.err = s.Record(t.Context(), "handler", *a.handled, a.batch)
					}
				})
			}
			require.NoError(t, other.Rollback(t.Context()))
			calls.Wait()

			conn := connect(t, address)
			for i, a := range attempts {
				require.True(t, a.want(a.err), "attempt %d: %v", i, a.err)
				require.Equal(t, a.err == nil, stored(t, conn, a.batch), "attempt %d: %v", i, a.err)
				if a.handled != nil && a.err == nil {
					handlers, err := s.Handled(t.Context(), *a.handled)
					require.NoError(t, err)
					require.Equal(t, []string{"handler"}, handlers)
				}
			}
		})
	}
}

// stored tells whether all events are there, or none is.
func stored(t *testing.T, conn *pgx.Conn, batch []events.Event) bool {
	t.Helper()
	count := 0
	for _, e := range batch {
		var n int
		require.NoError(t, conn.QueryRow(t.Context(),
			"SELECT count(*) FROM events WHERE event_id = $1 AND aggregate_id = $2", e.ID, e.AggregateID).Scan(&n))
		count += n
	}
	require.Contains(t, []int{0, len(batch)}, count, "all or nothing")
	return count == len(batch)
}

// differentAttempts have no aggregate in common.
func differentAttempts(t *testing.T, s *postgres.Store) []*attempt {
	t.Helper()
	at3 := func() *storetest.Stream {
		stream := storetest.NewStream()
		require.NoError(t, s.AppendMany(t.Context(), stream.Take(3)))
		return stream
	}
	next := func() events.Event { return storetest.NewStream().Next() }
	record := func(e events.Event, want func(error) bool, followUps ...events.Event) *attempt {
		return &attempt{handled: &e, batch: followUps, want: want}
	}
	foreign, other := at3().Next(), at3().Next()
	foreign.TenantID, other.AggregateType = uuid.New(), "Clinic"
	handled := next()
	require.NoError(t, s.Record(t.Context(), "handler", handled, nil))
	contradicting := next()
	require.NoError(t, s.Record(t.Context(), "another", contradicting, nil))
	contradicting.Data = json.RawMessage(`1`)
	return []*attempt{
		{batch: []events.Event{next()}, want: succeeds},
		{batch: at3().Take(2), want: succeeds},
		{batch: append(storetest.NewStream().Take(2), at3().Next()), want: succeeds},
		{batch: []events.Event{at3().At(3)}, want: as[*store.ConflictError]},
		{batch: []events.Event{next(), at3().At(2)}, want: as[*store.ConflictError]},
		{batch: []events.Event{next(), at3().At(5)}, want: as[*store.GapError]},
		{batch: []events.Event{foreign}, want: is(events.ErrOtherTenant)},
		{batch: []events.Event{next(), other}, want: as[*events.InvalidError]},
		record(next(), succeeds, next(), at3().Next()),
		record(next(), as[*store.ConflictError], next(), at3().At(1)),
		record(handled, is(store.ErrHandled), next()),
		record(contradicting, is(store.ErrContradiction), next()),
	}
}

// refusedAttempts are such that a statement which has one of them in it fails.
func refusedAttempts(t *testing.T, s *postgres.Store) []*attempt {
	t.Helper()
	next := func() events.Event { return storetest.NewStream().Next() }
	e, duplicate, deep := next(), next(), next()
	require.NoError(t, s.Append(t.Context(), e))
	duplicate.ID = e.ID
	deep.Data = json.RawMessage(strings.Repeat("[", 5_000) + strings.Repeat("]", 5_000))
	cause := next()
	return []*attempt{
		{batch: []events.Event{duplicate}, want: as[*store.DuplicateError]},
		{batch: []events.Event{next(), deep}, want: as[*events.InvalidError]},
		{handled: &cause, batch: []events.Event{next(), deep}, want: as[*events.InvalidError]},
	}
}

// What another program holds for long keeps only those from writing who want the same, and their contexts can end.
func TestOnlyThoseWaitWhoMust(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	s, stream := open(t, address), storetest.NewStream()
	other, err := connect(t, address).Begin(t.Context())
	require.NoError(t, err)
	insert(t, other, stream.At(1))
	ctx, cancel := context.WithCancel(t.Context())
	waiting, leaving := make(chan error, 1), make(chan error, 1)
	go func() { waiting <- s.Append(t.Context(), stream.At(1)) }()
	go func() {
		leaving <- s.Record(ctx, "handler", storetest.NewStream().Next(), []events.Event{stream.At(1)})
	}()
	requireLockWait(t, connect(t, address))

	var others sync.WaitGroup
	for range 20 {
		others.Go(func() {
			for range 5 {
				if err := s.Append(t.Context(), storetest.NewStream().Next()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	others.Wait()
	cancel()
	left := <-leaving
	require.ErrorIs(t, left, context.Canceled)
	require.NotErrorIs(t, left, store.ErrUnknownOutcome)
	require.NoError(t, other.Commit(t.Context()))
	waited := <-waiting
	require.True(t, as[*store.ConflictError](waited), "%v", waited)
}

// Whoever writes to an aggregate, the store or other programs, its events stand in commit order in the order of their
// versions, each written once.
func TestCommitOrderIsVersionOrder(t *testing.T) {
	t.Parallel()
	const aggregates, writers, versions = 4, 12, 60
	address := migrated(t)
	s := open(t, address)
	streams := make([]*storetest.Stream, aggregates)
	for i := range streams {
		streams[i] = storetest.NewStream()
	}
	var (
		written [aggregates]atomic.Int64
		calls   sync.WaitGroup
	)
	// tryOne appends the next version by what was read before, and passes over that another writer was first.
	tryOne := func(i int, add func(events.Event) error) error {
		version, err := s.Version(t.Context(), streams[i].AggregateType, streams[i].AggregateID)
		if err != nil {
			return err
		}
		err = add(streams[i].At(version + 1))
		if err == nil {
			written[i].Add(1)
		}
		if errors.Is(err, events.ErrConflict) || err != nil && strings.Contains(err.Error(), "events_aggregate_version_unique") {
			return nil
		}
		return err
	}
	for w := range writers {
		conn := connect(t, address)
		add := []func(events.Event) error{
			func(e events.Event) error { return s.Append(t.Context(), e) },
			func(e events.Event) error {
				return s.AppendMany(t.Context(), append(storetest.NewStream().Take(2), e))
			},
			func(e events.Event) error {
				return s.Record(t.Context(), "handler", storetest.NewStream().Next(), []events.Event{e, storetest.NewStream().Next()})
			},
			func(e events.Event) error {
				_, err := conn.Exec(t.Context(), insertSQL, insertArgs(e)...)
				return err
			},
		}[w%4]
		calls.Go(func() {
			for n := 0; ; n++ {
				i := n % aggregates
				if written[i].Load() >= versions {
					return
				}
				if err := tryOne(i, add); err != nil {
					t.Error(fmt.Errorf("writer %d: %w", w, err))
					return
				}
			}
		})
	}
	calls.Wait()

	conn := connect(t, address)
	for i, stream := range streams {
		rows, err := conn.Query(t.Context(),
			"SELECT aggregate_version FROM events WHERE aggregate_id = $1 ORDER BY transaction_id, id", stream.AggregateID)
		require.NoError(t, err)
		found, err := pgx.CollectRows(rows, pgx.RowTo[int])
		require.NoError(t, err)
		require.Len(t, found, int(written[i].Load()))
		for at, version := range found {
			require.Equal(t, at+1, version)
		}
	}
}

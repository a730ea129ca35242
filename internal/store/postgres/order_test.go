package postgres_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
)

// orderCheck follows what the relay reads: each version must come after the lower ones of its aggregate. Later copies
// may come in any order.
type orderCheck struct {
	versions map[uuid.UUID][]int // of each aggregate, that are committed, ascending
	seen     map[uuid.UUID]map[int]bool
}

func newOrderCheck() orderCheck {
	return orderCheck{versions: map[uuid.UUID][]int{}, seen: map[uuid.UUID]map[int]bool{}}
}

func (c orderCheck) read(t *testing.T, list []events.Event) {
	t.Helper()
	for _, e := range list {
		if c.seen[e.AggregateID] == nil {
			c.seen[e.AggregateID] = map[int]bool{}
		}
		for _, lower := range c.versions[e.AggregateID] {
			if lower < e.AggregateVersion && !c.seen[e.AggregateID][lower] {
				require.FailNow(t, "disorder", "version %d came before %d", e.AggregateVersion, lower)
			}
		}
		c.seen[e.AggregateID][e.AggregateVersion] = true
	}
}

func (c orderCheck) isComplete() bool {
	for id, versions := range c.versions {
		if len(c.seen[id]) < len(versions) {
			return false
		}
	}
	return true
}

// Transactions of other programs take their ids, insert, append and commit at random times, and the relay reads meanwhile, in
// batches of any size. It is killed now and then before it has moved its position.
func TestVersionsStayInOrderAtRandom(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			address := migrated(t)
			r := &interleaving{
				Rand: rand.New(rand.NewPCG(seed, 0)), store: open(t, address),
				orderCheck: newOrderCheck(), between: 200,
			}
			for range 5 {
				r.sessions = append(r.sessions, &session{conn: connect(t, address)})
			}
			for range 4 {
				r.streams = append(r.streams, &openStream{stream: storetest.NewStream(), version: 0})
			}
			size := []int{1, 2, 3, 7, 50, 1000}[seed]
			if size < 4 {
				r.between = 20 * size // so that it ends in time
			}
			tail := storetest.Subscribe(t, r.store, store.TailConfig{BatchSize: size})
			for range 250 {
				r.step(t)
				if r.IntN(6) == 0 {
					r.relay(t, tail)
				}
			}
			for _, s := range r.sessions {
				r.end(t, s, true)
			}
			for !r.isComplete() {
				r.read(t, tail.Receive(t))
				tail.Ack(t)
			}
		})
	}
}

// interleaving runs random steps of several sessions.
type interleaving struct {
	*rand.Rand
	orderCheck
	store    *postgres.Store
	sessions []*session
	streams  []*openStream
	between  int // less than so many rows are inserted at once
}

type session struct {
	conn *pgx.Conn
	tx   pgx.Tx
	// inserted is what the transaction has inserted.
	inserted []events.Event
}

// openStream is an aggregate, of which one transaction at a time has versions that are not committed.
type openStream struct {
	stream  *storetest.Stream
	version int // that is committed
	writer  *session
	ahead   int // versions of the writer
}

func (r *interleaving) step(t *testing.T) {
	t.Helper()
	s, o := r.sessions[r.IntN(len(r.sessions))], r.streams[r.IntN(len(r.streams))]
	switch r.IntN(10) {
	case 0, 1, 2:
		if s.tx == nil {
			var err error
			s.tx, err = s.conn.Begin(t.Context())
			require.NoError(t, err)
			_, err = s.tx.Exec(t.Context(), "SELECT pg_current_xact_id()")
			require.NoError(t, err)
		}
	case 3, 4, 5:
		if s.tx != nil && (o.writer == nil || o.writer == s) {
			o.writer = s
			o.ahead++
			e := o.stream.At(o.version + o.ahead)
			if r.IntN(2) == 0 {
				insert(t, s.tx, e)
			} else {
				require.NoError(t, r.store.AppendTx(t.Context(), s.tx, []events.Event{e}))
			}
			s.inserted = append(s.inserted, e)
		}
	case 6: // rows between, of other aggregates, by a transaction of any age
		if s.tx != nil {
			rows, err := s.tx.Query(t.Context(), `INSERT INTO events (event_type, aggregate_type, aggregate_id,
				aggregate_version, tenant_id, correlation_id, event_data) SELECT 'E', 'A', gen_random_uuid(), 1,
				gen_random_uuid(), gen_random_uuid(), '{}' FROM generate_series(1, $1) RETURNING aggregate_id`,
				r.IntN(r.between))
			require.NoError(t, err)
			ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
			require.NoError(t, err)
			for _, id := range ids {
				s.inserted = append(s.inserted, events.Event{AggregateID: id, AggregateVersion: 1})
			}
		}
	case 7:
		if o.writer == nil {
			o.version++
			e := o.stream.At(o.version)
			require.NoError(t, r.store.Append(t.Context(), e))
			r.committed(e)
		}
	default:
		r.end(t, s, r.IntN(4) > 0)
	}
}

func (r *interleaving) committed(e events.Event) {
	r.versions[e.AggregateID] = append(r.versions[e.AggregateID], e.AggregateVersion)
}

// end commits the session's transaction, or rolls it back.
func (r *interleaving) end(t *testing.T, s *session, commit bool) {
	t.Helper()
	if s.tx == nil {
		return
	}
	if commit {
		require.NoError(t, s.tx.Commit(t.Context()))
		for _, e := range s.inserted {
			r.committed(e)
		}
	} else {
		require.NoError(t, s.tx.Rollback(t.Context()))
	}
	for _, o := range r.streams {
		if o.writer == s {
			if commit {
				o.version += o.ahead
			}
			o.writer, o.ahead = nil, 0
		}
	}
	s.tx, s.inserted = nil, nil
}

// relay reads a batch, and mostly moves the position behind it.
func (r *interleaving) relay(t *testing.T, tail *storetest.Subscription) {
	t.Helper()
	if list, found := tail.Poll(t); found {
		r.read(t, list)
		if r.IntN(4) > 0 {
			tail.Ack(t)
		}
	}
}

// What is read early counts towards the size of a batch, which then ends before the row that needs it.
func TestEarlyVersionsAreBounded(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	s, stream := open(t, address), storetest.NewStream()
	large := func(version int) events.Event {
		e := stream.At(version)
		e.Data = json.RawMessage(`"` + strings.Repeat("x", 3<<20) + `"`)
		return e
	}
	first := storetest.NewStream().Next()
	require.NoError(t, s.Append(t.Context(), first))
	tx, err := connect(t, address).Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "SELECT pg_current_xact_id()")
	require.NoError(t, err)
	want := []events.Event{large(1), large(2), large(3), large(4)}
	require.NoError(t, s.Append(t.Context(), want[0]))
	require.NoError(t, s.Append(t.Context(), want[1]))
	require.NoError(t, s.Append(t.Context(), want[2]))
	insert(t, tx, want[3])
	require.NoError(t, tx.Commit(t.Context()))
	tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 10})

	requireIDs(t, []events.Event{first}, tail.Take(t, 1))
	requireIDs(t, want, tail.Take(t, 4))
	requireIDs(t, want[:2], tail.Take(t, 2))
	requireIDs(t, want[2:3], tail.Take(t, 1))
}

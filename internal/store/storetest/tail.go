package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// Tailed is a store that the relay can tail.
type Tailed interface {
	store.Store
	Tail(ctx context.Context, config store.TailConfig) (*store.Tail, error)
}

// Database is a new, migrated, empty database.
type Database struct {
	// Open opens a store on it, each time as another process would. The suite closes it.
	Open func(t *testing.T) Tailed
	// Insert does what a program does that knows nothing of the worker: it inserts a row and names only the contract's
	// columns.
	Insert func(t *testing.T, e events.Event)
	// Execute executes a statement as the administrator of the database does.
	Execute func(t *testing.T, statement string)
}

// RunTail holds stores to [store.Tail].
func RunTail(t *testing.T, create func(t *testing.T) Database) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, Database){
		"relays in commit order and in wire form": relaysInOrder,
		"batches are bounded":                     boundsBatches,
		"large events":                            relaysLargeEvents,
		"relays what other programs insert":       relaysInserts,
		"only own":                                relaysOnlyOwn,
		"reads ahead of the position":             readsAhead(false),
		"reads own ahead of the position":         readsAhead(true),
		"ids below 1":                             relaysLowIDs,
		"goes on behind the position":             goesOn,
		"a batch comes until the position moves":  repeatsUnacked,
		"start at the beginning":                  startsAtBeginning(store.StartBeginning),
		"start by default":                        startsAtBeginning(store.StartAuto),
		"start at the end":                        startsAtEnd,
		"a position that was deleted":             missesPosition,
		"a lease has one holder":                  leasesToOne,
		"a lease expires":                         expiresLeases,
		"a lease of a clock that was ahead":       distrustsClocks,
		"a former leader moves nothing":           fences,
		"skips nothing under concurrent commits":  skipsNothing,
		"wakes after an append":                   wakes,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, create(t))
		})
	}
}

func (d Database) open(t *testing.T) Tailed {
	t.Helper()
	s := d.Open(t)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// Subscription is the only reader of a store's tail.
type Subscription struct {
	*store.Tail
	fence  store.Fence
	batch  store.Batch // in flight
	closed sync.Once
}

// Subscribe takes the lease of a store's tail. It is given back at the end of the test at the latest.
func Subscribe(t *testing.T, s Tailed, config store.TailConfig) *Subscription {
	t.Helper()
	tail, err := s.Tail(t.Context(), config)
	require.NoError(t, err)
	fence, err := tail.TakeLease(t.Context(), store.RelayTask, uuid.NewString(), time.Minute)
	require.NoError(t, err)
	subscription := &Subscription{Tail: tail, fence: fence}
	t.Cleanup(func() { subscription.Close(t) })
	return subscription
}

// Close gives the lease back and closes the tail.
func (s *Subscription) Close(t *testing.T) {
	t.Helper()
	s.closed.Do(func() {
		require.NoError(t, s.GiveLease(context.WithoutCancel(t.Context()), store.RelayTask, s.fence.Holder))
		require.NoError(t, s.Tail.Close())
	})
}

// Poll reads the next batch, if there is one, and leaves the position before it.
func (s *Subscription) Poll(t *testing.T) (_ []events.Event, found bool) {
	t.Helper()
	batch, err := s.Next(t.Context(), nil)
	require.NoError(t, err)
	if batch.Events == nil {
		return nil, false
	}
	s.batch = batch
	return batchOf(t, batch), true
}

// Receive waits for the next batch and leaves the position before it.
func (s *Subscription) Receive(t *testing.T) (list []events.Event) {
	t.Helper()
	require.Eventually(t, func() (found bool) {
		list, found = s.Poll(t)
		return found
	}, patience, 5*time.Millisecond, "no batch came")
	return list
}

// Ack moves the position behind the batch that was received last.
func (s *Subscription) Ack(t *testing.T) {
	t.Helper()
	require.NoError(t, s.TryAck(t))
}

// TryAck is Ack for a test in which it may fail.
func (s *Subscription) TryAck(t *testing.T) error {
	t.Helper()
	return s.Move(t.Context(), s.batch.Position, s.fence)
}

// Take receives and acks until it has n events; the position is behind them then.
func (s *Subscription) Take(t *testing.T, n int) []events.Event {
	t.Helper()
	var taken []events.Event
	for len(taken) < n {
		taken = append(taken, s.Receive(t)...)
		s.Ack(t)
	}
	require.Len(t, taken, n)
	return taken
}

// Silent checks that no batch comes for a while.
func (s *Subscription) Silent(t *testing.T) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for began := time.Now(); time.Since(began) < 300*time.Millisecond; <-ticker.C {
		batch, err := s.Next(t.Context(), nil)
		require.NoError(t, err)
		require.Nil(t, batch.Events, "a batch came")
	}
}

func batchOf(t *testing.T, b store.Batch) []events.Event {
	t.Helper()
	var bodies []json.RawMessage
	require.NoError(t, json.Unmarshal(b.Events, &bodies))
	require.NotEmpty(t, bodies)
	batch := make([]events.Event, len(bodies))
	for i, body := range bodies {
		var err error
		batch[i], err = events.Parse(body)
		require.NoError(t, err)
	}
	return batch
}

// asOnWire is how the list arrives: the wire has milliseconds.
func asOnWire(list []events.Event) []events.Event {
	list = slices.Clone(list)
	for i := range list {
		list[i].CreatedAt = list[i].CreatedAt.UTC().Truncate(time.Millisecond)
	}
	return list
}

func relaysInOrder(t *testing.T, d Database) {
	t.Helper()
	s, one, other := d.open(t), NewStream(), NewStream()
	full := one.Next()
	full.ClinicID = uuid.NullUUID{UUID: uuid.New(), Valid: true}
	full.CausationID = uuid.NullUUID{UUID: uuid.New(), Valid: true}
	full.UserID = uuid.NullUUID{UUID: uuid.New(), Valid: true}
	full.CreatedAt = time.Date(2024, 2, 29, 23, 59, 59, 7_999_999, time.FixedZone("", 3600))
	full.Data = json.RawMessage(`{"amount":1.10,"big":9007199254740993,"text":"é😀\u2028\"\\"}`)
	full.Metadata = json.RawMessage(`{"source":"import"}`)
	bare := one.Next()
	require.NoError(t, s.Append(t.Context(), full))
	want := []events.Event{full, other.Next(), bare, one.Next()}
	appendAll(t, s, want[1:])
	tail := Subscribe(t, s, store.TailConfig{BatchSize: 100})

	var got []events.Event
	var bodies []map[string]json.RawMessage
	for len(got) < len(want) {
		got = append(got, tail.Receive(t)...)
		var some []map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(tail.batch.Events, &some))
		bodies = append(bodies, some...)
		tail.Ack(t)
	}

	requireSame(t, asOnWire(want), got)
	require.JSONEq(t, `"2024-02-29T22:59:59.007Z"`, string(bodies[0]["created_at"]))
	require.Contains(t, string(bodies[0]["event_data"]), "9007199254740993")
	require.ElementsMatch(t, []string{
		"event_id", "event_type", "aggregate_type", "aggregate_id", "aggregate_version", "tenant_id", "clinic_id",
		"correlation_id", "causation_id", "user_id", "created_at", "event_data", "metadata",
	}, slices.Collect(maps.Keys(bodies[0])))
	require.Subset(t, []string{
		"event_id", "event_type", "aggregate_type", "aggregate_id", "aggregate_version", "tenant_id", "correlation_id",
		"created_at", "event_data", "metadata",
	}, slices.Collect(maps.Keys(bodies[2])), "what is absent is left out")
}

func boundsBatches(t *testing.T, d Database) {
	t.Helper()
	s, stream := d.open(t), NewStream()
	want := stream.Take(25)
	appendAll(t, s, want)
	tail := Subscribe(t, s, store.TailConfig{BatchSize: 10})
	var got []events.Event
	for len(got) < len(want) {
		batch := tail.Receive(t)
		require.LessOrEqual(t, len(batch), 10)
		got = append(got, batch...)
		tail.Ack(t)
	}
	requireSame(t, want, got)
	tail.Silent(t)
}

func relaysLargeEvents(t *testing.T, d Database) {
	t.Helper()
	const size = 3 << 20
	s, stream := d.open(t), NewStream()
	want := stream.Take(3)
	for i := range want {
		want[i].Data = json.RawMessage(`"` + string(slices.Repeat([]byte{byte('a' + i)}, size)) + `"`)
	}
	huge := stream.Next()
	huge.Data = json.RawMessage(`"` + string(slices.Repeat([]byte{'x'}, 3*size)) + `"`)
	want = append(want, huge)
	appendAll(t, s, want)
	tail := Subscribe(t, s, store.TailConfig{BatchSize: 100})
	var got []events.Event
	for len(got) < len(want) {
		got = append(got, tail.Receive(t)...)
		require.Less(t, len(tail.batch.Events), 4*size)
		tail.Ack(t)
	}
	requireSame(t, want, got)
}

func relaysInserts(t *testing.T, d Database) {
	t.Helper()
	s, foreign, own := d.open(t), NewStream(), NewStream()
	tail := Subscribe(t, s, store.TailConfig{BatchSize: 10})
	want := []events.Event{foreign.Next(), own.Next(), foreign.Next()}
	d.Insert(t, want[0])
	requireSame(t, asOnWire(want[:1]), tail.Take(t, 1))
	appendAll(t, s, want[1:2])
	requireSame(t, asOnWire(want[1:2]), tail.Take(t, 1))
	d.Insert(t, want[2])
	requireSame(t, asOnWire(want[2:]), tail.Take(t, 1))
}

func readsAhead(onlyOwn bool) func(*testing.T, Database) {
	return func(t *testing.T, d Database) {
		t.Helper()
		s, own, foreign := d.open(t), NewStream(), NewStream()
		var want []events.Event
		for range 5 {
			batch := own.Take(4)
			appendAll(t, s, batch)
			want = append(want, batch...)
			e := foreign.Next()
			d.Insert(t, e)
			if !onlyOwn {
				want = append(want, e)
			}
		}
		require.Eventually(t, func() bool { return len(collect(t, s.All(t.Context(), store.Position{}))) == 25 }, patience, 10*time.Millisecond)
		tail := Subscribe(t, s, store.TailConfig{BatchSize: 3, OnlyOwn: onlyOwn})
		var got []events.Event
		var behind *store.Position
		for {
			batch, err := tail.Next(t.Context(), behind)
			require.NoError(t, err)
			if batch.Events == nil {
				break
			}
			got, behind = append(got, batchOf(t, batch)...), &batch.Position
		}
		require.Equal(t, ids(want), ids(got))
		require.Equal(t, ids(want), ids(tail.Take(t, len(want))), "the position is where it was")
	}
}

// relaysLowIDs has ids of a sequence that was set back, or of another program's choice.
func relaysLowIDs(t *testing.T, d Database) {
	t.Helper()
	s, stream := d.open(t), NewStream()
	want := stream.Take(3)
	for i, e := range want {
		d.Execute(t, fmt.Sprintf(`INSERT INTO events
			(id, event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, correlation_id, event_data)
			VALUES (%d, '%s', '%s', '%s', '%s', %d, '%s', '%s', '{}')`,
			[]int{-7, -1, 0}[i], e.ID, e.Type, e.AggregateType, e.AggregateID, e.AggregateVersion, e.TenantID, e.CorrelationID))
	}
	want = append(want, stream.Next())
	appendAll(t, s, want[3:])
	tail := Subscribe(t, s, store.TailConfig{BatchSize: 2, Start: store.StartBeginning})
	backlog, err := tail.Backlog(t.Context())
	require.NoError(t, err)
	require.Equal(t, len(want), backlog.Events)
	require.Equal(t, ids(want), ids(tail.Take(t, len(want))))
	backlog, err = tail.Backlog(t.Context())
	require.NoError(t, err)
	require.Zero(t, backlog.Events)
}

func relaysOnlyOwn(t *testing.T, d Database) {
	t.Helper()
	s, foreign, own := d.open(t), NewStream(), NewStream()
	for _, e := range foreign.Take(30) {
		d.Insert(t, e)
	}
	appendAll(t, s, own.Take(1))
	for _, e := range foreign.Take(30) {
		d.Insert(t, e)
	}
	require.NoError(t, s.Record(t.Context(), "handler", foreign.Next(), own.Take(1)))
	tail := Subscribe(t, s, store.TailConfig{BatchSize: 10, OnlyOwn: true})

	requireSame(t, asOnWire(stored(t, s, own)), tail.Take(t, 2))
	tail.Silent(t)
}

func goesOn(t *testing.T, d Database) {
	t.Helper()
	s, stream := d.open(t), NewStream()
	config := store.TailConfig{BatchSize: 5}
	appendAll(t, s, stream.Take(12))
	first := Subscribe(t, s, config)
	got := first.Take(t, 5)
	first.Receive(t) // in flight when it closes
	first.Close(t)
	appendAll(t, s, stream.Take(1))

	second := Subscribe(t, d.open(t), config)
	got = append(got, second.Take(t, 8)...)
	second.Silent(t)

	requireSame(t, asOnWire(stored(t, s, stream)), got)
}

func repeatsUnacked(t *testing.T, d Database) {
	t.Helper()
	s, stream := d.open(t), NewStream()
	want := stream.Take(3)
	appendAll(t, s, want)
	first := Subscribe(t, s, store.TailConfig{BatchSize: 5})
	for range 3 {
		requireSame(t, asOnWire(want), first.Receive(t))
	}
	first.Close(t)

	second := Subscribe(t, s, store.TailConfig{BatchSize: 5})
	requireSame(t, asOnWire(want), second.Take(t, 3))
	second.Silent(t)
}

func startsAtBeginning(start store.Start) func(*testing.T, Database) {
	return func(t *testing.T, d Database) {
		t.Helper()
		s, stream := d.open(t), NewStream()
		want := stream.Take(3)
		appendAll(t, s, want)
		tail := Subscribe(t, s, store.TailConfig{BatchSize: 5, Start: start})
		requireSame(t, asOnWire(want), tail.Take(t, 3))
		tail.Silent(t)
	}
}

func startsAtEnd(t *testing.T, d Database) {
	t.Helper()
	s, stream := d.open(t), NewStream()
	config := store.TailConfig{BatchSize: 5, Start: store.StartEnd}
	appendAll(t, s, stream.Take(7))
	first := Subscribe(t, s, config)
	first.Silent(t)
	first.Close(t)
	want := stream.Take(3)
	appendAll(t, s, want)

	second := Subscribe(t, s, config)
	requireSame(t, asOnWire(want), second.Take(t, 3))
	second.Silent(t)
	second.Close(t)
	want = stream.Take(1)
	appendAll(t, s, want)
	requireSame(t, asOnWire(want), Subscribe(t, s, config).Take(t, 1))
}

// missesPosition deletes the position of a relay that has run: what is published already is known by nothing else.
func missesPosition(t *testing.T, d Database) {
	t.Helper()
	s, config := d.open(t), store.TailConfig{BatchSize: 10}
	appendAll(t, s, NewStream().Take(3))
	running := Subscribe(t, s, config)
	running.Take(t, 3)
	d.Execute(t, "DELETE FROM relay_position")
	_, err := running.Next(t.Context(), nil)
	require.ErrorIs(t, err, store.ErrNoPosition)
	_, err = running.Backlog(t.Context())
	require.ErrorIs(t, err, store.ErrNoPosition)
	running.Close(t)

	restarted := Subscribe(t, s, config)
	_, err = restarted.Next(t.Context(), nil)
	require.ErrorIs(t, err, store.ErrNoPosition)
}

// leases are the tails of two processes.
func leases(t *testing.T, d Database) (one, other *store.Tail) {
	t.Helper()
	open := func() *store.Tail {
		tail, err := d.open(t).Tail(t.Context(), store.TailConfig{BatchSize: 2})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, tail.Close()) })
		return tail
	}
	return open(), open()
}

func leasesToOne(t *testing.T, d Database) {
	t.Helper()
	one, other := leases(t, d)
	const task, ttl = "some task", time.Minute

	first, err := one.TakeLease(t.Context(), task, "one", ttl)
	require.NoError(t, err)
	require.Equal(t, store.Fence{Holder: "one", Number: 1}, first)
	_, err = other.TakeLease(t.Context(), task, "other", ttl)
	require.ErrorIs(t, err, store.ErrNotLeader)
	again, err := one.TakeLease(t.Context(), task, "one", ttl)
	require.NoError(t, err)
	require.Equal(t, first, again, "a renewal is the same period")
	_, err = other.TakeLease(t.Context(), "another task", "other", ttl)
	require.NoError(t, err)

	require.NoError(t, other.GiveLease(t.Context(), task, "other"))
	_, err = other.TakeLease(t.Context(), task, "other", ttl)
	require.ErrorIs(t, err, store.ErrNotLeader, "nobody gives back what is another's")
	require.NoError(t, one.GiveLease(t.Context(), task, "one"))
	second, err := other.TakeLease(t.Context(), task, "other", ttl)
	require.NoError(t, err)
	require.Equal(t, store.Fence{Holder: "other", Number: 2}, second)

	require.NoError(t, other.GiveLease(t.Context(), task, "other"))
	third, err := other.TakeLease(t.Context(), task, "other", ttl)
	require.NoError(t, err)
	require.EqualValues(t, 3, third.Number, "what was given back was another period")
	for i := range 50 { // also within the tick of the clock in which it was given back
		holder, next := "other", "one"
		if i%2 == 1 {
			holder, next = next, holder
		}
		require.NoError(t, one.GiveLease(t.Context(), task, holder))
		fence, err := other.TakeLease(t.Context(), task, next, ttl)
		require.NoError(t, err)
		require.EqualValues(t, 4+i, fence.Number)
	}
}

func expiresLeases(t *testing.T, d Database) {
	t.Helper()
	one, other := leases(t, d)
	const task, ttl = "some task", 300 * time.Millisecond
	before := time.Now()
	_, err := one.TakeLease(t.Context(), task, "one", ttl)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		fence, err := other.TakeLease(t.Context(), task, "other", ttl)
		return err == nil && fence.Number == 2
	}, patience, time.Millisecond)
	require.GreaterOrEqual(t, time.Since(before), ttl-time.Millisecond, "SQLite's clock has milliseconds")
	_, err = one.TakeLease(t.Context(), task, "one", ttl)
	require.ErrorIs(t, err, store.ErrNotLeader)
}

func distrustsClocks(t *testing.T, d Database) {
	t.Helper()
	one, other := leases(t, d)
	_, err := one.TakeLease(t.Context(), "some task", "one", time.Hour)
	require.NoError(t, err)
	_, err = other.TakeLease(t.Context(), "some task", "other", time.Second)
	require.NoError(t, err, "no lease is as long as that")
}

// fences lets a leader freeze, whose lease another takes meanwhile.
func fences(t *testing.T, d Database) {
	t.Helper()
	former, leader := leases(t, d)
	want := NewStream().Take(4)
	appendAll(t, d.open(t), want)
	old, err := former.TakeLease(t.Context(), store.RelayTask, "former", time.Millisecond)
	require.NoError(t, err)
	stale, err := former.Next(t.Context(), nil)
	require.NoError(t, err)

	var fence store.Fence
	require.Eventually(t, func() bool {
		fence, err = leader.TakeLease(t.Context(), store.RelayTask, "leader", 50*time.Millisecond)
		return err == nil
	}, patience, time.Millisecond)
	for range 2 {
		batch, err := leader.Next(t.Context(), nil)
		require.NoError(t, err)
		require.NoError(t, leader.Move(t.Context(), batch.Position, fence))
	}

	require.ErrorIs(t, former.Move(t.Context(), stale.Position, old), store.ErrNotLeader)
	batch, err := leader.Next(t.Context(), nil)
	require.NoError(t, err)
	require.Nil(t, batch.Events, "the position is where the leader has moved it")

	require.Eventually(t, func() bool { // and is the leader again
		fence, err = former.TakeLease(t.Context(), store.RelayTask, "former", time.Minute)
		return err == nil
	}, patience, time.Millisecond)
	require.ErrorIs(t, former.Move(t.Context(), stale.Position, old), store.ErrNotLeader, "the fence is of another period")
	require.NoError(t, former.Move(t.Context(), stale.Position, fence))
}

func skipsNothing(t *testing.T, d Database) {
	t.Helper()
	const (
		writers, batches = 8, 25
		perWriter        = batches + 49 // each batch has 1, 2 or 3 events of the writer's stream, and one more
	)
	s := d.open(t)
	tail := Subscribe(t, s, store.TailConfig{BatchSize: 7})
	streams := make([]*Stream, writers)
	results := make([]error, writers)
	var done sync.WaitGroup
	for i := range writers {
		streams[i] = NewStream()
		done.Go(func() {
			for n := range batches {
				batch := append(streams[i].Take(1+n%3), NewStream().Next())
				results[i] = errors.Join(results[i], s.AppendMany(t.Context(), batch))
			}
		})
	}
	perAggregate := make(map[uuid.UUID][]events.Event)
	for _, e := range tail.Take(t, writers*perWriter) {
		perAggregate[e.AggregateID] = append(perAggregate[e.AggregateID], e)
	}
	done.Wait()

	require.NoError(t, errors.Join(results...))
	for _, stream := range streams {
		requireSame(t, asOnWire(stored(t, s, stream)), perAggregate[stream.AggregateID])
	}
	require.Len(t, perAggregate, writers*(batches+1))
	tail.Silent(t)
}

func wakes(t *testing.T, d Database) {
	t.Helper()
	s, stream := d.open(t), NewStream()
	tail, err := s.Tail(t.Context(), store.TailConfig{BatchSize: 1})
	require.NoError(t, err)
	defer func() { require.NoError(t, tail.Close()) }()
	for range 3 {
		require.NoError(t, s.Append(t.Context(), stream.Next()))
		select {
		case <-tail.Wake:
		case <-time.After(patience):
			require.Fail(t, "an append did not wake the tail")
		}
	}
}

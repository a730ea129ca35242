package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
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
}

// RunTail holds stores to [store.Tail], with watermill-sql's own subscriber.
func RunTail(t *testing.T, create func(t *testing.T) Database) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, Database){
		"relays in commit order and in wire form":  relaysInOrder,
		"batches are bounded":                      boundsBatches,
		"large events":                             relaysLargeEvents,
		"relays what other programs insert":        relaysInserts,
		"only own":                                 relaysOnlyOwn,
		"goes on behind the last ack":              goesOn,
		"a nack brings the batch again":            redelivers,
		"what was not acked comes again":           repeatsUnacked,
		"start at the beginning":                   startsAtBeginning(store.StartBeginning),
		"start by default":                         startsAtBeginning(store.StartAuto),
		"start at the end":                         startsAtEnd,
		"one subscriber at a time, and a takeover": takesOver,
		"skips nothing under concurrent commits":   skipsNothing,
		"wakes after an append":                    wakes,
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

// Subscription is a watermill-sql subscriber on a store's tail.
type Subscription struct {
	Messages <-chan *message.Message
	tail     *store.Tail
	sub      *wsql.Subscriber
	closed   sync.Once
	// moved receives a value after the transaction that moved the position has ended.
	moved chan struct{}
}

// Subscribe starts a subscriber on the store's tail. It is closed at the end of the test at the latest.
func Subscribe(t *testing.T, s Tailed, config store.TailConfig) *Subscription {
	t.Helper()
	tail, err := s.Tail(t.Context(), config)
	require.NoError(t, err)
	moved := make(chan struct{}, 1)
	sub, err := wsql.NewSubscriber(tail.DB, wsql.SubscriberConfig{
		SchemaAdapter:  tail.Schema,
		OffsetsAdapter: tail.Offsets,
		ResendInterval: time.Millisecond,
		BackoffManager: backoff{t, moved},
	}, watermill.NopLogger{})
	require.NoError(t, err)
	messages, err := sub.Subscribe(context.WithoutCancel(t.Context()), "events")
	require.NoError(t, err)
	subscription := &Subscription{Messages: messages, tail: tail, sub: sub, moved: moved}
	t.Cleanup(func() { subscription.Close(t) })
	return subscription
}

// backoff polls often, and fails the test at an error. The subscriber calls it after the transaction of each poll.
type backoff struct {
	t     *testing.T
	moved chan<- struct{}
}

func (b backoff) HandleError(_ watermill.LoggerAdapter, noMsg bool, err error) time.Duration {
	switch {
	case err != nil && !errors.Is(err, store.ErrNotLeader):
		b.t.Errorf("tail: %v", err)
		return time.Second
	case err != nil || noMsg:
		return 10 * time.Millisecond
	}
	select {
	case b.moved <- struct{}{}:
	default:
	}
	return 0
}

// Close stops the subscriber and then closes the tail.
func (s *Subscription) Close(t *testing.T) {
	t.Helper()
	s.closed.Do(func() {
		require.NoError(t, s.sub.Close())
		require.NoError(t, s.tail.Close())
	})
}

// Receive waits for the next message and returns it un-acked, with its events.
func (s *Subscription) Receive(t *testing.T) (*message.Message, []events.Event) {
	t.Helper()
	select {
	case m := <-s.Messages:
		require.NotNil(t, m, "the subscription ended")
		return m, batchOf(t, m)
	case <-time.After(patience):
		require.FailNow(t, "no message came")
		return nil, nil
	}
}

// Ack acks a message of the subscription and waits until the position has moved. An ack alone moves nothing: a
// subscriber that is closed before its transaction is committed has the batch delivered again.
func (s *Subscription) Ack(t *testing.T, m *message.Message) {
	t.Helper()
	select {
	case <-s.moved:
	default:
	}
	require.True(t, m.Ack())
	select {
	case <-s.moved:
	case <-time.After(patience):
		require.FailNow(t, "the position did not move after an ack")
	}
}

// Take receives and acks until it has n events; the position is behind them then.
func (s *Subscription) Take(t *testing.T, n int) []events.Event {
	t.Helper()
	var taken []events.Event
	for len(taken) < n {
		m, batch := s.Receive(t)
		s.Ack(t, m)
		taken = append(taken, batch...)
	}
	require.Len(t, taken, n)
	return taken
}

// Silent checks that no message comes for a while.
func (s *Subscription) Silent(t *testing.T) {
	t.Helper()
	select {
	case m := <-s.Messages:
		require.Fail(t, "a message came", "%d events", len(batchOf(t, m)))
	case <-time.After(300 * time.Millisecond):
	}
}

func batchOf(t *testing.T, m *message.Message) []events.Event {
	t.Helper()
	var bodies []json.RawMessage
	require.NoError(t, json.Unmarshal(m.Payload, &bodies))
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
		m, batch := tail.Receive(t)
		got = append(got, batch...)
		var some []map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(m.Payload, &some))
		bodies = append(bodies, some...)
		tail.Ack(t, m)
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
		m, batch := tail.Receive(t)
		require.LessOrEqual(t, len(batch), 10)
		got = append(got, batch...)
		tail.Ack(t, m)
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
		m, batch := tail.Receive(t)
		require.Less(t, len(m.Payload), 4*size)
		got = append(got, batch...)
		tail.Ack(t, m)
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

func redelivers(t *testing.T, d Database) {
	t.Helper()
	s, stream := d.open(t), NewStream()
	want := stream.Take(3)
	appendAll(t, s, want)
	tail := Subscribe(t, s, store.TailConfig{BatchSize: 5})
	for range 3 {
		m, batch := tail.Receive(t)
		require.True(t, m.Nack())
		requireSame(t, asOnWire(want), batch)
	}
	requireSame(t, asOnWire(want), tail.Take(t, 3))
	tail.Silent(t)
}

func repeatsUnacked(t *testing.T, d Database) {
	t.Helper()
	s, stream := d.open(t), NewStream()
	want := stream.Take(3)
	appendAll(t, s, want)
	first := Subscribe(t, s, store.TailConfig{BatchSize: 5})
	_, batch := first.Receive(t)
	requireSame(t, asOnWire(want), batch)
	first.Close(t)

	requireSame(t, asOnWire(want), Subscribe(t, s, store.TailConfig{BatchSize: 5}).Take(t, 3))
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

func takesOver(t *testing.T, d Database) {
	t.Helper()
	s, stream := d.open(t), NewStream()
	config := store.TailConfig{BatchSize: 2}
	first := Subscribe(t, s, config)
	appendAll(t, s, stream.Take(4))
	m, got := first.Receive(t)
	second := Subscribe(t, d.open(t), config)

	second.Silent(t) // while the first holds a batch
	first.Ack(t, m)
	leader, m, batch := receiveAny(t, first, second)
	got = append(got, batch...)
	leader.Ack(t, m)
	first.Silent(t)
	first.Close(t)
	appendAll(t, s, stream.Take(1))
	got = append(got, second.Take(t, 1)...)
	second.Silent(t)

	requireSame(t, asOnWire(stored(t, s, stream)), got)
}

func receiveAny(t *testing.T, one, other *Subscription) (*Subscription, *message.Message, []events.Event) {
	t.Helper()
	select {
	case m := <-one.Messages:
		return one, m, batchOf(t, m)
	case m := <-other.Messages:
		return other, m, batchOf(t, m)
	case <-time.After(patience):
		require.FailNow(t, "no message came")
		return nil, nil, nil
	}
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

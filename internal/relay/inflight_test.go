package relay_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/inprocess"
	"github.com/healz/worker/internal/relay"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
	"github.com/healz/worker/internal/test/testservers"
)

// A bus inside the process acks an event when it is handled.

func onEachStore(t *testing.T, test func(*testing.T, backend)) {
	t.Helper()
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		test(t, openStore(t, filepath.Join(t.TempDir(), "test.db")))
	})
	t.Run("Postgres", func(t *testing.T) {
		t.Parallel()
		s, err := postgres.Open(t.Context(), testservers.Postgres(t), postgres.Options{})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, s.Close()) })
		require.NoError(t, s.Migrate(t.Context()))
		test(t, s)
	})
}

// inProcess is a bus with one subscriber.
type inProcess struct {
	*inprocess.Bus

	messages    <-chan *message.Message
	unsubscribe context.CancelFunc
	published   atomic.Int64
	before      chan func() // what to do before the next batch
}

func newInProcess(t *testing.T) *inProcess {
	t.Helper()
	b := &inProcess{Bus: inprocess.New(3), before: make(chan func(), 1)}
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	b.subscribe(t)
	return b
}

func (b *inProcess) subscribe(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	b.unsubscribe = cancel
	var err error
	b.messages, err = b.Subscribe(ctx, inprocess.Topic)
	require.NoError(t, err)
}

func (b *inProcess) PublishBatch(ctx context.Context, batch []*message.Message) error {
	select {
	case do := <-b.before:
		do()
	default:
	}
	b.published.Add(int64(len(batch)))
	return b.Bus.PublishBatch(ctx, batch)
}

// next is the message that a handler gets next.
func (b *inProcess) next(t *testing.T) *message.Message {
	t.Helper()
	select {
	case m := <-b.messages:
		return m
	case <-time.After(patience):
		require.Fail(t, "no message came")
		return nil
	}
}

// handle acks the messages that come next, and returns their ids.
func (b *inProcess) handle(t *testing.T, n int) (ids []string) {
	t.Helper()
	for range n {
		m := b.next(t)
		ids = append(ids, m.UUID)
		m.Ack()
	}
	return ids
}

func TestASlowHandlerHoldsUpNoOtherAggregate(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, s backend) {
		t.Helper()
		b, one, other := newInProcess(t), storetest.NewStream(), storetest.NewStream()
		r, stop := startPatiently(t, s, b, 0)
		slow := appendTo(t, s, one, 2)
		inHand := b.next(t)
		require.Equal(t, slow[0], inHand.UUID)
		for range 30 { // batches of up to 10
			require.Equal(t, appendTo(t, s, other, 1), b.handle(t, 1))
		}
		require.Equal(t, relay.Relaying, stateOf(r))
		inHand.Ack()
		require.Equal(t, slow[1:], b.handle(t, 1))
		require.Eventually(t, func() bool { return stateOf(r) == relay.Idle }, patience, tick)
		stop(patience)

		_, stop = startPatiently(t, s, b, 0)
		require.Equal(t, appendTo(t, s, other, 1), b.handle(t, 1), "the position is behind all others")
		stop(patience)
	})
}

func TestWhatIsInFlightComesAgainAfterAStop(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, s backend) {
		t.Helper()
		b, one, other := newInProcess(t), storetest.NewStream(), storetest.NewStream()
		_, stop := startPatiently(t, s, b, 0)
		slow := appendTo(t, s, one, 2)
		inHand := b.next(t)
		handled := appendTo(t, s, other, 3)
		require.Equal(t, handled, b.handle(t, 3))
		stop(10 * time.Millisecond)
		inHand.Nack()

		_, stop = startPatiently(t, s, b, 0)
		var again []string
		for len(again) == 0 || again[len(again)-1] != handled[2] {
			again = append(again, b.handle(t, 1)...)
		}
		for len(again) < 5 {
			again = append(again, b.handle(t, 1)...)
		}
		require.ElementsMatch(t, append(slow, handled...), again)
		stop(patience)
	})
}

// A worker stops its consumers and its relay at once: what is in hand is finished, and what waits is given back.
func TestAStopFinishesWhatIsInHand(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "test.db"))
	b, stream := newInProcess(t), storetest.NewStream()
	_, stop := startPatiently(t, s, b, 0)
	ids := appendTo(t, s, stream, 1)
	inHand := b.next(t)
	ids = append(ids, appendTo(t, s, stream, 2)...)
	require.Eventually(t, func() bool { return b.published.Load() == 3 }, patience, tick)
	stopWaitsFor(t, stop, inHand, b.unsubscribe)

	b.subscribe(t)
	_, stop = startPatiently(t, s, b, 0)
	require.Equal(t, ids[1:], b.handle(t, 2), "what was finished does not come again")
	stop(patience)
}

// stopWaitsFor requires that a stop, after which meanwhile is called, waits for a message in hand.
func stopWaitsFor(t *testing.T, stop func(time.Duration), inHand *message.Message, meanwhile func()) {
	t.Helper()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop(patience)
	}()
	meanwhile()
	select {
	case <-stopped:
		require.Fail(t, "stopped with an event in hand")
	case <-time.After(50 * time.Millisecond):
	}
	inHand.Ack()
	<-stopped
}

func TestWhatTheBusGivesBackIsPublishedAgainInOrder(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "test.db"))
	b, stream := newInProcess(t), storetest.NewStream()
	r, stop := startPatiently(t, s, b, 0)
	ids := appendTo(t, s, stream, 3)
	require.Equal(t, ids[:1], b.handle(t, 1))
	inHand := b.next(t)
	b.unsubscribe()
	inHand.Nack()
	require.Eventually(t, func() bool { return stateOf(r) == relay.Failing }, patience, tick)
	b.subscribe(t)
	again := b.handle(t, 2)
	if again[0] == ids[0] { // it was in one batch with the others
		again = append(again[1:], b.handle(t, 1)...)
	}
	require.Equal(t, ids[1:], again)
	require.Eventually(t, func() bool { return stateOf(r) == relay.Idle }, patience, tick)
	stop(patience)
}

// An event is given back while the relay publishes the next one, which the bus does not take.
func TestWhatTheBusGivesBackComesBeforeWhatIsBeingPublished(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "test.db"))
	b, stream := newInProcess(t), storetest.NewStream()
	r, stop := startPatiently(t, s, b, 0)
	ids := appendTo(t, s, stream, 1)
	inHand := b.next(t)
	b.before <- func() {
		b.unsubscribe()
		inHand.Nack()
		for range b.messages { // until it has ended
		}
	}
	ids = append(ids, appendTo(t, s, stream, 1)...)
	require.Eventually(t, func() bool { return stateOf(r) == relay.Failing }, patience, tick)
	b.subscribe(t)
	require.Equal(t, ids, b.handle(t, 2))
	require.Eventually(t, func() bool { return stateOf(r) == relay.Idle }, patience, tick)
	stop(patience)
}

// While a handler works on an event, reads fail. A stop waits for the handler all the same.
func TestAStopOfAFailingRelayFinishesWhatIsInHand(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "test.db"))
	b, stream := newInProcess(t), storetest.NewStream()
	r, stop := startPatiently(t, s, b, 0)
	ids := appendTo(t, s, stream, 2)
	b.handle(t, 1)
	inHand := b.next(t)
	execute(t, s, "ALTER TABLE events RENAME TO away")
	require.Eventually(t, func() bool { return stateOf(r) == relay.Failing }, patience, tick)
	execute(t, s, "ALTER TABLE away RENAME TO events")
	stopWaitsFor(t, stop, inHand, func() {})
	_, stop = startPatiently(t, s, b, 0)
	require.Equal(t, appendTo(t, s, stream, 1), b.handle(t, 1), "after %v", ids)
	stop(patience)
}

// The administrator deletes the position while an event is in hand, and sets one: the relay says so, and begins there.
func TestPositionThatIsDeletedWhileAnEventIsInHand(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "test.db"))
	b, stream := newInProcess(t), storetest.NewStream()
	r, stop := startPatiently(t, s, b, 0)
	ids := appendTo(t, s, stream, 1)
	inHand := b.next(t)
	execute(t, s, "DELETE FROM relay_position")
	inHand.Ack()
	require.Eventually(t, func() bool {
		state, err := r.Status()
		return state == relay.Failing && errors.Is(err, store.ErrNoPosition)
	}, patience, tick)
	execute(t, s, "INSERT INTO relay_position VALUES (1, 0)")
	require.Equal(t, ids, b.handle(t, 1))
	require.Eventually(t, func() bool { return stateOf(r) == relay.Idle }, patience, tick)
	stop(patience)
}

// The lease is lost while events are in flight: those that no handler has are published again, in order.
func TestALeaseThatIsLostWithEventsInFlight(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "test.db"))
	b, stream := newInProcess(t), storetest.NewStream()
	r, stop := startPatiently(t, s, b, 0)
	ids := appendTo(t, s, stream, 3)
	inHand := b.next(t)
	execute(t, s, "UPDATE leases SET holder = 'another', fence = fence + 1, expires_at = (unixepoch('subsec') + 3) * 1000000")
	require.Eventually(t, func() bool { return stateOf(r) == relay.Standby }, patience, tick)
	select {
	case m := <-b.messages:
		require.Fail(t, "delivered under a lost lease", m.UUID)
	case <-time.After(50 * time.Millisecond):
	}
	inHand.Ack()
	require.Equal(t, ids, b.handle(t, 3), "the first too, as the position was not moved")
	require.Eventually(t, func() bool { return stateOf(r) == relay.Idle }, patience, tick)
	stop(patience)
}

// A batch of which the bus takes a part, and the lease is lost: what was taken is not confirmed.
func TestATakenPartOfABatchIsNotConfirmed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, want := newMemory(10)
		p := &takingPublisher{}
		tail := m.tail()
		take := tail.TakeLease
		tail.TakeLease = func(ctx context.Context, task, holder string, ttl time.Duration) (store.Fence, error) {
			if p.lost.Load() {
				return store.Fence{}, store.ErrNotLeader
			}
			return take(ctx, task, holder, ttl)
		}
		_, end := runPatiently(t, tail, p, 0)
		time.Sleep(time.Minute) //nolint:forbidigo // the bubble's time
		require.EqualValues(t, 10, m.moved.Load())
		require.Equal(t, append(want[:5:5], want...), p.ids())
		end()
	})
}

// takingPublisher fails at first, so that the next batch is half as large. That it takes. Meanwhile the lease is lost.
type takingPublisher struct {
	publisher

	calls int
	lost  atomic.Bool
}

func (p *takingPublisher) PublishBatch(ctx context.Context, batch []*message.Message) error {
	switch p.calls++; p.calls {
	case 1:
		return errors.New("it fails at first")
	case 2:
		for _, m := range batch {
			p.published = append(p.published, m.UUID)
		}
		return nil
	case 3:
		p.lost.Store(true)
		<-ctx.Done()
		p.lost.Store(false)
		return ctx.Err()
	default:
		return p.publisher.PublishBatch(ctx, batch)
	}
}

func execute(t *testing.T, s backend, statement string) {
	t.Helper()
	require.NoError(t, s.SQL().Write(t.Context(), "test", func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, statement)
		return err
	}))
}

func TestWhatIsInFlightIsBounded(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "test.db"))
	b, one := newInProcess(t), storetest.NewStream()
	_, stop := startPatiently(t, s, b, 0)
	require.NoError(t, s.AppendMany(t.Context(), one.Take(1)))
	b.next(t)
	require.NoError(t, s.AppendMany(t.Context(), one.Take(1500)))
	require.Eventually(t, func() bool { return b.published.Load() >= 1000 }, patience, tick)
	require.Never(t, func() bool { return b.published.Load() > 1010 }, 200*time.Millisecond, tick, "a batch has up to 10")
	stop(0)
}

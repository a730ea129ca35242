package relay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/lease"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/relay"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/sqlite"
	"github.com/healz/worker/internal/store/storetest"
	"github.com/healz/worker/internal/test/testservers"
)

const (
	patience = 90 * time.Second
	tick     = 5 * time.Millisecond
)

// publisher keeps what it is given. It can be made to fail and to take its time at a given moment, which no real bus can.
type publisher struct {
	mu        sync.Mutex
	failure   error
	refused   string // the id of an event that it never takes
	published []string
	// begun, when it is there, receives at the beginning of each batch, which then waits for proceed or its context.
	begun, proceed chan struct{}
}

func (p *publisher) PublishBatch(ctx context.Context, batch []*message.Message) error {
	if p.begun != nil {
		p.begun <- struct{}{}
		select {
		case <-p.proceed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failure != nil {
		return p.failure
	}
	for i, m := range batch {
		if m.UUID == p.refused {
			return &bus.RefusedError{Index: i, Err: errors.New("too large")}
		}
	}
	for _, m := range batch {
		p.published = append(p.published, m.UUID)
		m.Ack()
	}
	return nil
}

func (p *publisher) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failure = err
}

func (p *publisher) ids() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.published...)
}

func TestMain(m *testing.M) { testservers.Main(m) }

func openStore(t *testing.T, path string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	require.NoError(t, s.Migrate(t.Context()))
	return s
}

// start runs a relay. stop stops it within the given time and closes its tail.
func start(t *testing.T, s backend, p *publisher) (r *relay.Relay, stop func(time.Duration)) {
	t.Helper()
	return startPatiently(t, s, p, patience)
}

// backend is what a relay needs of a store.
type backend interface {
	storetest.Tailed
	SQL() store.SQL
}

func startPatiently(t *testing.T, s backend, p bus.BatchPublisher, patience time.Duration) (r *relay.Relay, stop func(time.Duration)) {
	t.Helper()
	tail, err := s.Tail(t.Context(), store.TailConfig{BatchSize: 10, Start: store.StartAuto})
	require.NoError(t, err)
	r = relay.New(tail, lease.New(tail, store.RelayTask), p, relay.Config{
		Observer: observe.None{},
		Poll:     50 * time.Millisecond, Patience: patience, Refused: deadletter.NewTable(s.SQL()),
	}, slog.New(slog.DiscardHandler))
	ended, end := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { r.Run(ended) })
	return r, func(grace time.Duration) {
		ctx, cancel := context.WithTimeout(ended, grace)
		defer cancel()
		r.Stop(ctx)
		end()
		running.Wait()
		require.NoError(t, tail.Close())
	}
}

// appendTo appends n events of one stream and returns their ids.
func appendTo(t *testing.T, s backend, stream *storetest.Stream, n int) []string {
	t.Helper()
	var ids []string
	for range n {
		e := stream.Next()
		require.NoError(t, s.Append(t.Context(), e))
		ids = append(ids, e.ID.String())
	}
	return ids
}

func stateOf(r *relay.Relay) relay.State {
	state, _ := r.Status()
	return state
}

func TestRelayPublishesWhatIsAppendedAndGoesOnAfterAStop(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "test.db"))
	p, stream := &publisher{}, storetest.NewStream()
	want := appendTo(t, s, stream, 25)
	r, stop := start(t, s, p)
	want = append(want, appendTo(t, s, stream, 3)...)
	require.Eventually(t, func() bool { return len(p.ids()) == len(want) }, patience, tick)
	require.Eventually(t, func() bool { return stateOf(r) == relay.Idle }, patience, tick)
	stop(patience)
	require.Equal(t, relay.Stopped, stateOf(r))

	want = append(want, appendTo(t, s, stream, 3)...)
	_, stop = start(t, s, p)
	require.Eventually(t, func() bool { return len(p.ids()) == len(want) }, patience, tick)
	stop(patience)
	require.Equal(t, want, p.ids(), "in order, each once")
}

func TestRelayTriesAgainWhileTheBusFails(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "test.db"))
	p := &publisher{failure: errors.New("the bus is away")}
	r, stop := start(t, s, p)
	want := appendTo(t, s, storetest.NewStream(), 1)
	require.Eventually(t, func() bool { return stateOf(r) == relay.Failing }, patience, tick)
	_, err := r.Status()
	require.ErrorContains(t, err, "the bus is away")
	p.fail(nil)
	require.Eventually(t, func() bool { return stateOf(r) == relay.Idle }, patience, tick)
	require.Equal(t, want, p.ids())
	_, err = r.Status()
	require.NoError(t, err)
	stop(patience)
}

func TestRelayStopsAfterTheBatchInHand(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "test.db"))
	p := &publisher{begun: make(chan struct{}), proceed: make(chan struct{})}
	stream := storetest.NewStream()
	want := appendTo(t, s, stream, 1)
	_, stop := start(t, s, p)
	<-p.begun
	appendTo(t, s, stream, 1)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop(patience)
	}()
	select {
	case p.proceed <- struct{}{}:
	case <-stopped:
		require.Fail(t, "stopped with a batch in hand")
	}
	<-stopped
	require.Equal(t, want, p.ids(), "the batch in hand, and no other")
}

func TestRelayGivesUpTheBatchInHandWhenTheGracePeriodEnds(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "test.db"))
	p := &publisher{begun: make(chan struct{}), proceed: make(chan struct{})}
	want := appendTo(t, s, storetest.NewStream(), 1)
	_, stop := start(t, s, p)
	<-p.begun
	stop(10 * time.Millisecond)
	require.Empty(t, p.ids())

	p = &publisher{}
	_, stop = start(t, s, p)
	require.Eventually(t, func() bool { return len(p.ids()) == 1 }, patience, tick, "it comes again")
	require.Equal(t, want, p.ids())
	stop(patience)
}

func TestOneRelaysAndTheOtherTakesOver(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "test.db")
	first, second := openStore(t, path), openStore(t, path)
	p, stream := &publisher{}, storetest.NewStream()
	r1, stop1 := start(t, first, p)
	require.Eventually(t, func() bool { return stateOf(r1) == relay.Idle }, patience, tick)
	r2, stop2 := start(t, second, p)
	require.Eventually(t, func() bool { return stateOf(r2) == relay.Standby }, patience, tick)
	want := appendTo(t, first, stream, 5)
	require.Eventually(t, func() bool { return len(p.ids()) == 5 }, patience, tick)
	stop1(patience)
	want = append(want, appendTo(t, second, stream, 5)...)
	require.Eventually(t, func() bool { return len(p.ids()) == 10 }, patience, tick)
	stop2(patience)
	require.Equal(t, want, p.ids())
}

func TestRelayWithoutItsPositionFailsUntilThatIsRestored(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "test.db"))
	p, stream := &publisher{}, storetest.NewStream()
	r, stop := start(t, s, p)
	want := appendTo(t, s, stream, 3)
	require.Eventually(t, func() bool { return len(p.ids()) == 3 && stateOf(r) == relay.Idle }, patience, tick)
	execute(t, s, "DELETE FROM relay_position")
	require.Eventually(t, func() bool {
		state, err := r.Status()
		return state == relay.Failing && errors.Is(err, store.ErrNoPosition)
	}, patience, tick)
	want = append(want, appendTo(t, s, stream, 1)...)
	execute(t, s, "INSERT INTO relay_position VALUES (1, 3)")
	require.Eventually(t, func() bool { return stateOf(r) == relay.Idle && len(p.ids()) == 4 }, patience, tick)
	require.Equal(t, want, p.ids())
	stop(patience)
}

// An event that the bus will never take does not hold back those behind it, and is not lost.
func TestWhatTheBusRefusesRestsInTheStore(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "test.db"))
	ids := appendTo(t, s, storetest.NewStream(), 5)
	p := &publisher{refused: ids[2]}
	_, stop := start(t, s, p)
	require.Eventually(t, func() bool { return len(p.ids()) == 4 }, patience, tick)
	stop(patience)
	require.Equal(t, []string{ids[0], ids[1], ids[3], ids[4]}, p.ids())
	n := 0
	for l, err := range deadletter.NewTable(s.SQL()).List(t.Context(), deadletter.Filter{}) {
		require.NoError(t, err)
		n++
		require.Equal(t, ids[2], l.Event.ID.String())
		require.Equal(t, "refused by the bus: too large", l.Reason)
	}
	require.Equal(t, 1, n)
}

// slowPublisher acks a message each interval, and fails at every nth one (0 is never), as a bus does that is slow and
// unreliable.
type slowPublisher struct {
	publisher
	interval time.Duration
	nth      int
	sizes    []int
	count    int
}

func (p *slowPublisher) PublishBatch(ctx context.Context, batch []*message.Message) error {
	p.mu.Lock()
	p.sizes = append(p.sizes, len(batch))
	p.mu.Unlock()
	for _, m := range batch {
		select {
		case <-time.After(p.interval):
		case <-ctx.Done():
			return ctx.Err()
		}
		if p.count++; p.nth > 0 && p.count%p.nth == 0 {
			return errors.New("it fails now and then")
		}
		p.mu.Lock()
		p.published = append(p.published, m.UUID)
		p.mu.Unlock()
		m.Ack()
	}
	return nil
}

// Each confirm renews the relay's patience, and what is confirmed is not published again.
func TestRelayGoesOnBehindWhatASlowBusHasConfirmed(t *testing.T) {
	t.Parallel()
	s := openStore(t, filepath.Join(t.TempDir(), "test.db"))
	want := appendTo(t, s, storetest.NewStream(), 10)
	p := &slowPublisher{interval: 250 * time.Millisecond, nth: 3}
	r, stop := startPatiently(t, s, p, 1500*time.Millisecond) // the batch takes longer than that
	require.Eventually(t, func() bool { return len(p.ids()) >= 10 && stateOf(r) == relay.Idle }, patience, tick)
	stop(patience)
	require.Equal(t, want, p.ids(), "each once")
	require.Equal(t, 10, p.sizes[0])
	require.Equal(t, []int{5, 2, 4}, p.sizes[1:4], "half after a failure, twice after a success")
}

// memory is a tail of a store that has no other worker: batches of up to 10 events, of which some are moved behind.
type memory struct {
	events []string
	moved  atomic.Int64
}

func (m *memory) tail() *store.Tail {
	return &store.Tail{
		Next: func(context.Context, *store.Position) (store.Batch, error) {
			moved := int(m.moved.Load())
			rest := m.events[moved:min(moved+10, len(m.events))]
			if len(rest) == 0 {
				return store.Batch{}, nil
			}
			return store.Batch{Events: []byte("[" + strings.Join(rest, ",") + "]"), Position: store.Position{ID: int64(moved + len(rest))}}, nil
		},
		Move: func(_ context.Context, behind store.Position, _ store.Fence) error {
			m.moved.Store(behind.ID)
			return nil
		},
		TakeLease: func(_ context.Context, _, holder string, _ time.Duration) (store.Fence, error) {
			return store.Fence{Holder: holder, Number: 1}, nil
		},
		GiveLease: func(context.Context, string, string) error { return nil },
	}
}

func newMemory(n int) (m *memory, ids []string) {
	m = &memory{}
	for range n {
		id := uuid.NewString()
		ids = append(ids, id)
		m.events = append(m.events, fmt.Sprintf(`{"event_id":%q}`, id))
	}
	return m, ids
}

// A bus that needs more time for one confirm than the relay has patience still gets every event, once each: the patience
// grows, falls only when the bus is faster, and what is confirmed is kept over a yield.
func TestRelayAdvancesOnABusThatIsSlowerThanItsPatience(t *testing.T) {
	t.Parallel()
	for name, interval := range map[string]time.Duration{
		"a bit slower": 600 * time.Millisecond, "7 times slower": 2800 * time.Millisecond,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m, want := newMemory(25)
				p := &slowPublisher{interval: interval}
				r, end := runPatiently(t, m.tail(), p, 400*time.Millisecond)
				time.Sleep(30*interval + 30*time.Second) //nolint:forbidigo // the bubble's time
				require.Equal(t, want, p.ids(), "each once")
				require.Equal(t, relay.Idle, stateOf(r))
				require.LessOrEqual(t, len(p.sizes), 20, "few attempts are in vain")
				end()
			})
		})
	}
	t.Run("confirms that stop in the midst of each attempt", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			m, want := newMemory(25)
			p := &stallingPublisher{}
			_, end := runPatiently(t, m.tail(), p, 400*time.Millisecond)
			time.Sleep(10 * time.Minute) //nolint:forbidigo // the bubble's time
			require.Equal(t, want, p.ids(), "each once")
			end()
		})
	})
}

// stallingPublisher confirms one event of each batch, and then none.
type stallingPublisher struct{ publisher }

func (p *stallingPublisher) PublishBatch(ctx context.Context, batch []*message.Message) error {
	if err := p.publisher.PublishBatch(ctx, batch[:1]); err != nil || len(batch) == 1 {
		return err
	}
	batch[0].Ack()
	<-ctx.Done()
	return ctx.Err()
}

// What /readyz tells is the reason, not how the relay ends an attempt.
func TestRelayThatGetsNoConfirmSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, _ := newMemory(2)
		p := &slowPublisher{interval: time.Hour}
		r, end := runPatiently(t, m.tail(), p, 15*time.Second)
		time.Sleep(16 * time.Second) //nolint:forbidigo // the bubble's time
		state, err := r.Status()
		require.Equal(t, relay.Failing, state)
		require.EqualError(t, err, "publish 2 events: no confirm within 15s")
		end()
	})
}

// latePublisher confirms each batch of up to two when the relay's patience has ended.
type latePublisher struct{ publisher }

func (p *latePublisher) PublishBatch(ctx context.Context, batch []*message.Message) error {
	if ctx.Err() != nil {
		return errors.New("begun when the time was up")
	}
	if len(batch) > 2 {
		return errors.New("too many at once")
	}
	<-ctx.Done()
	return p.publisher.PublishBatch(ctx, batch)
}

func TestRelayBeginsNoAttemptWhenTheTimeWasUpAtTheLastConfirm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, want := newMemory(8)
		p := &latePublisher{}
		r, end := runPatiently(t, m.tail(), p, 15*time.Second)
		failed := false
		for range 100 {
			time.Sleep(time.Second) //nolint:forbidigo // the bubble's time
			_, err := r.Status()
			failed = failed || err != nil && strings.Contains(err.Error(), "begun when")
		}
		require.False(t, failed)
		require.Equal(t, want[:2], p.ids()[:2])
		end()
	})
}

// A worker that cannot reach the bus lets another relay.
func TestARelayThatCannotPublishGivesWay(t *testing.T) {
	t.Parallel()
	url := testservers.Postgres(t)
	open := func() *postgres.Store {
		s, err := postgres.Open(t.Context(), url, postgres.Options{})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, s.Close()) })
		require.NoError(t, s.Migrate(t.Context()))
		return s
	}
	s := open()
	want := appendTo(t, s, storetest.NewStream(), 3)
	away, near := &publisher{failure: errors.New("the bus is away")}, &publisher{}
	r1, stop1 := startPatiently(t, s, away, time.Second)
	require.Eventually(t, func() bool { return stateOf(r1) == relay.Failing }, patience, tick)
	_, stop2 := startPatiently(t, open(), near, time.Second)
	require.Eventually(t, func() bool { return len(near.ids()) == 3 }, patience, tick)
	require.Equal(t, want, near.ids())
	stop1(patience)
	stop2(patience)
}

// The lease is renewed on other connections: it outlives a read on one that is half-open, of which no error ever comes.
func TestReadOnAHalfOpenConnection(t *testing.T) {
	t.Parallel()
	s, err := postgres.Open(t.Context(), halfOpen(t, testservers.Postgres(t), "The next batch for the relay"), postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	require.NoError(t, s.Migrate(t.Context()))
	want, p := appendTo(t, s, storetest.NewStream(), 3), &publisher{}
	began := time.Now()
	r, stop := start(t, s, p)
	require.Eventually(t, func() bool { return stateOf(r) == relay.Failing }, patience, tick)
	require.Less(t, time.Since(began), 30*time.Second)
	_, err = r.Status()
	require.ErrorContains(t, err, "read a batch of events")
	require.Eventually(t, func() bool { return stateOf(r) == relay.Idle }, patience, tick)
	require.Equal(t, want, p.ids())
	stop(patience)
}

// halfOpen returns the URL of a proxy to the server of a URL. The first connection on which a client sends the text stays
// open, and nothing passes any more.
func halfOpen(t *testing.T, server, text string) string {
	t.Helper()
	u, err := url.Parse(server)
	require.NoError(t, err)
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	target, ctx := u.Host, t.Context()
	u.Host = listener.Addr().String()
	var running sync.WaitGroup
	var silent atomic.Bool
	running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := new(net.Dialer).DialContext(ctx, "tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			context.AfterFunc(ctx, func() { _, _ = client.Close(), server.Close() })
			running.Go(func() { _, _ = io.Copy(client, server); _ = client.Close() })
			running.Go(func() {
				defer server.Close()
				for buffer := make([]byte, 64<<10); ; {
					n, err := client.Read(buffer)
					if err != nil {
						return
					}
					if bytes.Contains(buffer[:n], []byte(text)) && silent.CompareAndSwap(false, true) {
						_, _ = io.Copy(io.Discard, client)
						return
					}
					if _, err := server.Write(buffer[:n]); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { _ = listener.Close(); running.Wait() })
	return u.String()
}

// runOn runs a relay on a tail that is not a store's, until end, which waits for it.
func runOn(t *testing.T, tail *store.Tail) (r *relay.Relay, end func()) {
	t.Helper()
	return runPatiently(t, tail, &publisher{}, 0)
}

func runPatiently(t *testing.T, tail *store.Tail, p bus.BatchPublisher, patience time.Duration) (r *relay.Relay, end func()) {
	t.Helper()
	r = relay.New(tail, lease.New(tail, store.RelayTask), p, relay.Config{
		Observer: observe.None{}, Poll: time.Second, Patience: patience,
	}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	return r, func() { cancel(); running.Wait() }
}

// A worker whose router ends by itself does not stop its relay, but ends the context.
func TestRelayThatStandsByEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, end := runOn(t, &store.Tail{
			TakeLease: func(context.Context, string, string, time.Duration) (store.Fence, error) {
				return store.Fence{}, store.ErrNotLeader
			},
		})
		synctest.Wait()
		require.Equal(t, relay.Standby, stateOf(r))
		end()
	})
}

// The lease is renewed on other connections, so nobody would follow a leader that waits for a dead one.
func TestMoveWithoutAnAnswerIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		moves, moved := 0, make(chan struct{})
		r, end := runOn(t, &store.Tail{
			Next: func(context.Context, *store.Position) (store.Batch, error) {
				if moves > 1 {
					return store.Batch{}, nil
				}
				return store.Batch{Events: []byte("[]")}, nil
			},
			Move: func(ctx context.Context, _ store.Position, _ store.Fence) error {
				if moves++; moves == 1 {
					<-ctx.Done()
					return ctx.Err()
				}
				close(moved)
				return nil
			},
			TakeLease: func(_ context.Context, _, holder string, _ time.Duration) (store.Fence, error) {
				return store.Fence{Holder: holder, Number: 1}, nil
			},
			GiveLease: func(context.Context, string, string) error { return nil },
		})
		began := time.Now()
		<-moved
		require.Less(t, time.Since(began), 15*time.Second)
		time.Sleep(2 * time.Second) //nolint:forbidigo // the bubble's time
		require.Equal(t, relay.Idle, stateOf(r))
		end()
	})
}

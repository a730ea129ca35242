package amqp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/oklog/ulid/v2"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/sqlite"
	"github.com/healz/worker/internal/test/heap"
	"github.com/healz/worker/internal/test/testservers"
)

// newTable returns the table of dead letters of a new database.
func newTable(tb testing.TB) *deadletter.Table {
	tb.Helper()
	s, err := sqlite.Open(tb.Context(), filepath.Join(tb.TempDir(), "healz.db"))
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, s.Close()) })
	require.NoError(tb, s.Migrate(tb.Context()))
	return deadletter.NewTable(s.SQL())
}

func logger(tb testing.TB) *slog.Logger {
	tb.Helper()
	return slog.New(slog.NewTextHandler(tb.Output(), nil))
}

// takeIn drains the failed queue into a table, and returns how many letters that were.
func takeIn(tb testing.TB, c *amqp.Connection, table amqp.LetterTable) int {
	tb.Helper()
	n, err := amqp.NewIngester(c, table, logger(tb)).Drain(tb.Context())
	require.NoError(tb, err)
	return n
}

// waiting are the letters of a table that wait, in the order of their failures.
func waiting(tb testing.TB, table *deadletter.Table) []deadletter.Letter {
	tb.Helper()
	return collect(tb, table.Read(tb.Context(), deadletter.Filter{}))
}

// lettersOf are the letters that lie in the failed queue, by way of a new table.
func lettersOf(tb testing.TB, c *amqp.Connection) []deadletter.Letter {
	tb.Helper()
	table := newTable(tb)
	n := takeIn(tb, c, table)
	letters := waiting(tb, table)
	require.Len(tb, letters, n)
	return letters
}

// release replays letters to a destination, all under one id of a replay.
func release(tb testing.TB, q *amqp.FailedQueue, to deadletter.Destination, letters ...deadletter.Letter) []deadletter.Sending {
	tb.Helper()
	replayID := ulid.Make().String()
	releases := make([]deadletter.Release, len(letters))
	for i, l := range letters {
		releases[i] = deadletter.Release{Letter: l, ReplayID: replayID, To: to}
	}
	sendings, err := q.PublishLetters(tb.Context(), releases)
	require.NoError(tb, err)
	require.Len(tb, sendings, len(letters))
	return sendings
}

// run runs an ingester until stop is called or the test ends.
func run(tb testing.TB, c *amqp.Connection, table amqp.LetterTable, l *slog.Logger) (stop func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(tb.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		amqp.NewIngester(c, table, l).Run(ctx)
	}()
	stop = func() {
		cancel()
		<-ended
	}
	tb.Cleanup(stop)
	return stop
}

// log collects what is logged.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newLog() (*log, *slog.Logger) {
	l := &log{}
	return l, slog.New(slog.NewTextHandler(l, nil))
}

// faulty is a table with a fault: ingest is called in place of the table's, with the number of the call.
type faulty struct {
	*deadletter.Table

	ingest func(ctx context.Context, call int, arrivals []deadletter.Arrival) error

	mu    sync.Mutex
	calls int
}

func (f *faulty) Ingest(ctx context.Context, arrivals []deadletter.Arrival) error {
	f.mu.Lock()
	f.calls++
	call := f.calls
	f.mu.Unlock()
	return f.ingest(ctx, call, arrivals)
}

// bodies are the bodies of letters, sorted.
func bodies(letters []deadletter.Letter) []string {
	all := make([]string, len(letters))
	for i, l := range letters {
		all[i] = string(l.Body)
	}
	slices.Sort(all)
	return all
}

func awaitBodies(tb testing.TB, table *deadletter.Table, want []string) {
	tb.Helper()
	want = slices.Sorted(slices.Values(want))
	require.Eventually(tb, func() bool {
		n, err := table.Count(tb.Context())
		require.NoError(tb, err)
		return n >= len(want)
	}, patience, 10*time.Millisecond)
	require.Equal(tb, want, bodies(waiting(tb, table)))
}

func onBothQueueTypes(t *testing.T, test func(t *testing.T, queueType string)) {
	t.Helper()
	for _, queueType := range []string{amqp.ClassicQueues, amqp.QuorumQueues} {
		t.Run(queueType, func(t *testing.T) {
			t.Parallel()
			test(t, queueType)
		})
	}
}

// mixed are messages of every kind of identity: events, messages with an id, and pairs of equal ones without any.
func mixed(n int) (messages []amqp091.Publishing, all []string) {
	for i := range n {
		p := amqp091.Publishing{DeliveryMode: amqp091.Persistent, Body: fmt.Appendf(nil, "nameless %d", i/8)}
		switch i % 4 {
		case 0:
			p.Body = fmt.Appendf(nil, `{"event_id":%q,"event_type":"T"}`, uuid.New())
		case 1:
			p.MessageId = uuid.NewString()
		}
		messages, all = append(messages, p), append(all, string(p.Body))
	}
	return messages, all
}

func TestIngestThousands(t *testing.T) {
	t.Parallel()
	onBothQueueTypes(t, func(t *testing.T, queueType string) {
		t.Helper()
		const n = 4_000
		c := dial(t, amqp.Config{URL: testservers.RabbitMQ(t), QueueType: queueType})
		table := newTable(t)
		fill(t, c, n)
		require.Eventually(t, func() bool {
			waiting, err := amqp.NewIngester(c, table, logger(t)).Waiting(t.Context())
			require.NoError(t, err)
			return waiting == n
		}, patience, 10*time.Millisecond)
		require.Equal(t, n, takeIn(t, c, table))
		require.Zero(t, takeIn(t, c, table))
		want := make([]string, n)
		for i := range want {
			want[i] = fmt.Sprintf("L%06d", i)
		}
		require.Equal(t, want, ids(collect(t, table.List(t.Context(), deadletter.Filter{}))), "they keep their order and their ids")
	})
}

// An ingester that is harmed after each commit loses nothing, and nothing is there twice.
func TestIngestKilledBetweenCommitAndAck(t *testing.T) {
	t.Parallel()
	for _, harm := range []string{"connection cut", "killed", "unknown outcome", "not committed"} {
		t.Run(harm, func(t *testing.T) {
			t.Parallel()
			onBothQueueTypes(t, func(t *testing.T, queueType string) {
				t.Helper()
				network, url := newProxy(t, testservers.RabbitMQ(t))
				c := dial(t, amqp.Config{URL: url, QueueType: queueType})
				messages, want := mixed(1200)
				send(t, c, messages...)
				table := newTable(t)
				killed := make(chan struct{})
				f := &faulty{Table: table}
				f.ingest = func(ctx context.Context, call int, arrivals []deadletter.Arrival) error {
					if call > 24 || call%3 == 0 || call%8 == 0 {
						return table.Ingest(ctx, arrivals)
					}
					if harm == "not committed" {
						network.cut()
						return errors.Join(store.ErrUnavailable, ctx.Err())
					}
					if err := table.Ingest(ctx, arrivals); err != nil {
						return err
					}
					switch harm {
					case "connection cut":
						network.cut()
					case "killed":
						killed <- struct{}{}
						<-ctx.Done()
						return ctx.Err()
					default:
						return store.ErrUnknownOutcome
					}
					return nil
				}
				stop := run(t, c, f, slog.New(slog.DiscardHandler))
				if harm == "killed" {
					for range 14 { // of the 24 calls
						<-killed
						stop()
						stop = run(t, c, f, slog.New(slog.DiscardHandler))
					}
				}
				awaitBodies(t, table, want)
				awaitCount(t, raw(t, url), failedQueue, 0)
				stop()
				takeIn(t, c, table)
				awaitBodies(t, table, want)
			})
		})
	}
}

// While the store is away the letters stay where they are, and the broker counts no deliveries: it would drop them.
func TestIngestWhileTheStoreIsAway(t *testing.T) {
	t.Parallel()
	const limit = 3
	broker := testservers.RabbitMQ(t)
	network, proxied := newProxy(t, broker)
	c := dial(t, amqp.Config{URL: proxied, QueueType: amqp.QuorumQueues})
	manage(t, http.MethodPut, "/api/policies/"+url.PathEscape(vhostOf(t, broker))+"/limit",
		fmt.Sprintf(`{"pattern":".*failed$","apply-to":"queues","definition":{"delivery-limit":%d}}`, limit))
	ch := raw(t, broker)
	send(t, c, amqp091.Publishing{Body: []byte("dropped")})
	require.Eventually(t, func() bool { // the limit holds
		d, ok, err := ch.Get(failedQueue, false)
		require.NoError(t, err)
		if ok {
			require.NoError(t, d.Nack(false, true))
		}
		return !ok && count(t, ch, failedQueue) == 0
	}, patience, time.Millisecond)

	messages, want := mixed(100)
	send(t, c, messages...)
	table := newTable(t)
	f := &faulty{Table: table}
	f.ingest = func(ctx context.Context, call int, arrivals []deadletter.Arrival) error {
		if call%8 != 0 && call < 16 {
			if call < 8 {
				network.cut()
			}
			return fmt.Errorf("ingest: %w", store.ErrUnavailable)
		}
		return table.Ingest(ctx, arrivals)
	}
	text, l := newLog()
	stop := run(t, c, f, l)
	awaitBodies(t, table, want)
	awaitCount(t, ch, failedQueue, 0)
	stop()
	require.Equal(t, 2, strings.Count(text.String(), store.ErrUnavailable.Error()), "it is logged once: %s", text)
	require.Equal(t, 2, strings.Count(text.String(), "ingested again"))
}

// A letter that the table refuses stays in the queue, and the others are taken.
func TestIngestARefusedLetter(t *testing.T) {
	t.Parallel()
	onBothQueueTypes(t, func(t *testing.T, queueType string) {
		t.Helper()
		broker := testservers.RabbitMQ(t)
		network, proxied := newProxy(t, broker)
		c := dial(t, amqp.Config{URL: proxied, QueueType: queueType})
		messages, all := mixed(600)
		var refused, taken []string
		for i, body := range all {
			if i < 2 || i == 5 || i == 8 || i == 300 || i > 590 {
				messages[i].Body, messages[i].Headers = []byte("poison "+body), amqp091.Table{"secret": "header"}
				messages[i].MessageId = fmt.Sprint("message ", i)
				refused = append(refused, string(messages[i].Body))
			} else {
				taken = append(taken, body)
			}
		}
		send(t, c, messages...)
		table := newTable(t)
		var heal sync.Once
		healed := make(chan struct{})
		f := &faulty{Table: table}
		f.ingest = func(ctx context.Context, _ int, arrivals []deadletter.Arrival) error {
			select {
			case <-healed:
			default:
				for _, a := range arrivals {
					if bytes.HasPrefix(a.Body, []byte("poison")) {
						return errors.New("cannot be stored")
					}
				}
			}
			return table.Ingest(ctx, arrivals)
		}
		n, err := amqp.NewIngester(c, f, slog.New(slog.DiscardHandler)).Drain(t.Context())
		require.ErrorContains(t, err, fmt.Sprintf("%d letters were refused", len(refused)))
		require.ErrorContains(t, err, `message "message 0": cannot be stored`)
		require.Equal(t, len(taken), n)
		awaitBodies(t, table, taken)
		ch := raw(t, broker)
		awaitCount(t, ch, failedQueue, len(refused))

		text, l := newLog()
		stop := run(t, c, f, l)
		more, others := mixed(50)
		send(t, c, more...)
		awaitBodies(t, table, slices.Concat(taken, others))
		awaitCount(t, ch, failedQueue, 0)
		calls := func() int { f.mu.Lock(); defer f.mu.Unlock(); return f.calls }
		require.Less(t, calls(), 2000)
		require.Eventually(t, func() bool { // in a quorum queue these are the copies of those that have returned
			return strings.Count(text.String(), "cannot be stored") == len(refused)
		}, patience, time.Millisecond)
		heal.Do(func() { close(healed) })
		network.cut() // it consumes anew
		awaitBodies(t, table, slices.Concat(taken, others, refused))
		stop()
		awaitCount(t, ch, failedQueue, 0)
		require.Equal(t, len(refused), strings.Count(text.String(), "cannot be stored"), "%s", text)
		require.Contains(t, text.String(), "message 300")
		require.NotContains(t, text.String(), "poison")
		require.NotContains(t, text.String(), "secret")
	})
}

// A letter that the table refuses returns to the queue with each connection, which counts against a quorum queue's limit.
func TestQuorumQueueDropsNoRefusedLetter(t *testing.T) {
	t.Parallel()
	const limit = 3
	broker := testservers.RabbitMQ(t)
	network, proxied := newProxy(t, broker)
	c := dial(t, amqp.Config{URL: proxied, QueueType: amqp.QuorumQueues})
	setPolicy(t, broker, "policies", "failed$", fmt.Sprintf(`{"delivery-limit":%d}`, limit))
	sent := odd()
	send(t, c, sent)
	table := newTable(t)
	var healed atomic.Bool
	f := &faulty{Table: table}
	f.ingest = func(ctx context.Context, _ int, arrivals []deadletter.Arrival) error {
		if healed.Load() {
			return table.Ingest(ctx, arrivals)
		}
		return errors.New("cannot be stored")
	}
	calls := func() int { f.mu.Lock(); defer f.mu.Unlock(); return f.calls }
	for range 3 * limit {
		_, err := amqp.NewIngester(c, f, logger(t)).Drain(t.Context())
		require.ErrorContains(t, err, "1 letters were refused")
	}
	stop := run(t, c, f, logger(t))
	for range 3 * limit {
		before := calls()
		network.cut()
		require.Eventually(t, func() bool { return calls() >= before+2 }, patience, time.Millisecond, "it and its copy")
	}
	stop()
	healed.Store(true)
	require.Equal(t, 1, takeIn(t, c, table))
	letters := waiting(t, table)
	require.Len(t, letters, 1)
	require.Equal(t, sent.Body, letters[0].Body)
	require.Equal(t, []deadletter.Sending{{}}, release(t, amqp.NewFailedQueue(c), deadletter.ToBus, letters...))
	ch := raw(t, broker)
	awaitCount(t, ch, consumerQueue, 1)
	again := get(t, ch, consumerQueue)
	require.Equal(t, sent.Headers["text"], again.Headers["text"])
	require.Equal(t, sent.Type, again.Type)
}

// One worker ingests, and another goes on when it ends.
func TestIngestByOneAtATime(t *testing.T) {
	t.Parallel()
	onBothQueueTypes(t, func(t *testing.T, queueType string) {
		t.Helper()
		config := amqp.Config{URL: testservers.RabbitMQ(t), QueueType: queueType}
		first, second := dial(t, config), dial(t, config)
		table := newTable(t)
		stopFirst := run(t, first, table, logger(t))
		send(t, first, amqp091.Publishing{MessageId: "1", Body: []byte("1")})
		awaitBodies(t, table, []string{"1"})
		text, l := newLog()
		stopSecond := run(t, second, table, l)
		require.Eventually(t, func() bool { return strings.Contains(text.String(), "another worker") }, patience, time.Millisecond)
		n, err := amqp.NewIngester(second, table, logger(t)).Drain(t.Context())
		require.ErrorIs(t, err, amqp.ErrIngesting)
		require.Zero(t, n)

		stopFirst()
		ended := time.Now()
		send(t, first, amqp091.Publishing{MessageId: "2", Body: []byte("2")})
		awaitBodies(t, table, []string{"1", "2"})
		require.Less(t, time.Since(ended), 5*time.Second)
		stopSecond()
		require.Equal(t, 1, strings.Count(text.String(), "another worker"))
	})
}

func TestIngestBesideAForeignConsumer(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url})
	table := newTable(t)
	ch := raw(t, url)
	_, err := ch.Consume(failedQueue, "foreign", false, false, false, false, nil)
	require.NoError(t, err)
	_, err = amqp.NewIngester(c, table, logger(t)).Drain(t.Context())
	require.ErrorIs(t, err, amqp.ErrIngesting)
	require.NoError(t, ch.Cancel("foreign", false))
	require.Zero(t, takeIn(t, c, table))
}

func TestIngestWithoutTheRight(t *testing.T) {
	t.Parallel()
	config := amqp.Config{URL: testservers.RabbitMQ(t)}
	dial(t, config)
	config.URL = user(t, config.URL, ".*", ".*", "^healz.events(.dlx)?$")
	c, err := amqp.DialUndeclared(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	_, err = amqp.NewIngester(c, newTable(t), logger(t)).Drain(t.Context())
	require.ErrorIs(t, err, amqp.ErrRefused)
}

// Letters of all sizes by turns: the broker is asked for fewer when they are large.
func TestIngestLettersOfAllSizes(t *testing.T) {
	t.Parallel()
	onBothQueueTypes(t, func(t *testing.T, queueType string) {
		t.Helper()
		c := dial(t, amqp.Config{URL: testservers.RabbitMQ(t), QueueType: queueType})
		random := rand.New(rand.NewPCG(1, 2))
		var messages []amqp091.Publishing
		var want []string
		add := func(n, size int) {
			for range n {
				body := fmt.Sprint(len(messages), strings.Repeat("x", size+random.IntN(1000)))
				messages, want = append(messages, amqp091.Publishing{Body: []byte(body)}), append(want, body)
			}
		}
		add(600, 0)
		add(8, 3<<20)
		add(40, 100<<10)
		add(100, 0)
		send(t, c, messages...)
		table := newTable(t)
		takeIn(t, c, table)
		awaitBodies(t, table, want)
	})
}

// A delivery that is under way is in no count of the queue.
func TestDrainTakesADeliveryThatIsUnderWay(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	direct := dial(t, amqp.Config{URL: url})
	send(t, direct, amqp091.Publishing{Body: []byte("1")})
	require.Equal(t, 1, takeIn(t, dial(t, amqp.Config{URL: newLateDeliveries(t, url)}), newTable(t)))
}

// The test runs alone, as it measures the process.
//
//nolint:paralleltest // see above
func TestMemoryOfIngestingLargeLetters(t *testing.T) {
	const letters, size, mostLive, most = 8, 16 << 20, 64 << 20, 128 << 20
	c := dial(t, amqp.Config{URL: testservers.RabbitMQ(t)})
	func() { // which keeps none of them
		body := bytes.Repeat([]byte("x"), size-100)
		messages := make([]amqp091.Publishing, letters)
		for i := range messages {
			messages[i] = amqp091.Publishing{
				MessageId: fmt.Sprint(i), Body: fmt.Appendf(nil, `{"event_id":%q,"event_type":"Large","event_data":%q}`, uuid.New(), body),
			}
		}
		send(t, c, messages...)
	}()
	table := newTable(t)
	end, endLive := heap.Peak(heap.All), heap.Peak(heap.Live)
	require.Equal(t, letters, takeIn(t, c, table))
	peak, live := end(), endLive()
	t.Logf("%d letters of %d MiB took %d MiB, garbage included, of which %d MiB were live", letters, size>>20, peak>>20, live>>20)
	require.Less(t, live, mostLive)
	require.Less(t, peak, most)
}

func TestIngestEndsSoon(t *testing.T) {
	t.Parallel()
	network, url := newProxy(t, testservers.RabbitMQ(t))
	c := dial(t, amqp.Config{URL: url})
	table := newTable(t)
	stop := run(t, c, table, logger(t))
	send(t, c, amqp091.Publishing{Body: []byte("1")})
	awaitBodies(t, table, []string{"1"})
	network.freeze()
	began := time.Now()
	stop()
	require.Less(t, time.Since(began), 5*time.Second)

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		amqp.NewIngester(c, table, logger(t)).Run(t.Context())
	}()
	require.NoError(t, c.Close())
	<-ended
}

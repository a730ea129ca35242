package amqp_test

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/test/testservers"
)

func subscribe(tb testing.TB, c *amqp.Connection) (<-chan *message.Message, *amqp.Subscriber) {
	tb.Helper()
	subscriber := amqp.NewSubscriber(c)
	messages, err := subscriber.Subscribe(tb.Context(), "any")
	require.NoError(tb, err)
	return messages, subscriber
}

// publishVersions publishes versions 1 to n of each aggregate, interleaved.
func publishVersions(tb testing.TB, publisher *amqp.Publisher, aggregates []uuid.UUID, n int) {
	tb.Helper()
	var batch []*message.Message
	for version := 1; version <= n; version++ {
		for _, aggregate := range aggregates {
			batch = append(batch, event(aggregate, version))
		}
	}
	require.NoError(tb, publisher.PublishBatch(tb.Context(), batch))
}

func newIDs(n int) []uuid.UUID {
	ids := make([]uuid.UUID, n)
	for i := range ids {
		ids[i] = uuid.New()
	}
	return ids
}

// witness handles messages as Watermill's router does, each in a goroutine of its own, and notes what must not happen.
type witness struct {
	mu      sync.Mutex
	busy    map[uuid.UUID]bool
	seen    map[uuid.UUID]int
	inHand  int
	peak    int
	faults  []string
	handled int
}

func newWitness() *witness { return &witness{busy: map[uuid.UUID]bool{}, seen: map[uuid.UUID]int{}} }

func (w *witness) begin(aggregate uuid.UUID, version int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy[aggregate] {
		w.faults = append(w.faults, "two messages of an aggregate in hand")
	}
	if version > w.seen[aggregate]+1 {
		w.faults = append(w.faults, "a version was overtaken")
	}
	w.busy[aggregate] = true
	w.inHand++
	w.peak = max(w.peak, w.inHand)
}

func (w *witness) end(aggregate uuid.UUID, version int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy[aggregate] = false
	w.inHand--
	if version == w.seen[aggregate]+1 {
		w.seen[aggregate] = version
		w.handled++
	}
}

func (w *witness) distinct() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.handled
}

func (w *witness) handleAll(tb testing.TB, messages <-chan *message.Message, wait func()) {
	tb.Helper()
	var handlers sync.WaitGroup
	defer handlers.Wait()
	for m := range messages {
		aggregate, version := versionOf(tb, m)
		handlers.Go(func() {
			w.begin(aggregate, version)
			wait()
			w.end(aggregate, version)
			m.Ack()
		})
	}
}

func TestSubscriberKeepsTheOrderOfEachAggregate(t *testing.T) {
	t.Parallel()
	c := dial(t, amqp.Config{URL: testservers.RabbitMQ(t), Concurrency: 8})
	aggregates := newIDs(20)
	publisher := amqp.NewPublisher(c)
	for i := range aggregates { // next to each other, so that two would be in flight at once
		publishVersions(t, publisher, aggregates[i:i+1], 25)
	}
	messages, subscriber := subscribe(t, c)

	w := newWitness()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.handleAll(t, messages, func() { <-time.After(rand.N(2 * time.Millisecond)) })
	}()
	require.Eventually(t, func() bool { return w.distinct() == 20*25 }, patience, time.Millisecond)
	require.NoError(t, subscriber.Close())
	<-done
	require.Empty(t, w.faults)
	require.Equal(t, 8, w.peak, "as many at once as configured")
}

func TestSubscriberKeepsTheOrderOverNacks(t *testing.T) {
	t.Parallel()
	c := dial(t, amqp.Config{URL: testservers.RabbitMQ(t)})
	ids := newIDs(2)
	publishVersions(t, amqp.NewPublisher(c), ids, 3)
	messages, _ := subscribe(t, c)

	got := map[uuid.UUID][]int{}
	nacks := map[uuid.UUID]int{ids[0]: 2}
	for range 3 + 3 + 2 {
		m := receive(t, messages)
		aggregate, version := versionOf(t, m)
		got[aggregate] = append(got[aggregate], version)
		if nacks[aggregate] > 0 {
			nacks[aggregate]--
			require.True(t, m.Nack())
			continue
		}
		require.True(t, m.Ack())
	}
	require.Equal(t, map[uuid.UUID][]int{ids[0]: {1, 1, 1, 2, 3}, ids[1]: {1, 2, 3}}, got)
}

func TestSubscriberDrains(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(cancel func(), s *amqp.Subscriber) error{
		"when closed":            func(_ func(), s *amqp.Subscriber) error { return s.Close() },
		"when its context ends":  func(cancel func(), _ *amqp.Subscriber) error { cancel(); return nil },
		"when both, as a router": func(cancel func(), s *amqp.Subscriber) error { cancel(); return s.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testservers.RabbitMQ(t)
			c := dial(t, amqp.Config{URL: url, Competing: true})
			ids := newIDs(3)
			publishVersions(t, amqp.NewPublisher(c), ids, 4)
			subscriber := amqp.NewSubscriber(c)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			messages, err := subscriber.Subscribe(ctx, "any")
			require.NoError(t, err)
			acked, nacked, third := receive(t, messages), receive(t, messages), receive(t, messages)

			stopped := make(chan error, 1)
			go func() { stopped <- stop(cancel, subscriber) }()
			ch := raw(t, url)
			require.Eventually(t, func() bool { return count(t, ch, consumerQueue) == 9 }, patience, time.Millisecond,
				"what was not handed out is given back at once")
			select {
			case m := <-messages:
				require.Failf(t, "closed, or one more handed out, while messages are in hand", "%v", m)
			default:
			}
			acked.Ack()
			nacked.Nack()
			third.Ack()
			require.NoError(t, <-stopped)
			_, open := <-messages
			require.False(t, open)

			deliveries, err := ch.Consume(consumerQueue, "", true, false, false, false, nil)
			require.NoError(t, err)
			var versions []int
			for range 10 {
				_, version := versionOf(t, message.NewMessage("", (<-deliveries).Body))
				versions = append(versions, version)
			}
			require.Equal(t, []int{1, 2, 2, 2, 3, 3, 3, 4, 4, 4}, versions, "in order, and nothing that was acked")
		})
	}
}

func TestSubscriberGivesUpAfterTheDrainTimeout(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url, DrainTimeout: 50 * time.Millisecond})
	publishVersions(t, amqp.NewPublisher(c), newIDs(1), 1)
	messages, subscriber := subscribe(t, c)
	m := receive(t, messages)
	require.NoError(t, m.Context().Err())
	require.NoError(t, subscriber.Close())
	require.ErrorIs(t, m.Context().Err(), context.Canceled)
	require.Equal(t, 1, count(t, raw(t, url), consumerQueue))
	require.True(t, m.Ack(), "too late, and harmless")

	_, err := subscriber.Subscribe(t.Context(), "any")
	require.ErrorIs(t, err, amqp.ErrClosed)
}

// What is delivered is no longer in the queue's own count, whether it is in flight or waits here.
func TestSubscriberCountsWhatIsDeliveredToIt(t *testing.T) {
	t.Parallel()
	c := dial(t, amqp.Config{URL: testservers.RabbitMQ(t), Concurrency: 2, Prefetch: 5})
	publishVersions(t, amqp.NewPublisher(c), newIDs(4), 2)
	messages, subscriber := subscribe(t, c)
	share := func(consumes bool, unacked int) func() bool {
		want := []amqp.Share{{Queue: consumerQueue, Consumes: consumes, Unacked: unacked}}
		return func() bool { return slices.Equal(want, subscriber.Shares()) }
	}
	require.Eventually(t, share(true, 5), patience, time.Millisecond)
	depths, err := c.Depths(t.Context())
	require.NoError(t, err)
	require.Equal(t, 3, depths[0].Messages)
	for range 8 {
		receive(t, messages).Ack()
	}
	require.Eventually(t, share(true, 0), patience, time.Millisecond)
	require.NoError(t, subscriber.Close())
	require.Empty(t, subscriber.Shares())
}

func TestSubscriberOutlivesItsQueue(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url})
	publisher := amqp.NewPublisher(c)
	messages, _ := subscribe(t, c)
	id := uuid.New()
	publish(t, publisher, event(id, 1))
	inHand := receive(t, messages)

	_, err := raw(t, url).QueueDelete(consumerQueue, false, false, false)
	require.NoError(t, err)
	other := uuid.New()
	require.Eventually(t, func() bool {
		return publisher.PublishBatch(t.Context(), []*message.Message{event(id, 2), event(other, 1)}) == nil
	}, patience, 10*time.Millisecond)
	next := receive(t, messages)
	aggregate, _ := versionOf(t, next)
	require.Equal(t, other, aggregate, "the one before it waits while another of its aggregate is in hand")
	require.True(t, next.Ack())
	require.True(t, inHand.Ack())
	aggregate, version := versionOf(t, receive(t, messages))
	require.Equal(t, id, aggregate)
	require.Equal(t, 2, version, "the first after the queue was deleted is a true one")
}

func TestSubscriberHoldsBackARedelivery(t *testing.T) {
	t.Parallel()
	network, url := newProxy(t, testservers.RabbitMQ(t))
	c := dial(t, amqp.Config{URL: url})
	publisher := amqp.NewPublisher(c)
	publishVersions(t, publisher, newIDs(1), 2)
	messages, _ := subscribe(t, c)
	first := receive(t, messages)

	network.cut()
	require.Eventually(t, func() bool { return c.Ready() != nil }, patience, time.Millisecond)
	require.Eventually(t, func() bool { return c.Ready() == nil }, patience, time.Millisecond)
	other := uuid.New()
	publish(t, publisher, event(other, 1))
	behind := receive(t, messages)
	aggregate, _ := versionOf(t, behind)
	require.Equal(t, other, aggregate, "the copies before it wait while the former one is in hand")
	require.True(t, behind.Ack())
	require.True(t, first.Ack()) // which acks its copy
	_, version := versionOf(t, receive(t, messages))
	require.Equal(t, 2, version)
}

// TestNothingIsLostOverKilledConnections publishes and consumes while connections end, at the broker's will and by
// accident.
func TestNothingIsLostOverKilledConnections(t *testing.T) {
	t.Parallel()
	network, url := newProxy(t, testservers.RabbitMQ(t))
	c := dial(t, amqp.Config{URL: url, Name: "victim"})
	publisher := amqp.NewPublisher(c)
	messages, subscriber := subscribe(t, c)
	const versions = 400
	aggregates := newIDs(10)

	w := newWitness()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.handleAll(t, messages, func() { <-time.After(rand.N(time.Millisecond)) })
	}()
	published := make(chan struct{})
	go func() {
		defer close(published)
		for version := 1; version <= versions; version++ {
			batch := make([]*message.Message, len(aggregates))
			for i, aggregate := range aggregates {
				batch[i] = event(aggregate, version)
			}
			for publisher.PublishBatch(t.Context(), batch) != nil && t.Context().Err() == nil {
				<-time.After(10 * time.Millisecond)
			}
			<-time.After(5 * time.Millisecond)
		}
	}()
	kill(t, url, "victim")
	for range 3 {
		<-time.After(rand.N(300 * time.Millisecond))
		network.cut()
	}
	<-published
	require.Eventually(t, func() bool { return w.distinct() == versions*len(aggregates) }, patience, 10*time.Millisecond)
	require.NoError(t, subscriber.Close())
	<-done
	require.Empty(t, w.faults)
}

func TestTopologyIsRestoredOnABrokerThatWasReset(t *testing.T) {
	t.Parallel()
	amqpURL := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: amqpURL})
	publisher := amqp.NewPublisher(c)
	messages, _ := subscribe(t, c)
	publish(t, publisher, event(uuid.New(), 1))
	require.True(t, receive(t, messages).Ack())

	vhost := "/vhosts/" + url.PathEscape(vhostOf(t, amqpURL))
	require.Equal(t, http.StatusNoContent, management(t, http.MethodDelete, vhost).StatusCode)
	require.Eventually(t, func() bool { return c.Ready() != nil }, patience, 10*time.Millisecond)
	require.Equal(t, http.StatusCreated, management(t, http.MethodPut, vhost).StatusCode)

	require.NoError(t, publisher.PublishBatch(t.Context(), []*message.Message{event(uuid.New(), 7)}))
	_, version := versionOf(t, receive(t, messages))
	require.Equal(t, 7, version)
	require.Eventually(t, func() bool { return c.Ready() == nil }, patience, 10*time.Millisecond)
}

func TestMessagesOfForeignProducers(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url})
	messages, _ := subscribe(t, c)
	ch := raw(t, url)
	for name, test := range map[string]struct {
		sent     amqp091.Publishing
		wantUUID string
		metadata message.Metadata
	}{
		"message id": {
			sent: amqp091.Publishing{
				MessageId: "m1", Body: []byte(`{"event_id":"e1","event_type":"T","aggregate_id":"a"}`),
			},
			wantUUID: "m1", metadata: message.Metadata{"event_type": "T", "aggregate_id": "a"},
		},
		"event id": {
			sent:     amqp091.Publishing{Body: []byte(`{"event_id":"e1","correlation_id":"c"}`)},
			wantUUID: "e1", metadata: message.Metadata{"correlation_id": "c"},
		},
		"headers first": {
			sent: amqp091.Publishing{
				Headers: amqp091.Table{"_watermill_message_uuid": "w1", "aggregate_id": "h", "n": int32(1), "s": "text"},
				Body:    []byte(`{"aggregate_id":"a"}`),
			},
			wantUUID: "w1", metadata: message.Metadata{"aggregate_id": "h", "s": "text"},
		},
		"nothing": {sent: amqp091.Publishing{}, metadata: message.Metadata{}},
	} {
		require.NoError(t, ch.PublishWithContext(t.Context(), "healz.events", "x", true, false, test.sent), name)
		m := receive(t, messages)
		require.True(t, m.Ack())
		require.NotEmpty(t, m.UUID, name)
		if test.wantUUID != "" {
			require.Equal(t, test.wantUUID, m.UUID, name)
		}
		require.Equal(t, test.metadata, m.Metadata, name)
		require.Equal(t, string(test.sent.Body), string(m.Payload), name)
	}
}

package amqp_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/test/testservers"
)

// partitionable is a vhost on a broker that can hash consistently. Where the tests are given one that cannot, the test
// is skipped.
func partitionable(t *testing.T) string {
	t.Helper()
	url := testservers.RabbitMQ(t)
	if raw(t, url).ExchangeDeclare("probe", "x-consistent-hash", false, true, false, false, nil) != nil {
		testservers.Skip(t, "the broker lacks the plugin rabbitmq_consistent_hash_exchange")
	}
	return url
}

// crew is several workers that have one witness.
type crew struct {
	t       *testing.T
	witness *witness
	wait    func()
	tasks   sync.WaitGroup
}

func newCrew(t *testing.T) *crew {
	t.Helper()
	c := &crew{t: t, witness: newWitness(), wait: func() { <-time.After(rand.N(2 * time.Millisecond)) }}
	t.Cleanup(c.tasks.Wait)
	return c
}

// member is one worker of a crew.
type member struct {
	*amqp.Subscriber
	conn *amqp.Connection

	mu      sync.Mutex
	handled map[string]int // by the queue
}

func (c *crew) join(config amqp.Config) *member {
	c.t.Helper()
	m := &member{conn: dial(c.t, config), handled: map[string]int{}}
	m.Subscriber = amqp.NewSubscriber(m.conn)
	for _, topic := range m.conn.Topics() {
		messages, err := m.Subscribe(c.t.Context(), topic)
		require.NoError(c.t, err)
		c.tasks.Go(func() {
			c.witness.handleAll(c.t, messages, func() {
				c.wait()
				m.mu.Lock()
				defer m.mu.Unlock()
				m.handled[topic]++
			})
		})
	}
	c.t.Cleanup(func() { require.NoError(c.t, m.Close()) })
	return m
}

// queues are the queues from which a member has handled something since it was last asked.
func (m *member) queues() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var queues []string
	for queue := range m.handled {
		queues = append(queues, queue)
	}
	clear(m.handled)
	return queues
}

func (c *crew) faults() []string {
	c.witness.mu.Lock()
	defer c.witness.mu.Unlock()
	return c.witness.faults
}

func (c *crew) awaitHandled(n int) {
	c.t.Helper()
	require.Eventually(c.t, func() bool { return c.witness.distinct() == n }, 3*patience, 5*time.Millisecond)
}

// publisherOf publishes versions of aggregates, the next ones at each call.
func publisherOf(t *testing.T, c *amqp.Connection, aggregates []uuid.UUID) func(versions int) (total int) {
	t.Helper()
	publisher := amqp.NewPublisher(c)
	version := 0
	return func(versions int) int {
		var batch []*message.Message
		for range versions {
			version++
			for _, aggregate := range aggregates {
				batch = append(batch, event(aggregate, version))
			}
		}
		require.NoError(t, publisher.PublishBatch(t.Context(), batch))
		return version * len(aggregates)
	}
}

func TestPartitionsKeepTheOrderFromWorkerToWorker(t *testing.T) {
	t.Parallel()
	config := amqp.Config{URL: partitionable(t), Partitions: 6, Concurrency: 8}
	c := newCrew(t)
	first := c.join(config)
	// So many aggregates that each partition gets some.
	publish := publisherOf(t, first.conn, newIDs(100))
	c.awaitHandled(publish(4))
	require.Len(t, first.queues(), 6, "alone it consumes all")

	second, third := c.join(config), c.join(config)
	require.Eventually(t, func() bool { // under load the first hands on what is over its share
		c.awaitHandled(publish(4))
		a, b, d := first.queues(), second.queues(), third.queues()
		return len(a) == 2 && len(b) == 2 && len(d) == 2
	}, 3*patience, time.Millisecond)

	publish(20)
	require.NoError(t, second.Close()) // in the midst of it
	total := publish(4)
	c.awaitHandled(total)
	require.Empty(t, c.faults())
	require.LessOrEqual(t, c.witness.peak, 3*8)
}

func TestPartitionsOfADeadWorkerMoveAtOnce(t *testing.T) {
	t.Parallel()
	url := partitionable(t)
	network, through := newProxy(t, url)
	c := newCrew(t)
	c.wait = func() {}
	victim := c.join(amqp.Config{URL: through, Partitions: 4})
	publish := publisherOf(t, dial(t, amqp.Config{URL: url, Partitions: 4}), newIDs(200))
	c.awaitHandled(publish(1))
	require.Len(t, victim.queues(), 4)
	c.join(amqp.Config{URL: url, Partitions: 4})

	network.refuse(true)
	began := time.Now()
	network.cut()
	c.awaitHandled(publish(1))
	t.Logf("the partitions moved and 200 events were handled within %s", time.Since(began))
	require.Less(t, time.Since(began), 5*time.Second)
}

// Connections that are cut move partitions while something of them is in hand: it is handled again elsewhere, and nothing
// is overtaken or lost.
func TestPartitionsOverCutConnections(t *testing.T) {
	t.Parallel()
	url := partitionable(t)
	c := newCrew(t)
	publish := publisherOf(t, dial(t, amqp.Config{URL: url, Partitions: 4}), newIDs(20))
	var networks []*proxy
	for range 3 {
		network, through := newProxy(t, url)
		networks = append(networks, network)
		c.join(amqp.Config{URL: through, Partitions: 4})
	}
	total := 0
	for i := range 12 {
		total = publish(10)
		networks[i%3].cut()
		<-time.After(rand.N(200 * time.Millisecond))
	}
	c.awaitHandled(total)
	require.NotContains(t, c.faults(), "a version was overtaken")
}

func TestPartitionsTakeOverWhatTheContractsQueueHolds(t *testing.T) {
	t.Parallel()
	url := partitionable(t)
	before := dial(t, amqp.Config{URL: url})
	aggregates := newIDs(20)
	publish := publisherOf(t, before, aggregates)
	publish(30)
	partitioned := amqp.Config{URL: url, Partitions: 3, Concurrency: 4}
	dial(t, partitioned)
	total := publish(30) // by now to the partitions
	ch := raw(t, url)
	require.Equal(t, total/2, count(t, ch, consumerQueue), "no longer bound")
	require.Equal(t, total/2, count(t, ch, consumerQueue+".0")+count(t, ch, consumerQueue+".1")+count(t, ch, consumerQueue+".2"))

	c := newCrew(t)
	c.join(partitioned)
	c.awaitHandled(total)
	require.Empty(t, c.faults(), "the older ones came first")
	require.LessOrEqual(t, c.witness.peak, 4, "concurrency is that of all partitions together")
}

func TestPartitionsAreLeft(t *testing.T) {
	t.Parallel()
	url := partitionable(t)
	before := dial(t, amqp.Config{URL: url, Partitions: 3})
	publish := publisherOf(t, before, newIDs(20))
	publish(30)
	ch := raw(t, url)

	_, err := amqp.Dial(t.Context(), amqp.Config{URL: url})
	var topology *amqp.TopologyError
	require.ErrorAs(t, err, &topology)
	require.ErrorContains(t, err, "--leave-partitions")
	require.NotErrorIs(t, err, amqp.ErrUnavailable)

	leaving := amqp.Config{URL: url, LeavePartitions: true}
	dial(t, leaving)
	total := publish(30)
	require.Equal(t, total/2, count(t, ch, consumerQueue), "bound again")
	c := newCrew(t)
	c.join(leaving)
	c.awaitHandled(total)
	require.Empty(t, c.faults(), "the older ones came first")
	dial(t, amqp.Config{URL: url})
	dial(t, amqp.Config{URL: url, Partitions: 5})
}

func TestTheNumberOfPartitionsIsAgreedUpon(t *testing.T) {
	t.Parallel()
	url := partitionable(t)
	dial(t, amqp.Config{URL: url, Partitions: 3})
	dial(t, amqp.Config{URL: url, Partitions: 3})
	_, err := amqp.Dial(t.Context(), amqp.Config{URL: url, Partitions: 4})
	var topology *amqp.TopologyError
	require.ErrorAs(t, err, &topology)
	require.ErrorContains(t, err, "healz.events.partitioned.3")
	require.ErrorContains(t, err, "another number of partitions")
	require.NotErrorIs(t, err, amqp.ErrUnavailable)
	for _, n := range []int{-1, amqp.MaxPartitions + 1} {
		_, err := amqp.Dial(t.Context(), amqp.Config{URL: url, Partitions: n})
		require.ErrorContains(t, err, "partitions must be")
	}
}

// What has no usable header is in one partition: in order, if not shared.
func TestPartitionsOfForeignMessages(t *testing.T) {
	t.Parallel()
	url := partitionable(t)
	dial(t, amqp.Config{URL: url, Partitions: 8})
	ch := raw(t, url)
	aggregates := newIDs(10)
	for _, headers := range []amqp091.Table{
		nil,
		{},
		{bus.AggregateIDKey: nil},
		{bus.AggregateIDKey: int64(7)},
		{bus.AggregateIDKey: ""},
		{bus.AggregateIDKey: amqp091.Table{"a": []any{int32(1)}}},
		{bus.AggregateIDKey: []byte{0}},
		{bus.AggregateIDKey: time.Now()},
	} {
		queues := map[string]int{}
		for version := 1; version <= 5; version++ {
			for _, aggregate := range aggregates {
				require.NoError(t, ch.PublishWithContext(t.Context(), "healz.events", "x", true, false, amqp091.Publishing{
					Headers: headers, Body: event(aggregate, version).Payload,
				}))
			}
		}
		require.Eventually(t, func() bool {
			for i := range 8 {
				queue := consumerQueue + "." + string(rune('0'+i))
				for {
					_, ok, err := ch.Get(queue, true)
					require.NoError(t, err)
					if !ok {
						break
					}
					queues[queue]++
				}
			}
			n := 0
			for _, m := range queues {
				n += m
			}
			return n == 50
		}, patience, time.Millisecond)
		require.Len(t, queues, 1, "%v", headers)
	}
}

func TestDeadLettersOfPartitions(t *testing.T) {
	t.Parallel()
	url := partitionable(t)
	conn := dial(t, amqp.Config{URL: url, Partitions: 2})
	queue := amqp.NewFailedQueue(conn)
	subscriber := amqp.NewSubscriber(conn)
	all := make(chan *message.Message)
	for _, topic := range conn.Topics() {
		messages, err := subscriber.Subscribe(t.Context(), topic)
		require.NoError(t, err)
		go func() {
			for m := range messages {
				all <- m
			}
		}()
	}
	publish(t, amqp.NewPublisher(conn), event(uuid.New(), 1))
	var letters []deadletter.Letter
	for round := range 2 {
		m := receive(t, all)
		require.NoError(t, queue.Put(m.Context(), m, failure()))
		require.True(t, m.Ack())
		letters = lettersOf(t, conn)
		require.Contains(t, letters[0].Source, consumerQueue+".")
		if round == 0 {
			require.Equal(t, []deadletter.Sending{{}}, release(t, queue, deadletter.ToHandler, letters...))
		}
	}
	require.NoError(t, subscriber.Close())

	left := dial(t, amqp.Config{URL: url, LeavePartitions: true})
	require.Equal(t, []deadletter.Sending{{}}, release(t, amqp.NewFailedQueue(left), deadletter.ToHandler, letters...))
	require.Equal(t, 1, count(t, raw(t, url), consumerQueue), "its partition is no more")
}

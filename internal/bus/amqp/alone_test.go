package amqp_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/test/testservers"
)

// takeover is how long it may take until another worker consumes.
const takeover = 5 * time.Second

func awaitState(t *testing.T, m *member, state string) {
	t.Helper()
	require.Eventually(t, func() bool { return m.State() == state }, patience, time.Millisecond)
}

// One of several workers consumes the contract's queue. When that one ends in any way, another follows within the
// takeover time, and the order of each aggregate is kept.
func TestOneWorkerConsumesAndTheOthersStandBy(t *testing.T) {
	t.Parallel()
	for _, queueType := range []string{amqp.ClassicQueues, amqp.QuorumQueues} {
		for name, end := range map[string]func(t *testing.T, m *member, p *proxy, url string){
			"it stops":            func(t *testing.T, m *member, _ *proxy, _ string) { t.Helper(); require.NoError(t, m.Close()) },
			"its connection ends": func(_ *testing.T, _ *member, p *proxy, _ string) { p.refuse(true); p.cut() },
			"its network is cut":  func(_ *testing.T, _ *member, p *proxy, _ string) { p.refuse(true); p.freeze() },
		} {
			t.Run(queueType+" "+name, func(t *testing.T) {
				t.Parallel()
				url := testservers.RabbitMQ(t)
				p, proxied := newProxy(t, url)
				c := newCrew(t)
				c.wait = func() { <-time.After(rand.N(3 * time.Millisecond)) }
				first := c.join(amqp.Config{URL: proxied, QueueType: queueType, Concurrency: 4})
				publish := publisherOf(t, dial(t, amqp.Config{URL: url, QueueType: queueType}), newIDs(20))
				c.awaitHandled(publish(5))
				second := c.join(amqp.Config{URL: url, QueueType: queueType, Concurrency: 4})
				third := c.join(amqp.Config{URL: url, QueueType: queueType, Concurrency: 4})
				c.awaitHandled(publish(5))
				require.Empty(t, first.State())
				awaitState(t, second, amqp.Standby)
				awaitState(t, third, amqp.Standby)
				require.Empty(t, append(second.queues(), third.queues()...))

				total := publish(200)
				end(t, first, p, url)
				began := time.Now()
				require.Eventually(t, func() bool { return len(second.queues())+len(third.queues()) > 0 }, patience, time.Millisecond)
				require.Less(t, time.Since(began), takeover)
				c.awaitHandled(total)
				c.awaitHandled(publish(5))
				require.Empty(t, c.faults())
				require.NotEqual(t, second.State(), third.State(), "one of them consumes")
			})
		}
	}
}

// A worker that loses just its channel is not replaced.
func TestAloneWithoutChannel(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := newCrew(t)
	first := c.join(amqp.Config{URL: url})
	publish := publisherOf(t, first.conn, newIDs(3))
	c.awaitHandled(publish(2))
	second := c.join(amqp.Config{URL: url})
	awaitState(t, second, amqp.Standby)
	for range 3 {
		amqp.LoseChannels(first.Subscriber)
		c.awaitHandled(publish(10))
	}
	require.Equal(t, amqp.Standby, second.State())
	require.Empty(t, second.queues())
	require.Empty(t, c.faults())
}

func TestCompetingConsumers(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := newCrew(t)
	config := amqp.Config{URL: url, Competing: true, Prefetch: 1, Concurrency: 1}
	first, second := c.join(config), c.join(config)
	publish := publisherOf(t, first.conn, newIDs(20))
	require.Eventually(t, func() bool {
		c.awaitHandled(publish(1))
		return len(first.queues()) > 0 && len(second.queues()) > 0
	}, patience, time.Millisecond)
	require.Empty(t, first.State()+second.State())
}

// The lock is not for consumers of other programs.
func TestAloneBesidesAnotherProgram(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url})
	ch := raw(t, url)
	require.NoError(t, ch.Qos(1, 0, false))
	consume := func() <-chan amqp091.Delivery {
		deliveries, err := ch.Consume(consumerQueue, "", true, false, false, false, nil)
		require.NoError(t, err)
		return deliveries
	}
	before := consume()
	messages, subscriber := subscribe(t, c)
	require.Empty(t, subscriber.State())
	after := consume()
	publisher := amqp.NewPublisher(c)
	for range 3 { // in turn
		publish(t, publisher, event(uuid.New(), 1))
	}
	receive(t, messages).Ack()
	for _, deliveries := range []<-chan amqp091.Delivery{before, after} {
		select {
		case <-deliveries:
		case <-time.After(patience):
			require.Fail(t, "the other program receives nothing")
		}
	}
}

// A message that is in flight when the broker closes its channel, as after the consumer timeout, is not handled again if
// it is finished: its copy is acked, whether it came before the end or after it.
func TestFinishedMessageIsAckedOnItsRedelivery(t *testing.T) {
	t.Parallel()
	for _, queueType := range []string{amqp.ClassicQueues, amqp.QuorumQueues} {
		for _, concurrency := range []int{1, 8} {
			t.Run(fmt.Sprintf("%s %d", queueType, concurrency), func(t *testing.T) {
				t.Parallel()
				url := testservers.RabbitMQ(t)
				c := dial(t, amqp.Config{URL: url, QueueType: queueType, Concurrency: concurrency})
				publisher := amqp.NewPublisher(c)
				id := uuid.New()
				publishVersions(t, publisher, []uuid.UUID{id}, 3)
				messages, subscriber := subscribe(t, c)
				slow := receive(t, messages)
				for range 3 { // before the end, as often as it may be
					amqp.LoseChannels(subscriber)
					awaitConsumers(t, raw(t, url), consumerQueue, 1)
				}
				require.Regexp(t, "^interrupted at .*unknown delivery tag", subscriber.State())
				slow.Ack()
				next := receive(t, messages)
				_, version := versionOf(t, next)
				require.Equal(t, 2, version, "the first is not handled again")

				amqp.AckWithoutChannel(subscriber, next) // the copy comes after the end
				last := receive(t, messages)
				_, version = versionOf(t, last)
				require.Equal(t, 3, version, "the second is not handled again")
				last.Ack()
				require.NoError(t, subscriber.Close())
				awaitCount(t, raw(t, url), consumerQueue, 0)

				// What is published again is no copy, and what was not finished is handled again.
				messages, subscriber = subscribe(t, c)
				again := event(id, 4)
				publish(t, publisher, again)
				receive(t, messages).Ack()
				publish(t, publisher, again.Copy())
				receive(t, messages).Nack()
				amqp.LoseChannels(subscriber)
				receive(t, messages).Ack()
			})
		}
	}
}

func awaitConsumers(t *testing.T, ch *amqp091.Channel, queue string, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		require.NoError(t, err)
		return q.Consumers == n
	}, patience, time.Millisecond)
}

// A broker whose consumer timeout is shorter than the handling closes the channel. A message that becomes a dead letter
// after that becomes one once.
func TestConsumerTimeoutOfTheBroker(t *testing.T) {
	t.Parallel()
	server, err := testservers.StartRabbitMQ(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop()) })
	_, err = server.Control("eval", // it looks once in a tick, by default once a minute
		"application:set_env(rabbit, consumer_timeout, 1000), application:set_env(rabbit, channel_tick_interval, 500).")
	require.NoError(t, err)
	url := server.URL()
	c := dial(t, amqp.Config{URL: url})
	publisher := amqp.NewPublisher(c)
	publish(t, publisher, event(uuid.New(), 1))
	messages, subscriber := subscribe(t, c)
	slow := receive(t, messages)
	require.Eventually(t, func() bool { return subscriber.State() != "" }, 3*time.Minute, 10*time.Millisecond)
	require.Contains(t, subscriber.State(), "consumer_timeout")
	require.NoError(t, amqp.NewFailedQueue(c).Put(slow.Context(), slow, failure()))
	slow.Ack()
	publish(t, publisher, event(uuid.New(), 1))
	receive(t, messages).Ack() // it comes behind the copy of the first
	require.NoError(t, subscriber.Close())
	ch := raw(t, url)
	awaitCount(t, ch, failedQueue, 1)
	awaitCount(t, ch, consumerQueue, 0)
}

// A worker that consumes alone gives nothing back while a message is in flight: another consumer could overtake it.
func TestAloneRequeuesAtTheEnd(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url})
	publishVersions(t, amqp.NewPublisher(c), newIDs(1), 3)
	messages, subscriber := subscribe(t, c)
	m := receive(t, messages)
	closed := make(chan error, 1)
	go func() { closed <- subscriber.Close() }()
	ch := raw(t, url)
	require.Never(t, func() bool { return count(t, ch, consumerQueue) > 0 }, 300*time.Millisecond, 10*time.Millisecond)
	m.Ack()
	require.NoError(t, <-closed)
	awaitCount(t, ch, consumerQueue, 2)
}

// A worker on standby does not say that another consumes when nobody does.
func TestStandbyOfAQueueThatNobodyConsumes(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	s := dial(t, amqp.Config{URL: url})
	release, standby := subscribeBehindALock(t, url, s)
	require.Eventually(t, func() bool {
		_, err := standby.Consuming()
		return err != nil && err.Error() == "queue "+consumerQueue+" is not consumed: another worker has its lock and does not consume it"
	}, patience, time.Millisecond)
	release()
	require.Eventually(t, func() bool {
		state, err := standby.Consuming()
		return err == nil && state == ""
	}, patience, time.Millisecond)
}

// subscribeBehindALock subscribes while another connection has the lock of the queue, and no consumer. The lock is released
// by release.
func subscribeBehindALock(t *testing.T, url string, c *amqp.Connection) (release func(), s *amqp.Subscriber) {
	t.Helper()
	other := raw(t, url)
	_, err := other.QueueDeclare(consumerQueue+".reader", false, false, true, false, amqp091.Table{"x-queue-type": "classic"})
	require.NoError(t, err)
	_, s = subscribe(t, c)
	return func() {
		_, err := other.QueueDelete(consumerQueue+".reader", false, false, false)
		require.NoError(t, err)
	}, s
}

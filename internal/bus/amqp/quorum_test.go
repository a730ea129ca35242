package amqp_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/test/testservers"
)

func TestQuorumQueuesAreRefusedWhereClassicOnesAre(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	dial(t, amqp.Config{URL: url})
	_, err := amqp.Dial(t.Context(), amqp.Config{URL: url, QueueType: amqp.QuorumQueues})
	var topology *amqp.TopologyError
	require.ErrorAs(t, err, &topology)
	require.Equal(t, "queue", topology.Kind)
	var answer *amqp091.Error
	require.ErrorAs(t, err, &answer)
	require.Equal(t, amqp091.PreconditionFailed, answer.Code)
	require.ErrorContains(t, err, "x-queue-type")
	require.ErrorContains(t, err, "--queue-type")
}

// What a worker that stops gives back is as it was, order and count, however often, and letters keep it.
func TestQuorumQueuesKeepTheOrderOfWhatReturns(t *testing.T) {
	t.Parallel()
	const messages, rounds = 30, 25 // more than the limit that newer brokers set
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url, QueueType: amqp.QuorumQueues, Prefetch: 10, Concurrency: 2})
	publisher := amqp.NewPublisher(c)
	publishVersions(t, publisher, []uuid.UUID{uuid.New()}, messages)
	for range rounds {
		in, subscriber := subscribe(t, c)
		m := receive(t, in)
		_, version := versionOf(t, m)
		require.Equal(t, 1, version)
		m.Nack()
		require.NoError(t, subscriber.Close())
	}
	in, subscriber := subscribe(t, c)
	queue := amqp.NewFailedQueue(c)
	var want, got []string
	for version := 1; version <= messages; version++ {
		m := receive(t, in)
		_, got := versionOf(t, m)
		require.Equal(t, version, got)
		want = append(want, m.UUID)
		require.NoError(t, queue.Put(m.Context(), m, failure()))
		m.Ack()
	}
	require.NoError(t, subscriber.Close())

	for _, l := range lettersOf(t, c) {
		got = append(got, l.Event.ID.String())
	}
	require.Equal(t, want, got)
}

// The consumer of a channel that was closed may be there for a while: what it had comes first.
func TestQuorumQueuesReturnBeforeTheNextConsumer(t *testing.T) {
	t.Parallel()
	const messages, prefetch = 20, 10
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url, QueueType: amqp.QuorumQueues})
	publishVersions(t, amqp.NewPublisher(c), []uuid.UUID{uuid.New()}, messages)
	former := raw(t, url)
	require.NoError(t, former.Qos(prefetch, 0, false))
	deliveries, err := former.Consume(consumerQueue, "", false, false, false, false, nil)
	require.NoError(t, err)
	for range prefetch {
		<-deliveries
	}
	closes := time.AfterFunc(300*time.Millisecond, func() { _ = former.Close() })
	defer closes.Stop()
	in, _ := subscribe(t, c)
	for want := 1; want <= messages; want++ {
		m := receive(t, in)
		_, version := versionOf(t, m)
		require.Equal(t, want, version)
		require.True(t, m.Ack())
	}
}

// Another program may have declared the quorum queues, with another delivery limit or none.
func TestQuorumQueuesOfAnotherProgram(t *testing.T) {
	t.Parallel()
	deadLettering := amqp091.Table{"x-dead-letter-exchange": "healz.events.dlx", "x-dead-letter-routing-key": "failed"}
	for name, test := range map[string]struct {
		limit     any
		arguments amqp091.Table
		refused   string
	}{
		"no limit":      {nil, deadLettering, ""},
		"another limit": {int32(50), deadLettering, ""},
		"another limit and a TTL": {
			int32(50), amqp091.Table{
				"x-dead-letter-exchange": "healz.events.dlx", "x-dead-letter-routing-key": "failed", "x-message-ttl": 60_000,
			}, "x-message-ttl",
		},
		"its own target": {nil, amqp091.Table{"x-dead-letter-exchange": "elsewhere"}, "x-dead-letter-exchange"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testservers.RabbitMQ(t)
			ch := raw(t, url)
			for queue, arguments := range map[string]amqp091.Table{consumerQueue: test.arguments, failedQueue: {}} {
				arguments = maps.Clone(arguments)
				arguments["x-queue-type"] = "quorum"
				if test.limit != nil {
					arguments["x-delivery-limit"] = test.limit
				}
				_, err := ch.QueueDeclare(queue, true, false, false, false, arguments)
				require.NoError(t, err)
			}
			lines, logger := newLog()
			config := amqp.Config{URL: url, QueueType: amqp.QuorumQueues, Logger: logger}
			survey, err := amqp.Inspect(t.Context(), config)
			require.NoError(t, err)
			if test.refused != "" {
				_, err := amqp.Dial(t.Context(), config)
				require.ErrorContains(t, err, test.refused)
				return
			}
			for _, p := range survey.Parts {
				require.NoError(t, p.Err)
				require.Equal(t, p.Kind == "queue" && p.Name != "", p.OtherLimit, p.Name)
			}
			c := dial(t, config)
			require.Equal(t, 2, strings.Count(lines.String(), "level=WARN"), lines)
			require.Contains(t, lines.String(), "x-delivery-limit")
			publishVersions(t, amqp.NewPublisher(c), []uuid.UUID{uuid.New()}, 1)
			in, _ := subscribe(t, c)
			require.True(t, receive(t, in).Ack())
		})
	}
}

// limited is a Connection to quorum queues with the limit that RabbitMQ 4 sets by default.
func limited(t *testing.T, prefetch int) (*amqp.Connection, *amqp091.Channel) {
	t.Helper()
	c := amqp.Config{URL: quorumByDefault(t), Prefetch: prefetch, Concurrency: 1, DrainTimeout: time.Millisecond}
	if !hasDefaultLimit(t, c.URL) { // there, a vhost has no default type either
		setPolicy(t, c.URL, "policies", "consumer$", `{"delivery-limit":20}`)
		c.QueueType = amqp.QuorumQueues
	}
	return dial(t, c), raw(t, c.URL)
}

// A worker that restarts often makes no dead letters, where the queue has a limit, if it handles some messages each time.
func TestQuorumQueueWithTheDefaultLimitKeepsWhatIsPrefetched(t *testing.T) {
	t.Parallel()
	const messages, prefetch, restarts, acks = 120, 30, 25, 4
	c, ch := limited(t, prefetch)
	publishVersions(t, amqp.NewPublisher(c), []uuid.UUID{uuid.New()}, messages)
	awaitCount(t, ch, consumerQueue, messages)
	handled := 0
	handle := func(in <-chan *message.Message, n int) {
		for range n {
			m := receive(t, in)
			_, version := versionOf(t, m)
			handled++
			require.Equal(t, handled, version, "in order")
			require.True(t, m.Ack())
		}
	}
	for range restarts {
		in, subscriber := subscribe(t, c)
		handle(in, acks)
		receive(t, in) // is in flight
		require.NoError(t, subscriber.Close())
	}
	in, _ := subscribe(t, c)
	handle(in, messages-restarts*acks)
	require.Zero(t, count(t, ch, failedQueue))
}

// If it handles none, 21 times, what it has prefetched becomes dead letters that say why, and nothing is lost.
func TestQuorumQueueWithTheDefaultLimitLosesNothing(t *testing.T) {
	t.Parallel()
	const messages, prefetch, returns = 30, 10, 21
	c, ch := limited(t, prefetch)
	publishVersions(t, amqp.NewPublisher(c), []uuid.UUID{uuid.New()}, messages)
	awaitCount(t, ch, consumerQueue, messages)
	for range returns {
		require.Zero(t, count(t, ch, failedQueue))
		in, subscriber := subscribe(t, c)
		receive(t, in)
		require.NoError(t, subscriber.Close())
	}
	awaitCount(t, ch, failedQueue, prefetch)
	awaitCount(t, ch, consumerQueue, messages-prefetch)
	letters := lettersOf(t, c)
	require.Len(t, letters, prefetch)
	for i, l := range letters {
		require.Equal(t, "dead-lettered by the broker: delivery_limit", l.Reason)
		require.Equal(t, i+1, l.Event.AggregateVersion)
	}
}

func TestPartitionsOfQuorumQueues(t *testing.T) {
	t.Parallel()
	config := amqp.Config{URL: partitionable(t), Partitions: 3, QueueType: amqp.QuorumQueues, Concurrency: 4}
	c := newCrew(t)
	first := c.join(config)
	publish := publisherOf(t, first.conn, newIDs(20))
	publish(10)
	second := c.join(config)
	require.Eventually(t, func() bool {
		c.awaitHandled(publish(10))
		return len(second.queues()) > 0
	}, 3*patience, time.Millisecond)
	publish(30)
	require.NoError(t, second.Close())
	c.awaitHandled(publish(10))
	require.Empty(t, c.faults())
}

// A quorum queue dead-letters what is rejected, as a classic one.
func TestQuorumQueuesDeadLetter(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url, QueueType: amqp.QuorumQueues})
	require.NoError(t, amqp.NewPublisher(c).PublishBatch(t.Context(), []*message.Message{event(uuid.New(), 1)}))
	ch := raw(t, url)
	require.Eventually(t, func() bool {
		d, ok, err := ch.Get(consumerQueue, false)
		require.NoError(t, err)
		if ok {
			require.NoError(t, d.Reject(false))
		}
		return ok
	}, patience, time.Millisecond)
	awaitCount(t, ch, failedQueue, 1)
}

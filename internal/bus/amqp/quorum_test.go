package amqp_test

import (
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

package amqp_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
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

// limitedBroker starts a broker that takes no message of more than maxMessageSize bytes, as RabbitMQ 4 does at 16 MiB.
func limitedBroker(t *testing.T, maxMessageSize int) string {
	t.Helper()
	server, err := testservers.StartRabbitMQ(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop()) })
	_, err = server.Control("eval", fmt.Sprintf( // RabbitMQ 3 reads the first, 4 the second
		"application:set_env(rabbit, max_message_size, %[1]d), persistent_term:put(max_message_size, %[1]d).", maxMessageSize))
	require.NoError(t, err)
	return server.URL()
}

// ofSize is an event whose body has a size.
func ofSize(size int) *message.Message {
	m := event(uuid.New(), 1)
	m.Payload = append(m.Payload, bytes.Repeat([]byte(" "), size-len(m.Payload))...)
	return m
}

func TestWhatIsOverTheBrokersMaxMessageSize(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	url := limitedBroker(t, limit)
	c := dial(t, amqp.Config{URL: url})
	publisher, ch := amqp.NewPublisher(c), raw(t, url)
	refusedAt := func(err error) int {
		refused := &bus.RefusedError{}
		require.ErrorAs(t, err, &refused)
		require.ErrorIs(t, err, amqp.ErrTooLarge)
		require.ErrorContains(t, err, fmt.Sprint("max_message_size of ", limit))
		return refused.Index
	}

	batch := []*message.Message{event(uuid.New(), 1), event(uuid.New(), 1), ofSize(limit + 1), event(uuid.New(), 1), ofSize(2 * limit)}
	require.Equal(t, 2, refusedAt(publisher.PublishBatch(t.Context(), batch)), "the limit is learnt from the refusal")
	_, err := ch.QueuePurge(consumerQueue, false)
	require.NoError(t, err)
	for i := range 3 { // a batch of which one is over the limit is not begun
		require.Equal(t, 2, refusedAt(publisher.PublishBatch(t.Context(), batch)), i)
		require.Zero(t, count(t, ch, consumerQueue))
	}
	batch = slices.Delete(batch, 2, 3)
	require.Equal(t, 3, refusedAt(publisher.PublishBatch(t.Context(), batch)))
	require.NoError(t, publisher.PublishBatch(t.Context(), append(batch[:3], ofSize(limit))))
	require.Equal(t, 4, count(t, ch, consumerQueue))
	_, err = ch.QueuePurge(consumerQueue, false)
	require.NoError(t, err)

	t.Run("postponed, dead letter and replay", func(t *testing.T) {
		t.Parallel()
		c := dial(t, amqp.Config{URL: url, Prefix: "other", RetryLater: []time.Duration{time.Hour}})
		q := amqp.NewFailedQueue(c) // on a connection that has not learnt the limit
		table := newTable(t)
		q.Table = table
		m := ofSize(limit + 1)
		wait, err := q.Postpone(t.Context(), m, mayPass(1, time.Now()))
		require.NoError(t, err)
		require.Zero(t, wait, "it becomes a dead letter")
		require.NoError(t, q.Put(t.Context(), m, failure()))
		require.NoError(t, q.Put(t.Context(), event(uuid.New(), 1), failure()))
		require.NoError(t, q.Degraded(), "the queue takes others")
		letters := waiting(t, table)
		require.Len(t, letters, 1)
		require.Equal(t, []byte(m.Payload), letters[0].Body)
		small := deadletter.Letter{ID: "small", Body: []byte("small")}
		sendings := release(t, q, deadletter.ToHandler, small, letters[0], small, letters[0], small)
		for i, s := range sendings {
			if i%2 == 0 {
				require.Zero(t, s)
			} else {
				require.ErrorIs(t, s.Problem, amqp.ErrTooLarge)
			}
		}
		require.Equal(t, 3, count(t, ch, "other.consumer"), "each once")
	})
}

// The broker does not say which message of a batch it does not take.
func TestWhatTheBrokerDoesNotTakeForAnotherReason(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	publisher := amqp.NewPublisher(dial(t, amqp.Config{URL: url}))
	batch := []*message.Message{event(uuid.New(), 1), event(uuid.New(), 1), event(uuid.New(), 1)}
	batch[1].Metadata["CC"] = "not a list"
	refused := &bus.RefusedError{}
	require.ErrorAs(t, publisher.PublishBatch(t.Context(), batch), &refused)
	require.Equal(t, 1, refused.Index)
	require.NoError(t, publisher.PublishBatch(t.Context(), slices.Delete(batch, 1, 2)))
}

// What is confirmed is acked, so that it need not be published again with the others.
func TestConfirmedMessagesOfABatchThatFailsAreAcked(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	publisher := amqp.NewPublisher(dial(t, amqp.Config{URL: url}))
	ch := raw(t, url)
	_, err := ch.QueueDeclare("full", true, false, false, false, amqp091.Table{
		amqp091.QueueMaxLenArg: 2, amqp091.QueueOverflowArg: amqp091.QueueOverflowRejectPublish,
	})
	require.NoError(t, err)
	require.NoError(t, ch.QueueBind("full", "#", "healz.events", false, nil))
	batch := []*message.Message{event(uuid.New(), 1), event(uuid.New(), 1), event(uuid.New(), 1)}
	require.ErrorIs(t, publisher.PublishBatch(t.Context(), batch), amqp.ErrUnconfirmed)
	for i, m := range batch {
		acked := false
		select {
		case <-m.Acked():
			acked = true
		default:
		}
		require.Equal(t, i < 2, acked, i)
	}
}

// A content header that does not fit into a frame of the broker would end the connection, again and again.
func TestHeadersOverTheBrokersFrame(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url})
	amqp.SetFrame(c, 8<<10)
	publisher := amqp.NewPublisher(c)
	large := event(uuid.New(), 1)
	large.Metadata["large"] = strings.Repeat("x", 9<<10)
	require.ErrorIs(t, publisher.PublishBatch(t.Context(), []*message.Message{large}), amqp.ErrTooLarge)
	publish(t, publisher, event(uuid.New(), 1))
	require.Equal(t, 1, count(t, raw(t, url), consumerQueue))
	q := amqp.NewFailedQueue(c)
	require.NoError(t, q.Put(t.Context(), large, failure()), "without its headers")
}

func TestTheLimitInARefusal(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"PRECONDITION_FAILED - message size 17825792 is larger than configured max size 16777216": 16777216,
		"PRECONDITION_FAILED - message size 134217729 is larger than max size 134217728":          134217728,
		"PRECONDITION_FAILED - message size 134217729 larger than configured max size 134217728":  134217728,
		"PRECONDITION_FAILED - invalid expiration 'soon': no_integer":                             0,
		"PRECONDITION_FAILED - message size 1 is larger than max size 99999999999999999999":       0,
	} {
		require.Equal(t, want, amqp.LimitIn(text), text)
	}
}

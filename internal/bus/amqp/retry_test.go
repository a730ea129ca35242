package amqp_test

import (
	"context"
	"maps"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/test/testservers"
)

func mayPass(attempts int, at time.Time) deadletter.Failure {
	return deadletter.Failure{Reason: "r", Handler: "h", Attempts: attempts, FirstFailed: at, LastFailed: at, MayPass: true}
}

// A message is postponed step by step, and the letter that it becomes is as the message was, with the whole story.
func TestPostponedStepByStep(t *testing.T) {
	t.Parallel()
	steps := []time.Duration{30 * time.Millisecond, time.Second, 30 * time.Millisecond}
	died := amqp091.Table{ // as if it had expired in the very queue that it returns to
		"x-death": []any{amqp091.Table{
			"count": int64(1), "reason": "expired", "queue": consumerQueue, "exchange": "healz.events",
			"routing-keys": []any{"odd"}, "time": time.Unix(1_778_051_289, 0),
		}},
		"x-first-death-exchange": "healz.events", "x-first-death-queue": consumerQueue, "x-first-death-reason": "expired",
	}
	for name, test := range map[string]struct {
		queueType string
		headers   amqp091.Table
	}{
		"classic": {amqp.ClassicQueues, nil}, "quorum": {amqp.QuorumQueues, nil}, "once expired": {amqp.ClassicQueues, died},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testservers.RabbitMQ(t)
			c := dial(t, amqp.Config{URL: url, RetryLater: steps, QueueType: test.queueType})
			messages, _ := subscribe(t, c)
			sent := everyType()
			maps.Copy(sent.Headers, test.headers)
			require.NoError(t, raw(t, url).PublishWithContext(t.Context(), "healz.events", "odd", true, false, sent))
			queue := amqp.NewFailedQueue(c)
			first := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)

			for i, step := range steps {
				m := receive(t, messages)
				if i > 0 {
					require.Equal(t, "h", m.Metadata.Get(bus.ReplayHandlerKey))
				}
				require.Equal(t, sent.Body, []byte(m.Payload))
				wait, err := queue.Postpone(m.Context(), m, mayPass(i+1, first.Add(time.Duration(i)*time.Hour)))
				require.NoError(t, err)
				require.Equal(t, step, wait)
				require.True(t, m.Ack())
			}
			m := receive(t, messages)
			last := mayPass(4, first.Add(4*time.Hour))
			wait, err := queue.Postpone(m.Context(), m, last)
			require.NoError(t, err)
			require.Zero(t, wait, "no step is left")
			require.NoError(t, queue.Put(m.Context(), m, last))
			require.True(t, m.Ack())

			letters := lettersOf(t, c)
			require.Len(t, letters, 1)
			require.Equal(t, consumerQueue, letters[0].Source)
			last.Attempts, last.FirstFailed, last.MayPass = 1+2+3+4, first, false
			require.Equal(t, last, letters[0].Failure)

			require.Equal(t, []deadletter.Sending{{}}, release(t, queue, deadletter.ToHandler, letters...))
			m = receive(t, messages)
			again := replayed(t, amqp.DeliveryOf(m))
			delete(again.Headers, "x-delivery-count") // a quorum queue adds it
			sent.Headers[bus.ReplayHandlerKey] = "h"
			require.Equal(t, sent, again)
			wait, err = queue.Postpone(m.Context(), m, last)
			require.NoError(t, err)
			require.Zero(t, wait, "it will not pass")
			last.MayPass = true
			wait, err = queue.Postpone(m.Context(), m, last)
			require.NoError(t, err)
			require.Equal(t, steps[0], wait, "a replay begins anew")
		})
	}
}

func TestPostponedMessagesWaitAsLongAsTold(t *testing.T) {
	t.Parallel()
	c := dial(t, amqp.Config{URL: testservers.RabbitMQ(t), RetryLater: []time.Duration{time.Minute, 200 * time.Millisecond}})
	messages, _ := subscribe(t, c)
	queue := amqp.NewFailedQueue(c)
	m := event(uuid.New(), 1)
	m.Metadata.Set("postponed_count", "1") // the second step
	began := time.Now()
	wait, err := queue.Postpone(t.Context(), m, mayPass(1, began))
	require.NoError(t, err)
	require.Equal(t, 200*time.Millisecond, wait)
	again := receive(t, messages)
	require.GreaterOrEqual(t, time.Since(began), wait)
	require.Equal(t, string(m.Payload), string(again.Payload))
}

func TestPostponedMessagesReturnToTheirPartition(t *testing.T) {
	t.Parallel()
	c := dial(t, amqp.Config{URL: partitionable(t), Partitions: 4, RetryLater: []time.Duration{10 * time.Millisecond}})
	subscriber, queue := amqp.NewSubscriber(c), amqp.NewFailedQueue(c)
	topics := make(chan string, 2)
	for _, topic := range c.Topics() {
		messages, err := subscriber.Subscribe(t.Context(), topic)
		require.NoError(t, err)
		go func() {
			for m := range messages {
				if _, err := queue.Postpone(m.Context(), m, mayPass(1, time.Now())); err != nil {
					t.Error(err)
				}
				topics <- topic
				m.Ack()
			}
		}()
	}
	publish(t, amqp.NewPublisher(c), event(uuid.New(), 1))
	first := <-topics
	require.Contains(t, first, consumerQueue+".")
	require.Equal(t, first, <-topics)
	require.NoError(t, subscriber.Close())
}

// A message that may not wait becomes a dead letter: it must not keep its place. What is missing is declared again.
func TestPostponeWhereTheRetryQueueIsFullOrMissing(t *testing.T) {
	t.Parallel()
	const retryQueue = "healz.events.retry.1h"
	url := testservers.RabbitMQ(t)
	q, ch := amqp.NewFailedQueue(dial(t, amqp.Config{URL: url, RetryLater: []time.Duration{time.Hour}})), raw(t, url)
	postpone := func() time.Duration {
		t.Helper()
		wait, err := q.Postpone(t.Context(), event(uuid.New(), 1), mayPass(1, time.Now()))
		require.NoError(t, err)
		return wait
	}
	require.NoError(t, ch.ExchangeDelete(retryQueue, false, false))
	require.Equal(t, time.Hour, postpone())
	_, err := ch.QueueDelete(retryQueue, false, false, false)
	require.NoError(t, err)
	require.Equal(t, time.Hour, postpone())
	require.Equal(t, 1, count(t, ch, retryQueue))

	_, err = ch.QueueDelete(retryQueue, false, false, false)
	require.NoError(t, err)
	_, err = ch.QueueDeclare(retryQueue, true, false, false, false, amqp091.Table{
		amqp091.QueueMaxLenArg: 1, amqp091.QueueOverflowArg: amqp091.QueueOverflowRejectPublish,
	})
	require.NoError(t, err)
	require.NoError(t, ch.QueueBind(retryQueue, "", retryQueue, false, nil))
	require.Equal(t, time.Hour, postpone())
	require.Zero(t, postpone())
	require.Equal(t, 1, count(t, ch, retryQueue))
}

// Messages that the broker cannot take now do not keep their places in flight: they become dead letters in the table.
func TestPostponeIsBoundedWhileTheBrokerDoesNotTakeIt(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(*proxy){
		"blocked":     func(network *proxy) { network.inject(10, 60, "\x06memory") },
		"unavailable": func(network *proxy) { network.refuse(true); network.cut() },
		"half-open":   func(network *proxy) { network.freeze() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testservers.RabbitMQ(t)
			network, throughProxy := newProxy(t, url)
			c := dial(t, amqp.Config{URL: throughProxy, RetryLater: []time.Duration{time.Hour}})
			q, table := amqp.NewFailedQueue(c), newTable(t)
			q.Table = table
			messages, _ := subscribe(t, dial(t, amqp.Config{URL: url, RetryLater: []time.Duration{time.Hour}}))
			require.NoError(t, raw(t, url).PublishWithContext(t.Context(), "healz.events", "odd", true, false, everyType()))
			m := receive(t, messages)
			harm(network)
			if name != "half-open" {
				require.Eventually(t, func() bool { return c.Ready() != nil }, patience, time.Millisecond)
			}
			ctx, cancel := context.WithTimeout(m.Context(), 20*time.Second)
			defer cancel()
			wait, err := q.Postpone(ctx, m, mayPass(1, time.Now()))
			require.NoError(t, err)
			require.Zero(t, wait)
			require.NoError(t, q.Put(ctx, m, failure()))
			letters := waiting(t, table)
			require.Len(t, letters, 1)
			require.Equal(t, failure().Attempts, letters[0].Failure.Attempts)
			require.NotContains(t, letters[0].Headers, "postponed_count")
		})
	}
}

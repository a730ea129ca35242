package amqp_test

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/test/testservers"
)

// events are n events of as many aggregates as a busy clinic has in hand.
func events(n int) []*message.Message {
	aggregates := newIDs(100)
	batch := make([]*message.Message, n)
	for i := range batch {
		batch[i] = event(aggregates[i%len(aggregates)], i/len(aggregates)+1)
	}
	return batch
}

func perSecond(b *testing.B) {
	b.Helper()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

func BenchmarkPublish(b *testing.B) {
	b.Run("raw, pipelined", func(b *testing.B) {
		url := testservers.RabbitMQ(b)
		dial(b, amqp.Config{URL: url})
		batch := events(b.N)
		ch := raw(b, url)
		require.NoError(b, ch.Confirm(false))
		confirms := ch.NotifyPublish(make(chan amqp091.Confirmation, 1000))
		b.ResetTimer()
		inFlight := 0
		for _, m := range batch {
			p, err := amqp.Marshal(m)
			require.NoError(b, err)
			if inFlight++; inFlight > 1000 {
				<-confirms
				inFlight--
			}
			require.NoError(b, ch.PublishWithContext(b.Context(), "healz.events", "Tested", true, false, p))
		}
		for ; inFlight > 0; inFlight-- {
			<-confirms
		}
		perSecond(b)
	})
	for name, size := range map[string]int{"one by one": 1, "batches of 100": 100, "batches of 1000": 1000} {
		b.Run(name, func(b *testing.B) {
			publisher := amqp.NewPublisher(dial(b, amqp.Config{URL: testservers.RabbitMQ(b)}))
			batch := events(b.N)
			b.ResetTimer()
			for len(batch) > 0 {
				n := min(size, len(batch))
				require.NoError(b, publisher.PublishBatch(b.Context(), batch[:n]))
				batch = batch[n:]
			}
			perSecond(b)
		})
	}
}

func BenchmarkConsume(b *testing.B) {
	fill := func(b *testing.B) (*amqp.Connection, string) {
		b.Helper()
		url := testservers.RabbitMQ(b)
		c := dial(b, amqp.Config{URL: url})
		require.NoError(b, amqp.NewPublisher(c).PublishBatch(b.Context(), events(b.N)))
		b.ResetTimer()
		return c, url
	}
	b.Run("raw, ack each", func(b *testing.B) {
		_, url := fill(b)
		ch := raw(b, url)
		require.NoError(b, ch.Qos(amqp.DefaultPrefetch, 0, false))
		deliveries, err := ch.Consume(consumerQueue, "", false, false, false, false, nil)
		require.NoError(b, err)
		for range b.N {
			require.NoError(b, (<-deliveries).Ack(false))
		}
		perSecond(b)
	})
	b.Run("subscriber", func(b *testing.B) {
		c, _ := fill(b)
		messages, subscriber := subscribe(b, c)
		for range b.N {
			m := <-messages
			go m.Ack()
		}
		require.NoError(b, subscriber.Close())
		perSecond(b)
	})
}

func BenchmarkIngestDeadLetters(b *testing.B) {
	c := dial(b, amqp.Config{URL: testservers.RabbitMQ(b)})
	table := newTable(b)
	fill(b, c, b.N)
	b.ResetTimer()
	require.Equal(b, b.N, takeIn(b, c, table))
	perSecond(b)
}

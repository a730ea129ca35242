package amqp_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/test/heap"
	"github.com/healz/worker/internal/test/testservers"
)

// The prefetch would allow 256 or 320 MB of such messages. Decision 0016 names the bound: garbage is collected when the heap
// has doubled. The test runs alone, as it measures the process.
//
//nolint:paralleltest // see above
func TestMemoryUnderLargeMessages(t *testing.T) {
	const messages = 16
	size := min(20<<20, testservers.MaxMessageSize(t)-1000)
	most := 2 * (64<<20 + 2*size)
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url, MaxMessage: 32 << 20})
	body := fmt.Appendf(nil, `{"event_id":%q,"event_type":"Large","aggregate_id":%q,"event_data":%q}`,
		uuid.New(), uuid.New(), bytes.Repeat([]byte("x"), size))
	ch := raw(t, url)
	require.NoError(t, ch.Confirm(false))
	var confirms []*amqp091.DeferredConfirmation
	for i := range messages {
		p := amqp091.Publishing{Body: body, MessageId: "1", Headers: amqp091.Table{
			"aggregate_id": "1", "event_type": "Large", "correlation_id": "1", "created_at": "1",
		}}
		if i%8 == 0 {
			p = amqp091.Publishing{Body: body} // has to be looked into
		}
		confirm, err := ch.PublishWithDeferredConfirm("healz.events", "Large", true, false, p)
		require.NoError(t, err)
		confirms = append(confirms, confirm)
	}
	for _, confirm := range confirms {
		require.True(t, confirm.Wait())
	}
	measured := func(what string, work func(in <-chan *message.Message)) {
		end := heap.Peak(heap.All)
		in, subscriber := subscribe(t, c)
		work(in)
		require.NoError(t, subscriber.Close())
		peak := end()
		t.Logf("%d messages of %d MiB, %s, took %d MiB", messages, size>>20, what, peak>>20)
		require.Less(t, peak, most)
	}
	measured("given back at once", func(in <-chan *message.Message) { receive(t, in).Nack() })
	awaitCount(t, ch, consumerQueue, messages)
	measured("handled, the first one slowly", func(in <-chan *message.Message) {
		first := receive(t, in)
		require.Eventually(t, func() bool { return amqp.IsFull(c) }, patience, 10*time.Millisecond)
		<-time.After(3 * time.Second) // more could come meanwhile
		first.Ack()
		for range messages - 1 {
			m := receive(t, in)
			require.Len(t, m.Payload, len(body))
			m.Ack()
		}
	})
}

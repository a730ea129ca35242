package amqp_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/test/testservers"
)

// watcher keeps what it is told.
type watcher struct {
	mu        sync.Mutex
	confirmed []time.Duration
	lost      []string
}

func (w *watcher) Confirmed(took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.confirmed = append(w.confirmed, took)
}

func (w *watcher) ConnectionLost(connection string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = append(w.lost, connection)
}

func TestWatcherIsTold(t *testing.T) {
	t.Parallel()
	w := &watcher{}
	proxy, url := newProxy(t, testservers.RabbitMQ(t))
	conn := dial(t, amqp.Config{URL: url, Watcher: w, RetryLater: []time.Duration{time.Minute}})
	batch := []*message.Message{event(uuid.New(), 1), event(uuid.New(), 1)}
	require.NoError(t, amqp.NewPublisher(conn).PublishBatch(t.Context(), batch))
	require.Len(t, w.confirmed, 2)
	require.Positive(t, w.confirmed[0])
	depths, err := conn.Depths(t.Context())
	require.NoError(t, err)
	require.Equal(t, []amqp.QueueDepth{
		{Queue: consumerQueue, Messages: 2}, {Queue: "healz.events.retry.1m"}, {Queue: failedQueue},
	}, depths)
	require.Equal(t, map[string]bool{"publish": true, "consume": true}, conn.Up())

	proxy.cut()
	require.Eventually(t, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.lost) == 2
	}, patience, 5*time.Millisecond)
	require.ElementsMatch(t, []string{"publish", "consume"}, w.lost)
}

func TestDepthsWaitNoLongerThanTheyMay(t *testing.T) {
	t.Parallel()
	proxy, url := newProxy(t, testservers.RabbitMQ(t))
	conn := dial(t, amqp.Config{URL: url})
	proxy.freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := conn.Depths(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestDepthOfAQueueThatIsGone(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	conn := dial(t, amqp.Config{URL: url})
	_, err := raw(t, url).QueueDelete(failedQueue, false, false, false)
	require.NoError(t, err)
	_, err = conn.Depths(t.Context())
	require.ErrorContains(t, err, `queue "healz.events.failed"`)
	require.NoError(t, conn.Close())
	_, err = conn.Depths(t.Context())
	require.ErrorIs(t, err, amqp.ErrClosed)
}

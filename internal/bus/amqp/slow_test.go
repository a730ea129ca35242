package amqp_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/lease"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/relay"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/sqlite"
	"github.com/healz/worker/internal/store/storetest"
	"github.com/healz/worker/internal/test/testservers"
)

// A message that takes long, as the way to the broker is slow, does not make its connection look dead.
func TestSlowBrokerGetsTimeForALargeMessage(t *testing.T) {
	t.Parallel()
	network, url := newProxy(t, testservers.RabbitMQ(t))
	lines, logger := newLog()
	publisher := amqp.NewPublisher(dial(t, amqp.Config{URL: url, ResponseTimeout: time.Second, Logger: logger}))
	network.rate.Store(4 << 20)
	require.NoError(t, publisher.PublishBatch(t.Context(), []*message.Message{ofSize(8 << 20)}))
	require.NotContains(t, lines.String(), "connection to RabbitMQ lost")
}

// A batch that takes longer than the relay's patience is not published again while its events are confirmed; a single event
// that does so gets through in the end.
func TestSlowBrokerGetsEachEventOfTheRelay(t *testing.T) {
	t.Parallel()
	const (
		size, rate = 20 << 10, 1 << 20
		n          = 3 * rate / size // 3 s
	)
	server := testservers.RabbitMQ(t)
	network, url := newProxy(t, server)
	publisher := amqp.NewPublisher(dial(t, amqp.Config{URL: url}))
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "healz.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	require.NoError(t, s.Migrate(t.Context()))
	stream := storetest.NewStream()
	for range n {
		e := stream.Next()
		e.Data = []byte(`"` + strings.Repeat("x", size) + `"`)
		require.NoError(t, s.Append(t.Context(), e))
	}
	tail, err := s.Tail(t.Context(), store.TailConfig{BatchSize: 1000, Start: store.StartAuto})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, tail.Close()) })
	network.rate.Store(rate)
	r := relay.New(tail, lease.New(tail, store.RelayTask), publisher, relay.Config{
		Observer: observe.None{}, Poll: 10 * time.Millisecond, Patience: time.Second, Refused: deadletter.NewTable(s.SQL()),
	}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { r.Run(ctx) })
	idle := func() bool { state, _ := r.Status(); return state == relay.Idle }
	ch := raw(t, server)
	require.Eventually(t, func() bool { return count(t, ch, consumerQueue) >= n && idle() }, patience, 10*time.Millisecond)
	require.Equal(t, n, count(t, ch, consumerQueue), "each event once")

	large := stream.Next()
	large.Data = []byte(`"` + strings.Repeat("x", 3*rate) + `"`)
	require.NoError(t, s.Append(t.Context(), large))
	require.Eventually(t, func() bool { return count(t, ch, consumerQueue) > n && idle() }, patience, 10*time.Millisecond)
	require.LessOrEqual(t, count(t, ch, consumerQueue), n+4, "copies of the attempts that were given up")
}

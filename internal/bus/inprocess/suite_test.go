package inprocess

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/stretchr/testify/require"
)

// TestUniversalSuite runs Watermill's suite on the bus as it is used: behind an outbox. The others of the suite ask for
// what only a broker can do (messages that outlive the pub/sub, consumer groups, reconnects), and
// TestContinueAfterErrors for several subscribers of one topic of which some have stopped reading.
func TestUniversalSuite(t *testing.T) {
	t.Parallel()
	features := tests.Features{
		ExactlyOnceDelivery:   true,
		GuaranteedOrder:       true,
		RequireSingleInstance: true,
		ForceShort:            true,
	}
	for name, test := range map[string]func(*testing.T, tests.TestContext, tests.PubSubConstructor){
		"PublishSubscribe":                  tests.TestPublishSubscribe,
		"ConcurrentSubscribe":               tests.TestConcurrentSubscribe,
		"ConcurrentSubscribeMultipleTopics": tests.TestConcurrentSubscribeMultipleTopics,
		"ResendOnError":                     tests.TestResendOnError,
		"NoAck":                             tests.TestNoAck,
		"PublishSubscribeInOrder":           tests.TestPublishSubscribeInOrder,
		"PublisherClose":                    tests.TestPublisherClose,
		"Topic":                             tests.TestTopic,
		"MessageCtx":                        tests.TestMessageCtx,
		"SubscribeCtx":                      tests.TestSubscribeCtx,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, tests.TestContext{TestID: tests.NewTestID(), Features: features}, newOutbox)
		})
	}
}

// TestQueuesDoNotHoldUpEachOther has a message in hand on one queue while subscriptions of another end and begin.
func TestQueuesDoNotHoldUpEachOther(t *testing.T) {
	t.Parallel()
	b := New(2)
	publish := func(topic string) <-chan error {
		done := make(chan error, 1)
		go func() {
			done <- b.publish(t.Context(), map[string][]*message.Message{topic: {message.NewMessage("m", nil)}})
		}()
		return done
	}
	busy, err := b.Subscribe(t.Context(), "busy")
	require.NoError(t, err)
	published := publish("busy")
	inHand := <-busy

	for range 3 {
		ctx, stop := context.WithCancel(t.Context())
		other, err := b.Subscribe(ctx, "other")
		require.NoError(t, err)
		done := publish("other")
		(<-other).Ack()
		require.NoError(t, <-done)
		stop()
		_, open := <-other
		require.False(t, open)
	}

	inHand.Ack()
	require.NoError(t, <-published)
	require.NoError(t, b.Close())
}

// outbox stands for the store and the relay: it accepts messages at once and publishes those of each topic in order,
// each until it is acked.
type outbox struct {
	bus     *Bus
	closing context.Context
	close   func()

	mu     sync.Mutex
	queues map[string]chan *message.Message
	relays sync.WaitGroup
}

func newOutbox(t *testing.T) (message.Publisher, message.Subscriber) {
	t.Helper()
	b := New(1)
	o := &outbox{bus: b, queues: map[string]chan *message.Message{}}
	o.closing, o.close = context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(func() {
		require.NoError(t, o.Close())
		require.NoError(t, b.Close())
	})
	return o, b
}

func (o *outbox) Publish(topic string, messages ...*message.Message) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closing.Err() != nil {
		return ErrClosed
	}
	queue, known := o.queues[topic]
	if !known {
		queue = make(chan *message.Message, 10_000)
		o.queues[topic] = queue
		o.relays.Go(func() { o.relay(topic, queue) })
	}
	for _, m := range messages {
		queue <- m
	}
	return nil
}

func (o *outbox) relay(topic string, queue <-chan *message.Message) {
	for {
		select {
		case m := <-queue:
			if !o.publishUntilAcked(topic, m) {
				return
			}
		case <-o.closing.Done():
			return
		}
	}
}

func (o *outbox) publishUntilAcked(topic string, m *message.Message) bool {
	for {
		err := o.bus.publish(o.closing, map[string][]*message.Message{topic: {m}})
		if !errors.Is(err, ErrNoSubscriber) {
			return err == nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-o.closing.Done():
			return false
		}
	}
}

func (o *outbox) Close() error {
	o.mu.Lock()
	o.close()
	o.mu.Unlock()
	o.relays.Wait()
	return nil
}

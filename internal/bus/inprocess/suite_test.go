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

	"github.com/healz/worker/internal/bus"
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

// outbox stands for the store and the relay: it accepts messages at once and publishes those of each topic in order,
// each until it is acked. Each topic has a bus.
type outbox struct {
	closing context.Context
	close   func()

	mu     sync.Mutex
	topics map[string]*topic
	relays sync.WaitGroup
}

type topic struct {
	bus   *Bus
	queue chan *message.Message
}

func newOutbox(t *testing.T) (message.Publisher, message.Subscriber) {
	t.Helper()
	o := &outbox{topics: map[string]*topic{}}
	o.closing, o.close = context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(func() { require.NoError(t, o.Close()) })
	return o, subscriber{o}
}

// topic returns a topic, a new one at the first call.
func (o *outbox) topic(name string) (*topic, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closing.Err() != nil {
		return nil, ErrClosed
	}
	found, known := o.topics[name]
	if !known {
		found = &topic{bus: New(1), queue: make(chan *message.Message, 10_000)}
		o.topics[name] = found
		o.relays.Go(func() { o.relay(found) })
	}
	return found, nil
}

func (o *outbox) Publish(name string, messages ...*message.Message) error {
	to, err := o.topic(name)
	for _, m := range messages {
		if err == nil {
			to.queue <- m
		}
	}
	return err
}

func (o *outbox) relay(t *topic) {
	for {
		select {
		case m := <-t.queue:
			for bus.Deliver(o.closing, t.bus, []*message.Message{m.Copy()}) != nil {
				select {
				case <-time.After(time.Millisecond):
				case <-o.closing.Done():
					return
				}
			}
		case <-o.closing.Done():
			return
		}
	}
}

// Close ends the relays, and the buses of all topics.
func (o *outbox) Close() error {
	o.mu.Lock()
	o.close()
	o.mu.Unlock()
	o.relays.Wait()
	var errs []error
	for _, t := range o.topics {
		errs = append(errs, t.bus.Close())
	}
	return errors.Join(errs...)
}

// subscriber subscribes to the buses of an outbox.
type subscriber struct{ *outbox }

func (s subscriber) Subscribe(ctx context.Context, name string) (<-chan *message.Message, error) {
	from, err := s.topic(name)
	if err != nil {
		return nil, err
	}
	return from.bus.Subscribe(ctx, name)
}

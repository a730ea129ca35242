// Package inprocess is the bus of the embedded default: events go from the relay to the handlers of the same process.
//
// It stores nothing. The publisher publishes again what was not acked: the relay's position moves only once
// [Bus.PublishBatch] has returned nil, which it does only when every message was acked.
package inprocess

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/errgroup"

	"github.com/healz/worker/internal/bus"
)

var (
	// ErrClosed says that the bus has been closed, or was while it published.
	ErrClosed = errors.New("the in-process bus is closed")
	// ErrNoSubscriber says that a message was not acked because its queue has no subscriber, or no longer has one.
	ErrNoSubscriber = errors.New("no subscriber acknowledged the message")
)

// A nacked message is delivered again after the first of these delays, then after twice as long, up to the last.
const (
	firstRedelivery = 10 * time.Millisecond
	lastRedelivery  = 2 * time.Second
)

// Bus carries messages over a number of queues. The messages of one aggregate share a queue, which delivers one at a
// time: they are handled in order, while the queues run in parallel. All methods are safe for concurrent use.
//
// A handler must not wait for a publication to its own queue, which would wait for the handler.
type Bus struct {
	topics  []string
	seed    maphash.Seed
	closing chan struct{}

	mu      sync.Mutex
	closed  bool
	queues  map[string]*queue
	running sync.WaitGroup
}

// queue holds nothing: a publisher waits until a subscriber takes its message.
type queue struct {
	deliveries  chan delivery
	subscribers int
	deserted    chan struct{} // closed while there is no subscriber
}

type delivery struct {
	publisher context.Context //nolint:containedctx // ends when the publisher no longer waits
	message   *message.Message
	outcome   chan error // has room for one
}

// New returns a bus of that many queues, at least one: as many messages are handled at a time.
func New(queues int) *Bus {
	topics := make([]string, max(1, queues))
	for i := range topics {
		topics[i] = fmt.Sprintf("queue-%d", i)
	}
	return &Bus{topics: topics, seed: maphash.MakeSeed(), closing: make(chan struct{}), queues: map[string]*queue{}}
}

// Topics are the names of the queues. Each needs a subscriber before anything is published.
func (b *Bus) Topics() []string { return b.topics }

// PublishBatch publishes messages, those of an aggregate ([bus.AggregateIDKey]; a message without one goes by its UUID)
// in the order of the batch, each after the one before it in its queue was acked. It returns nil when all are acked.
//
// The error is, or wraps, [ErrClosed], [ErrNoSubscriber] or that of ctx. What was not delivered by then never will be; a
// message that a handler works on is not taken from it.
func (b *Bus) PublishBatch(ctx context.Context, batch []*message.Message) error {
	parts := make(map[string][]*message.Message, len(b.topics))
	for _, m := range batch {
		topic := b.topic(m)
		parts[topic] = append(parts[topic], m)
	}
	return b.publish(ctx, parts)
}

func (b *Bus) topic(m *message.Message) string {
	key := m.Metadata.Get(bus.AggregateIDKey)
	if key == "" {
		key = m.UUID
	}
	// A UUID may be in upper or lower case.
	return b.topics[maphash.String(b.seed, strings.ToLower(key))%uint64(len(b.topics))]
}

// publish publishes to all topics at once, and gives up at the first error.
func (b *Bus) publish(ctx context.Context, parts map[string][]*message.Message) error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return ErrClosed
	}
	b.running.Add(1)
	b.mu.Unlock()
	defer b.running.Done()
	group, ctx := errgroup.WithContext(ctx)
	for topic, part := range parts {
		group.Go(func() error {
			for _, m := range part {
				if err := b.publishOne(ctx, topic, m); err != nil {
					return fmt.Errorf("publish in process: message %s: %w", m.UUID, err)
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func (b *Bus) publishOne(ctx context.Context, topic string, m *message.Message) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	b.mu.Lock()
	q := b.queue(topic)
	deserted := q.deserted
	b.mu.Unlock()
	d := delivery{publisher: ctx, message: m, outcome: make(chan error, 1)}
	select {
	case q.deliveries <- d:
	case <-deserted:
		return ErrNoSubscriber
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-b.closing:
		return ErrClosed
	}
	select {
	case err := <-d.outcome:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-b.closing:
		return ErrClosed
	}
}

// queue returns the queue of a topic, a new one at the first call. The caller holds the mutex.
func (b *Bus) queue(topic string) *queue {
	q := b.queues[topic]
	if q == nil {
		q = &queue{deliveries: make(chan delivery), deserted: make(chan struct{})}
		close(q.deserted)
		b.queues[topic] = q
	}
	return q
}

// Subscribe returns the channel on which the messages of a topic arrive, each after the one before it was acked. A
// nacked one arrives again, after a delay that grows.
//
// When ctx ends, the channel is closed as soon as the message in flight is acked or nacked; when the bus closes, at
// once. Several subscribers of a topic share its messages.
func (b *Bus) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrClosed
	}
	q := b.queue(topic)
	if q.subscribers++; q.subscribers == 1 {
		q.deserted = make(chan struct{})
	}
	out := make(chan *message.Message)
	b.running.Go(func() {
		defer close(out)
		defer b.unsubscribe(q)
		for {
			select {
			case d := <-q.deliveries:
				d.outcome <- b.deliver(ctx, d, out)
			case <-ctx.Done():
				return
			case <-b.closing:
				return
			}
		}
	})
	return out, nil
}

func (b *Bus) unsubscribe(q *queue) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q.subscribers--; q.subscribers == 0 {
		close(q.deserted)
	}
}

// errNacked says that a message is to be delivered again.
var errNacked = errors.New("nacked")

// deliver delivers a message again and again until it is acked, or its publisher or the subscriber is gone.
func (b *Bus) deliver(ctx context.Context, d delivery, out chan<- *message.Message) error {
	for delay := firstRedelivery; ; delay = min(2*delay, lastRedelivery) {
		if err := b.deliverOnce(ctx, d, out); !errors.Is(err, errNacked) {
			return err
		}
		select {
		case <-time.After(delay):
		case <-d.publisher.Done():
		case <-ctx.Done():
		case <-b.closing:
			return ErrClosed
		}
	}
}

func (b *Bus) deliverOnce(ctx context.Context, d delivery, out chan<- *message.Message) error {
	if ctx.Err() != nil {
		return ErrNoSubscriber
	}
	if d.publisher.Err() != nil {
		return context.Cause(d.publisher) //nolint:contextcheck // see delivery
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := d.message.Copy()
	m.SetContext(ctx)
	select {
	case out <- m:
	case <-d.publisher.Done():
		return context.Cause(d.publisher) //nolint:contextcheck // see delivery
	case <-ctx.Done():
		return ErrNoSubscriber
	case <-b.closing:
		return ErrClosed
	}
	select {
	case <-m.Acked():
		return nil
	case <-m.Nacked():
		return errNacked
	case <-b.closing:
		return ErrClosed
	}
}

// Close ends all subscriptions and publications, and returns when they have ended. It does not wait for handlers: the
// messages that they work on count as not acked.
func (b *Bus) Close() error {
	b.mu.Lock()
	if !b.closed {
		b.closed = true
		close(b.closing)
	}
	b.mu.Unlock()
	b.running.Wait()
	return nil
}

// Package inprocess is the bus of the embedded default: events go from the relay to the handlers of the same process.
//
// It stores nothing. A message is acked once it was handled, and the relay's position moves no further than what is acked.
package inprocess

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/healz/worker/internal/bus"
)

var (
	// ErrClosed says that the bus has been closed.
	ErrClosed = errors.New("the in-process bus is closed")
	// ErrNoSubscriber says that the bus has no subscriber.
	ErrNoSubscriber = errors.New("the in-process bus has no subscriber")
)

// A nacked message is delivered again after the first of these delays, then after twice as long, up to the last.
const (
	firstRedelivery = 10 * time.Millisecond
	lastRedelivery  = 2 * time.Second
)

// Topic is the one topic of the bus.
const Topic = "events"

// Bus carries messages over one queue. The messages of one aggregate are delivered one at a time, in their order; those of
// others do not wait for them. All methods are safe for concurrent use.
//
// A handler must not wait until what it publishes to its own aggregate is handled.
type Bus struct {
	concurrency int
	closing     chan struct{}

	mu          sync.Mutex
	changed     sync.Cond // of what follows
	closed      bool
	queue       bus.KeyedQueue[delivery]
	publisher   context.Context //nolint:containedctx // that of the last batch
	subscribers int
	running     sync.WaitGroup
}

type delivery struct {
	publisher context.Context //nolint:containedctx // ends when the publisher no longer wants it to be delivered
	message   *message.Message
}

var _ bus.BatchPublisher = (*Bus)(nil)

// New returns a bus that delivers that many messages at once to each subscriber, at least one.
func New(concurrency int) *Bus {
	b := &Bus{concurrency: max(1, concurrency), closing: make(chan struct{})}
	b.changed.L = &b.mu
	return b
}

// Topics are the topics of the bus: [Topic]. It needs a subscriber before anything is published.
func (b *Bus) Topics() []string { return []string{Topic} }

// PublishBatch implements [bus.BatchPublisher]: the queue takes the messages, all or, with [ErrClosed], [ErrNoSubscriber] or
// the error of ctx, none. A message is acked once a handler has acked it, and nacked if the bus has no subscriber any more
// or is closed. When ctx ends, what is not in a handler's hands is not delivered, and nacked in its turn.
func (b *Bus) PublishBatch(ctx context.Context, batch []*message.Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return ErrClosed
	case b.subscribers == 0 && len(batch) > 0:
		return ErrNoSubscriber
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	if ctx != b.publisher { // in a new lease: what waits of the last one is not to pile up
		b.publisher = ctx
		b.giveBack(func(d delivery) bool { return d.publisher.Err() != nil })
	}
	for _, m := range batch {
		b.queue.Add(bus.KeyOf(m), delivery{ctx, m})
	}
	b.changed.Broadcast()
	return nil
}

// Subscribe returns the channel on which messages arrive, whatever the topic. A nacked one arrives again, after a delay that
// grows, and before the next of its aggregate.
//
// When ctx ends, the channel is closed as soon as the messages in flight are acked or nacked; when the bus closes, at
// once. Several subscribers share the messages. After the last one has ended, what waits is given back: another that
// subscribes then may get later messages before those are published again.
func (b *Bus) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrClosed
	}
	b.subscribers++
	out := make(chan *message.Message)
	var deliverers sync.WaitGroup
	for range b.concurrency {
		deliverers.Go(func() {
			for d, ok := b.take(ctx); ok; d, ok = b.take(ctx) {
				b.settle(d, b.deliver(ctx, d, out))
			}
		})
	}
	b.running.Go(func() {
		defer close(out)
		defer context.AfterFunc(ctx, b.broadcast)()
		deliverers.Wait()
		b.unsubscribe()
	})
	return out, nil
}

func (b *Bus) broadcast() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changed.Broadcast()
}

// take waits for the next message, until ctx ends or the bus is closed.
func (b *Bus) take(ctx context.Context) (d delivery, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		if b.closed || ctx.Err() != nil {
			b.changed.Broadcast() // others may take what this one leaves
			return delivery{}, false
		}
		if d, ok = b.queue.Next(); ok {
			b.queue.Take()
			return d, true
		}
		b.changed.Wait()
	}
}

// settle notes what became of a message. One that could not be delivered stays ahead of the next of its aggregate, unless
// its publisher no longer wants it.
func (b *Bus) settle(d delivery, delivered bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := bus.KeyOf(d.message)
	switch {
	case delivered:
		d.message.Ack()
	case d.publisher.Err() != nil || b.closed:
		d.message.Nack()
	default:
		b.queue.Again(key, d)
		return
	}
	b.queue.Done(key)
}

func (b *Bus) unsubscribe() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subscribers--; b.subscribers == 0 {
		b.giveBack(func(delivery) bool { return true })
	}
}

// giveBack nacks those that wait and are meant. The caller holds the mutex.
func (b *Bus) giveBack(meant func(delivery) bool) {
	for _, d := range b.queue.RemoveAll(meant) {
		d.message.Nack()
	}
}

// deliver delivers a message again and again until it is acked, or its publisher or the subscriber is gone.
func (b *Bus) deliver(ctx context.Context, d delivery, out chan<- *message.Message) (delivered bool) {
	for delay := firstRedelivery; ctx.Err() == nil && d.publisher.Err() == nil; delay = min(2*delay, lastRedelivery) {
		if b.deliverOnce(ctx, d, out) {
			return true
		}
		select {
		case <-time.After(delay):
		case <-d.publisher.Done():
		case <-ctx.Done():
		case <-b.closing:
			return false
		}
	}
	return false
}

func (b *Bus) deliverOnce(ctx context.Context, d delivery, out chan<- *message.Message) (acked bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := d.message.Copy()
	m.SetContext(ctx)
	select {
	case out <- m:
	case <-d.publisher.Done():
		return false
	case <-ctx.Done():
		return false
	case <-b.closing:
		return false
	}
	select {
	case <-m.Acked():
		return true
	case <-m.Nacked():
	case <-b.closing:
	}
	return false
}

// Close ends all subscriptions, and returns when they have ended. It does not wait for handlers: the messages that they work
// on are nacked, as those that wait are.
func (b *Bus) Close() error {
	b.mu.Lock()
	if !b.closed {
		b.closed = true
		close(b.closing)
	}
	b.changed.Broadcast()
	b.mu.Unlock()
	b.running.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.giveBack(func(delivery) bool { return true })
	return nil
}

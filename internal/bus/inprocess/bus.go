// Package inprocess is the bus of the embedded default: events go from the relay to the handlers of the same process,
// over Watermill's gochannel.
//
// Nothing is kept in it. That nothing is lost is up to the publisher, which asks again for whatever was not
// acknowledged: the relay's position moves only once [Bus.PublishBatch] has returned nil, and that it does only when
// handlers have acknowledged every message.
package inprocess

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/healz/worker/internal/bus"
)

var (
	// ErrClosed says that the bus has been closed, or was while it published.
	ErrClosed = errors.New("the in-process bus is closed")
	// ErrNoSubscriber says that a message was not acknowledged, as its lane has no subscriber, or lost it.
	ErrNoSubscriber = errors.New("no subscriber acknowledged the message")
)

// A message that was nacked comes again after the first of these delays, then after twice as long, up to the last.
const (
	firstRedelivery = 10 * time.Millisecond
	lastRedelivery  = 2 * time.Second
)

// Bus carries messages over a number of lanes. The messages of one aggregate share a lane, which delivers one at a
// time: they are handled in order, while the lanes run in parallel. All methods are safe for concurrent use.
//
// A handler must not wait for a publication to its own lane, which would wait for the handler.
type Bus struct {
	topics []string
	seed   maphash.Seed
	logger watermill.LoggerAdapter

	mu      sync.Mutex
	closed  bool
	closing chan struct{}
	running sync.WaitGroup
	// channels has one for each topic: over a shared one, a message in hand on any topic would hold up the beginning
	// and the end of subscriptions on all of them, and with these every other publication.
	channels map[string]*gochannel.GoChannel
}

// New returns a bus of that many lanes, at least one: as many messages are handled at a time.
func New(lanes int, logger *slog.Logger) *Bus {
	topics := make([]string, max(1, lanes))
	for i := range topics {
		topics[i] = fmt.Sprintf("lane-%d", i)
	}
	return &Bus{
		topics:   topics,
		seed:     maphash.MakeSeed(),
		logger:   watermill.NewSlogLoggerWithLevelMapping(logger, map[slog.Level]slog.Level{slog.LevelInfo: slog.LevelDebug}),
		closing:  make(chan struct{}),
		channels: make(map[string]*gochannel.GoChannel),
	}
}

// Topics are the topics of the lanes. Each needs one subscriber before anything is published.
func (b *Bus) Topics() []string { return b.topics }

// PublishBatch hands the messages to their lanes, those of an aggregate ([bus.AggregateIDKey]; a message without one
// goes by its UUID) in the order of the batch, and returns nil when a subscriber has acknowledged every one. A message
// is handed over when the one before it in its lane was acknowledged, and not otherwise.
//
// The error is, or wraps, [ErrClosed], [ErrNoSubscriber] or that of ctx. What was not handed over by then never will
// be; a message that is in a handler's hands stays there.
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
	lane := maphash.String(b.seed, strings.ToLower(key)) % uint64(len(b.topics)) // a UUID may be in either case
	return b.topics[lane]
}

// publish publishes to all topics at once and waits for the first error, or for all of them.
func (b *Bus) publish(ctx context.Context, parts map[string][]*message.Message) error {
	if !b.enter() {
		return ErrClosed
	}
	defer b.running.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, len(parts))
	for topic, part := range parts {
		b.running.Go(func() { done <- b.publishInOrder(ctx, topic, part) })
	}
	for range parts {
		select {
		case err := <-done:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("publish in process: %w", context.Cause(ctx))
		}
	}
	return nil
}

func (b *Bus) publishInOrder(ctx context.Context, topic string, part []*message.Message) error {
	for _, m := range part {
		if err := b.publishOne(ctx, topic, m); err != nil {
			return fmt.Errorf("publish in process: message %s: %w", m.UUID, err)
		}
	}
	return nil
}

// publishOne does not return before the message has left the subscriber's hands, or the bus is closing.
func (b *Bus) publishOne(ctx context.Context, topic string, m *message.Message) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var acked atomic.Bool
	tracked := message.NewMessageWithContext(context.WithValue(ctx, ackedKey{}, &acked), m.UUID, m.Payload)
	tracked.Metadata = m.Metadata // gochannel copies it
	channel, err := b.channel(topic)
	if err != nil {
		return err
	}
	err = channel.Publish(topic, tracked)
	switch {
	case acked.Load():
		return nil
	case b.isClosed():
		return ErrClosed
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	}
	return ErrNoSubscriber
}

// ackedKey is where a message's context carries, from publishOne to deliver, the *atomic.Bool that records its
// acknowledgement. gochannel itself does not tell whether there was one.
type ackedKey struct{}

// Subscribe returns the channel on which the messages of a topic arrive, each when the one before it was acked. One
// that is nacked arrives again, after a delay that grows.
//
// When ctx ends, the channel is closed as soon as the message in hand is acked or nacked; when the bus closes, at once.
// A topic is meant for one subscriber at a time: several would all get each message, and have to ack it.
func (b *Bus) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if !b.enter() {
		return nil, ErrClosed
	}
	// The subscription outlives ctx by the message in hand.
	subscription, unsubscribe := context.WithCancel(context.WithoutCancel(ctx))
	in, err := b.subscribe(subscription, topic)
	if err != nil {
		unsubscribe()
		b.running.Done()
		return nil, fmt.Errorf("subscribe to %s: %w", topic, err)
	}
	out := make(chan *message.Message)
	go func() {
		defer b.running.Done()
		defer close(out)
		defer unsubscribe()
		for {
			select {
			case <-ctx.Done():
				return
			case m, open := <-in:
				if !open {
					return
				}
				b.deliver(ctx, m, out)
			}
		}
	}()
	return out, nil
}

func (b *Bus) subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	channel, err := b.channel(topic)
	if err != nil {
		return nil, err
	}
	return channel.Subscribe(ctx, topic)
}

// deliver offers m until it is acked, its publisher no longer waits, or the subscriber is gone; then it lets the
// publisher go on.
func (b *Bus) deliver(ctx context.Context, m *message.Message, out chan<- *message.Message) {
	defer m.Ack()
	for delay := firstRedelivery; ; delay = min(2*delay, lastRedelivery) {
		switch b.offer(ctx, m, out) {
		case acked:
			m.Context().Value(ackedKey{}).(*atomic.Bool).Store(true)
			return
		case withdrawn:
			return
		case nacked:
		}
		select {
		case <-time.After(delay):
		case <-m.Context().Done():
			return
		case <-ctx.Done():
			return
		case <-b.closing:
			return
		}
	}
}

type outcome int

const (
	acked outcome = iota
	nacked
	withdrawn
)

// offer gives the subscriber a copy of m and waits for its answer.
func (b *Bus) offer(ctx context.Context, m *message.Message, out chan<- *message.Message) outcome {
	published := m.Context()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if ctx.Err() != nil || published.Err() != nil {
		return withdrawn
	}
	offered := m.Copy()
	offered.SetContext(ctx)
	select {
	case out <- offered:
	case <-published.Done():
		return withdrawn
	case <-ctx.Done():
		return withdrawn
	case <-b.closing:
		return withdrawn
	}
	select {
	case <-offered.Acked():
		return acked
	case <-offered.Nacked():
		return nacked
	case <-b.closing:
		return withdrawn
	}
}

// Close ends all subscriptions and publications, and returns when they have ended. It does not wait for handlers:
// what they have in hand counts as not acknowledged.
func (b *Bus) Close() error {
	b.mu.Lock()
	if !b.closed {
		b.closed = true
		close(b.closing)
	}
	b.mu.Unlock()
	var errs []error
	for _, channel := range b.channels { // no more are added
		errs = append(errs, channel.Close())
	}
	b.running.Wait()
	return errors.Join(errs...)
}

// channel returns the channel of a topic, a new one when it is asked for first.
func (b *Bus) channel(topic string) (*gochannel.GoChannel, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrClosed
	}
	channel, exists := b.channels[topic]
	if !exists {
		channel = gochannel.NewGoChannel(
			gochannel.Config{BlockPublishUntilSubscriberAck: true, PreserveContext: true}, b.logger)
		b.channels[topic] = channel
	}
	return channel, nil
}

// enter counts the caller among those that Close waits for, unless the bus has closed.
func (b *Bus) enter() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.running.Add(1)
	return true
}

func (b *Bus) isClosed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}

package amqp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sync/semaphore"

	"github.com/healz/worker/internal/bus"
)

const (
	// maxUnconfirmed and maxUnconfirmedBytes bound what a batch has in flight: published and not yet confirmed.
	maxUnconfirmed      = 1000
	maxUnconfirmedBytes = 16 << 20
	// maxChannels bounds the batches that are published at once.
	maxChannels = 16
)

// Publisher publishes messages and waits for the broker's confirms, many at a time. It is safe for concurrent use.
type Publisher struct {
	conn   *Connection
	slots  *semaphore.Weighted
	closed atomic.Bool

	mu   sync.Mutex
	idle []*confirmChannel
}

var _ bus.BatchPublisher = (*Publisher)(nil)

// NewPublisher returns a Publisher over a Connection.
func NewPublisher(c *Connection) *Publisher {
	return &Publisher{conn: c, slots: semaphore.NewWeighted(maxChannels)}
}

// outgoing is a message to be published.
type outgoing struct {
	exchange, key string
	eventType     string
	message       amqp091.Publishing
}

// PublishBatch publishes messages in order, each under its event type. nil means that the broker has confirmed every
// one and that each reached a queue. Otherwise the first fault is returned: an *[UnroutableError], or an error that
// wraps [ErrUnconfirmed] or ctx's error; then some may have been published, and the caller publishes all again. A message
// that is too large for the broker is a *[bus.RefusedError] that wraps [ErrTooLarge].
//
// While the broker is unavailable or blocks its publishers, it waits for as long as ctx lives. A message whose event type is
// empty, or too long for a routing key, is published under what of it fits: an error would block for ever all that
// follow it in the store, while the contract's queue accepts any key, and its consumer judges the event.
func (p *Publisher) PublishBatch(ctx context.Context, batch []*message.Message) error {
	return p.publish(ctx, len(batch), func(i int) (outgoing, error) {
		m := batch[i]
		eventType := m.Metadata.Get(bus.EventTypeKey)
		o := outgoing{exchange: p.conn.exchange, key: cutKey(eventType), eventType: eventType}
		var err error
		if o.message, err = Marshal(m); err != nil {
			return o, &bus.RefusedError{Index: i, Err: fmt.Errorf("message %s: %w", m.UUID, err)}
		}
		return o, nil
	})
}

// Close makes every further publish fail. Those in progress end by themselves.
func (p *Publisher) Close() error {
	p.closed.Store(true)
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, c := range idle {
		c.close()
	}
	return nil
}

// cutKey cuts a routing key to AMQP's limit, between two characters.
func cutKey(key string) string {
	if len(key) <= maxShortString {
		return key
	}
	cut := maxShortString
	for cut > 0 && !utf8.RuneStart(key[cut]) {
		cut--
	}
	return key[:cut]
}

// publish publishes n messages, each made just before it is sent.
func (p *Publisher) publish(ctx context.Context, n int, next func(i int) (outgoing, error)) error {
	if n == 0 {
		return nil
	}
	sending, cancel := context.WithCancel(ctx)
	defer cancel()
	b := &batch{
		publisher: p, n: n, next: next,
		bytes: semaphore.NewWeighted(maxUnconfirmedBytes), sent: make(chan unconfirmed, min(n, maxUnconfirmed)),
		acquired: make(chan struct{}),
	}
	if p.closed.Load() || !p.conn.spawn(func() { b.send(sending) }) {
		return fmt.Errorf("publish: %w", ErrClosed)
	}
	err := b.await(ctx)
	if err == nil {
		p.release(b.channel.Load())
		return nil
	}
	cancel()
	cleaned := make(chan struct{})
	if p.conn.spawn(func() { defer close(cleaned); b.cleanUp(err) }) {
		select {
		case <-cleaned:
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("publish: %w", err)
}

// batch is published by two goroutines: one sends, as a write may hang when the peer is silent or blocks, and the caller
// waits for the confirms and can return at any time.
type batch struct {
	publisher *Publisher
	n         int
	next      func(i int) (outgoing, error)
	bytes     *semaphore.Weighted
	sent      chan unconfirmed
	channel   atomic.Pointer[confirmChannel]
	acquired  chan struct{} // closed once there is a channel
	err       error         // why sending ended, once sent is closed
}

// unconfirmed is a message in flight.
type unconfirmed struct {
	confirm   *amqp091.DeferredConfirmation
	weight    int64
	eventType string
	at        time.Time
}

func (b *batch) send(ctx context.Context) {
	defer close(b.sent)
	if b.err = b.publisher.slots.Acquire(ctx, 1); b.err != nil {
		return
	}
	defer b.publisher.slots.Release(1)
	c, err := b.publisher.acquire(ctx)
	if err != nil {
		b.err = err
		return
	}
	b.channel.Store(c)
	close(b.acquired)
	for i := 0; i < b.n && b.err == nil; i++ {
		b.err = b.sendOne(ctx, c, i)
	}
}

func (b *batch) sendOne(ctx context.Context, c *confirmChannel, i int) error {
	o, err := b.next(i)
	if err != nil {
		return err
	}
	weight := min(int64(len(o.message.Body)), maxUnconfirmedBytes)
	if err := b.bytes.Acquire(ctx, weight); err != nil {
		return err
	}
	at := time.Now()
	confirm, err := c.channel.PublishWithDeferredConfirm(o.exchange, o.key, true, false, o.message)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnconfirmed, err)
	}
	select {
	case b.sent <- unconfirmed{confirm: confirm, weight: weight, eventType: o.eventType, at: at}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// await waits for the confirm of each message. It cuts a connection on which none comes for too long. The wait for the
// connection does not count.
func (b *batch) await(ctx context.Context) error {
	timeout := time.NewTicker(b.publisher.conn.config.ResponseTimeout)
	defer timeout.Stop()
	var (
		head            *unconfirmed // awaits its confirm
		done            <-chan struct{}
		confirmed, seen int
		acquired        = b.acquired
	)
	for sent := b.sent; sent != nil || head != nil; {
		receive := sent
		if head != nil {
			receive = nil
		}
		select {
		case s, ok := <-receive:
			if !ok {
				sent = nil
				continue
			}
			head, done = &s, s.confirm.Done()
		case <-done:
			if err := b.channel.Load().outcome(head); err != nil {
				return err
			}
			b.publisher.conn.config.Watcher.Confirmed(time.Since(head.at))
			b.bytes.Release(head.weight)
			head, done = nil, nil
			confirmed++
		case <-acquired:
			acquired = nil
			timeout.Reset(b.publisher.conn.config.ResponseTimeout)
		case <-timeout.C:
			if acquired != nil {
				continue
			}
			if s := b.channel.Load().session; confirmed == seen && s.blocked.Load() == nil {
				s.kill()
			}
			seen = confirmed
		case <-ctx.Done():
			err := context.Cause(ctx)
			if reason := b.publisher.conn.publishing.ready(); reason != nil {
				err = fmt.Errorf("%w: %w", err, reason)
			}
			return fmt.Errorf("%w: %d of %d are confirmed: %w", ErrUnconfirmed, confirmed, b.n, err)
		}
	}
	return b.err
}

// cleanUp ends a batch that failed: its channel is closed with all that is in flight on it, and what is missing of the
// topology is declared again for the next attempt.
func (b *batch) cleanUp(err error) {
	for range b.sent { // until sending has ended
		continue
	}
	c := b.channel.Load()
	if c == nil {
		return
	}
	c.close()
	_, unroutable := errors.AsType[*UnroutableError](err)
	if unroutable || isNotFound(err) {
		defer c.session.bound()()
		if err := c.session.declare(b.publisher.conn.topology); err != nil {
			b.publisher.conn.config.Logger.Warn("cannot declare the topology again", "error", err)
		}
	}
}

// confirmChannel is a channel in confirm mode. It belongs to one batch at a time, so that what the broker returns is
// known to be of that batch.
type confirmChannel struct {
	session  *session
	channel  *amqp091.Channel
	returned chan amqp091.Return
	closed   chan *amqp091.Error
}

// acquire takes an idle channel or opens one. It waits for a connection as long as ctx lives.
func (p *Publisher) acquire(ctx context.Context) (*confirmChannel, error) {
	var lost *session
	for {
		s, err := p.conn.publishing.session(ctx, lost)
		if err != nil {
			return nil, err
		}
		if c := p.takeIdle(s); c != nil {
			return c, nil
		}
		c, err := newConfirmChannel(s)
		if err == nil || !s.conn.IsClosed() {
			return c, err
		}
		lost = s
	}
}

// takeIdle takes an idle channel of a session, nil if there is none, and drops those of earlier sessions.
func (p *Publisher) takeIdle(s *session) *confirmChannel {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.idle) > 0 {
		c := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if c.session == s && !c.channel.IsClosed() {
			return c
		}
	}
	return nil
}

func newConfirmChannel(s *session) (*confirmChannel, error) {
	defer s.bound()()
	channel, err := s.conn.Channel()
	if err == nil {
		err = channel.Confirm(false)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: open channel: %w", ErrUnavailable, err)
	}
	return &confirmChannel{
		session: s, channel: channel,
		// As many as can be in flight: the library reads nothing more while a return finds no room.
		returned: channel.NotifyReturn(make(chan amqp091.Return, maxUnconfirmed+2)),
		closed:   channel.NotifyClose(make(chan *amqp091.Error, 1)),
	}, nil
}

// release makes a channel, on which nothing is in flight, available again.
func (p *Publisher) release(c *confirmChannel) {
	p.mu.Lock()
	closed := p.closed.Load()
	if !closed {
		p.idle = append(p.idle, c)
	}
	p.mu.Unlock()
	if closed {
		c.close()
	}
}

func (c *confirmChannel) close() {
	defer c.session.bound()()
	_ = c.channel.Close() // it is gone either way
}

// outcome is what became of a message whose confirm is there.
func (c *confirmChannel) outcome(s *unconfirmed) error {
	select {
	case r, ok := <-c.returned: // the broker sends it ahead of the confirm
		if ok {
			return &UnroutableError{Exchange: r.Exchange, RoutingKey: r.RoutingKey, EventType: r.Type}
		}
	default:
	}
	if s.confirm.Acked() {
		return nil
	}
	select {
	case reason := <-c.closed:
		if reason != nil {
			return fmt.Errorf("event type %q: %w: %w", s.eventType, ErrUnconfirmed, reason)
		}
		return fmt.Errorf("event type %q: %w: connection closed", s.eventType, ErrUnconfirmed)
	default:
		return fmt.Errorf("event type %q: %w: the broker could not store it", s.eventType, ErrUnconfirmed)
	}
}

package amqp

import (
	"cmp"
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
	// slowBytes in flight give the broker one [Config.ResponseTimeout] more for the next confirm.
	slowBytes = 1 << 20
	// maxChannels bounds the batches that are published at once.
	maxChannels = 16
)

// Publisher publishes messages and waits for the broker's confirms, many at a time. It is safe for concurrent use.
type Publisher struct {
	// AllowUnwanted lets an event reach no queue, unless its type is one that the service's own queue gets: there need not be a
	// service for each type.
	AllowUnwanted bool

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
	confirmed     func() bool // called when the broker has confirmed it; may be nil
	// unwanted tells that it is no fault if no queue takes it.
	unwanted bool
}

// PublishBatch implements [bus.BatchPublisher]: each message is published under its event type. nil means that the broker
// has confirmed every one and that each reached a queue, unless [Publisher.AllowUnwanted] is set. Otherwise the first fault is returned: an *[UnroutableError], or an
// error that wraps [ErrUnconfirmed] or ctx's error. A message that the broker never takes is a *[bus.RefusedError], which
// wraps [ErrTooLarge] if it is too large. As far as the broker's limits are known, a batch with such a message is not begun.
//
// While the broker is unavailable or blocks its publishers, it waits for as long as ctx lives. A message whose event type is
// empty, or too long for a routing key, is published under what of it fits: an error would block for ever all that
// follow it in the store, while the contract's queue accepts any key, and its consumer judges the event.
func (p *Publisher) PublishBatch(ctx context.Context, batch []*message.Message) error {
	messages := make([]outgoing, len(batch))
	for i, m := range batch {
		eventType := m.Metadata.Get(bus.EventTypeKey)
		o := outgoing{exchange: p.conn.exchange, key: cutKey(eventType), eventType: eventType, confirmed: m.Ack}
		o.unwanted = p.AllowUnwanted && !p.conn.wants(o.key)
		var err error
		if o.message, err = Marshal(m); err != nil {
			return fmt.Errorf("publish: %w", &bus.RefusedError{Index: i, Err: err})
		}
		messages[i] = o
	}
	_, err := p.publish(ctx, messages)
	return err
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

// publish publishes messages, and returns how many of the first are confirmed. For the error see [Publisher.PublishBatch].
func (p *Publisher) publish(ctx context.Context, messages []outgoing) (confirmed int, err error) {
	confirmed, err = p.send(ctx, len(messages), func(i int) outgoing { return messages[i] })
	if !errors.Is(err, errNotTaken) {
		return confirmed, err
	}
	for ; confirmed < len(messages); confirmed++ { // the broker does not say which one it does not take
		m := messages[confirmed]
		_, err = p.send(ctx, 1, func(int) outgoing { return m })
		if refused, ok := errors.AsType[*bus.RefusedError](err); ok || errors.Is(err, errNotTaken) {
			if ok {
				err = refused.Err
			}
			return confirmed, fmt.Errorf("publish: %w", &bus.RefusedError{Index: confirmed, Err: err})
		}
		if err != nil {
			return confirmed, err
		}
	}
	return confirmed, nil
}

// send sends n messages and waits for the confirms. It returns how many of the first are confirmed. The error wraps
// [errNotTaken] if the broker refuses one of the others without saying which.
func (p *Publisher) send(ctx context.Context, n int, next func(i int) outgoing) (confirmed int, err error) {
	if n == 0 {
		return 0, nil
	}
	sending, cancel := context.WithCancel(ctx)
	defer cancel()
	b := &batch{
		publisher: p, n: n, next: next,
		bytes: semaphore.NewWeighted(maxUnconfirmedBytes), sent: make(chan unconfirmed, min(n, maxUnconfirmed)),
		acquired: make(chan struct{}),
	}
	if p.closed.Load() || !p.conn.spawn(func() { b.send(sending) }) {
		return 0, fmt.Errorf("publish: %w", ErrClosed)
	}
	confirmed, err = b.await(ctx)
	if err == nil {
		p.release(b.channel.Load())
		return confirmed, nil
	}
	if errors.Is(err, errNotTaken) { // if it is for a limit, that is known now
		err = cmp.Or(b.refused(confirmed), err)
	}
	cancel()
	cleaned := make(chan struct{})
	reason := err // the goroutine may outlive the call
	if p.conn.spawn(func() { defer close(cleaned); b.cleanUp(reason) }) {
		select {
		case <-cleaned:
		case <-ctx.Done():
		}
	}
	return confirmed, fmt.Errorf("publish: %w", err)
}

// batch is published by two goroutines: one sends, as a write may hang when the peer is silent or blocks, and the caller
// waits for the confirms and can return at any time.
type batch struct {
	publisher *Publisher
	n         int
	next      func(i int) outgoing
	bytes     *semaphore.Weighted
	inFlight  atomic.Int64 // bytes
	sent      chan unconfirmed
	channel   atomic.Pointer[confirmChannel]
	acquired  chan struct{} // closed once there is a channel
	err       error         // why sending ended, once sent is closed
}

// unconfirmed is a message in flight.
type unconfirmed struct {
	confirm   *amqp091.DeferredConfirmation
	confirmed func() bool
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
	b.err = b.refused(0)
	for i := 0; i < b.n && b.err == nil; i++ {
		b.err = b.sendOne(ctx, c, i)
	}
}

// refused finds the first message, from one on, that is over a limit of the broker which is known.
func (b *batch) refused(from int) error {
	for i := from; i < b.n; i++ {
		if err := b.channel.Load().session.limits.check(b.next(i).message); err != nil {
			return &bus.RefusedError{Index: i, Err: err}
		}
	}
	return nil
}

func (b *batch) sendOne(ctx context.Context, c *confirmChannel, i int) error {
	o := b.next(i)
	weight := min(int64(len(o.message.Body)), maxUnconfirmedBytes)
	if err := b.bytes.Acquire(ctx, weight); err != nil {
		return err
	}
	b.inFlight.Add(weight)
	at := time.Now()
	confirm, err := c.channel.PublishWithDeferredConfirm(o.exchange, o.key, !o.unwanted, false, o.message)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnconfirmed, err)
	}
	select {
	case b.sent <- unconfirmed{confirm: confirm, confirmed: o.confirmed, weight: weight, eventType: o.eventType, at: at}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// await waits for the confirm of each message, and returns how many have come. It cuts a connection on which none comes
// for too long: the more bytes are in flight, the more time they get. The wait for the connection does not count.
func (b *batch) await(ctx context.Context) (confirmed int, err error) {
	timeout := time.NewTicker(b.publisher.conn.config.ResponseTimeout)
	defer timeout.Stop()
	var (
		head        *unconfirmed // awaits its confirm
		done        <-chan struct{}
		seen, quiet int
		acquired    = b.acquired
	)
	for sent := b.sent; sent != nil; { // which is not received from while there is a head
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
				return confirmed, err
			}
			if head.confirmed != nil {
				head.confirmed()
			}
			b.publisher.conn.config.Watcher.Confirmed(time.Since(head.at))
			b.bytes.Release(head.weight)
			b.inFlight.Add(-head.weight)
			head, done = nil, nil
			confirmed++
		case <-acquired:
			acquired = nil
			timeout.Reset(b.publisher.conn.config.ResponseTimeout)
		case <-timeout.C:
			if acquired != nil {
				continue
			}
			s := b.channel.Load().session
			switch quiet++; {
			case s.blocked.Load() != nil:
				quiet = -1 // the next tick may follow the end at once
			case confirmed > seen:
				seen, quiet = confirmed, 0
			case int64(quiet) > b.inFlight.Load()/slowBytes:
				s.kill()
			}
		case <-ctx.Done():
			err := context.Cause(ctx)
			if reason := b.publisher.conn.publishing.ready(); reason != nil {
				err = fmt.Errorf("%w: %w", err, reason)
			}
			return confirmed, fmt.Errorf("%w: %d of %d are confirmed: %w", ErrUnconfirmed, confirmed, b.n, err)
		}
	}
	return confirmed, b.err
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
	if isMissing(err) {
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
		switch {
		case reason != nil && reason.Server && (reason.Code == amqp091.PreconditionFailed || isOfTopic(reason)):
			c.session.limits.learn(reason.Reason)
			return fmt.Errorf("event type %q: %w: %w", s.eventType, errNotTaken, reason)
		case reason != nil:
			return fmt.Errorf("event type %q: %w: %w", s.eventType, ErrUnconfirmed, reason)
		}
		return fmt.Errorf("event type %q: %w: connection closed", s.eventType, ErrUnconfirmed)
	default:
		return fmt.Errorf("event type %q: %w: %w", s.eventType, ErrUnconfirmed, errNacked)
	}
}

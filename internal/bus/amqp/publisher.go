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
	// windowMessages and windowBytes bound what one batch has under way, published and not yet confirmed.
	windowMessages = 1000
	windowBytes    = 16 << 20
	// maxChannels bounds the batches that are published at once.
	maxChannels = 16
	// publishTimeout bounds a publish that comes without a context.
	publishTimeout = 30 * time.Second
)

// Publisher publishes messages and waits for the broker's confirms, many at a time. It is safe for concurrent use.
type Publisher struct {
	conn   *Connection
	slots  *semaphore.Weighted
	closed atomic.Bool

	mu   sync.Mutex
	idle []*confirmChannel
}

var (
	_ bus.BatchPublisher = (*Publisher)(nil)
	_ message.Publisher  = (*Publisher)(nil)
)

// NewPublisher returns a Publisher over a Connection.
func NewPublisher(c *Connection) *Publisher {
	return &Publisher{conn: c, slots: semaphore.NewWeighted(maxChannels)}
}

// outgoing is a message on its way.
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
// While the broker is away or blocks its publishers, it waits for as long as ctx lives. A message whose event type is
// empty, or too long for a routing key, is published under what of it fits: as an error it would hold back for ever all
// that follow it in the store, while the contract's queue takes any key, and its consumer judges the event.
func (p *Publisher) PublishBatch(ctx context.Context, batch []*message.Message) error {
	return p.publish(ctx, len(batch), func(i int) (outgoing, error) {
		o, err := p.outgoing("", batch[i])
		if errors.Is(err, ErrTooLarge) {
			err = &bus.RefusedError{Index: i, Err: err}
		}
		return o, err
	})
}

// Publish publishes messages in order, each under its event type, or under the topic if it has none. An event type
// that is empty or over 255 bytes is an error that wraps [ErrRoutingKey], and nothing is published. For other errors see
// [Publisher.PublishBatch]. It gives up after 30 seconds.
func (p *Publisher) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		switch key := p.key(topic, m); {
		case key == "":
			return fmt.Errorf("publish message %s: %w: it is empty", m.UUID, ErrRoutingKey)
		case len(key) > maxShortString:
			return fmt.Errorf("publish message %s: %w: %d bytes, over %d", m.UUID, ErrRoutingKey, len(key), maxShortString)
		}
	}
	ctx, cancel := context.WithTimeout(p.conn.life, publishTimeout)
	defer cancel()
	return p.publish(ctx, len(messages), func(i int) (outgoing, error) { return p.outgoing(topic, messages[i]) })
}

// Close makes every further publish fail. Those under way end by themselves.
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

func (p *Publisher) key(topic string, m *message.Message) string {
	if eventType := m.Metadata.Get(bus.EventTypeKey); eventType != "" {
		return eventType
	}
	return p.conn.routing.Publish.GenerateRoutingKey(topic)
}

func (p *Publisher) outgoing(topic string, m *message.Message) (outgoing, error) {
	publishing, err := p.conn.routing.Marshaler.Marshal(m)
	if err != nil {
		return outgoing{}, fmt.Errorf("message %s: %w", m.UUID, err)
	}
	return outgoing{
		exchange:  p.conn.routing.Exchange.GenerateName(topic),
		key:       cutKey(p.key(topic, m)),
		eventType: m.Metadata.Get(bus.EventTypeKey),
		message:   publishing,
	}, nil
}

// cutKey cuts a routing key to what AMQP takes, at a character's edge.
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

// publish publishes n messages, each made just before it goes.
func (p *Publisher) publish(ctx context.Context, n int, next func(i int) (outgoing, error)) error {
	if n == 0 {
		return nil
	}
	flying, cancel := context.WithCancel(ctx)
	defer cancel()
	f := &flight{
		publisher: p, n: n, next: next,
		window: semaphore.NewWeighted(windowBytes), sent: make(chan sending, min(n, windowMessages)),
	}
	if p.closed.Load() || !p.conn.spawn(func() { f.send(flying) }) {
		return fmt.Errorf("publish: %w", ErrClosed)
	}
	err := f.await(ctx)
	if err == nil {
		p.release(f.channel.Load())
		return nil
	}
	cancel()
	cleared := make(chan struct{})
	if p.conn.spawn(func() { defer close(cleared); f.clear(err) }) {
		select {
		case <-cleared:
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("publish: %w", err)
}

// flight is a batch on its way: one goroutine sends, as a write may hang on a peer that is silent or holds back, and
// the caller awaits the confirms and can leave at any time.
type flight struct {
	publisher *Publisher
	n         int
	next      func(i int) (outgoing, error)
	window    *semaphore.Weighted
	sent      chan sending
	channel   atomic.Pointer[confirmChannel]
	err       error // the sender's, once sent is closed
}

type sending struct {
	confirm   *amqp091.DeferredConfirmation
	weight    int64
	eventType string
	at        time.Time
}

func (f *flight) send(ctx context.Context) {
	defer close(f.sent)
	if f.err = f.publisher.slots.Acquire(ctx, 1); f.err != nil {
		return
	}
	defer f.publisher.slots.Release(1)
	c, err := f.publisher.acquire(ctx)
	if err != nil {
		f.err = err
		return
	}
	f.channel.Store(c)
	for i := 0; i < f.n && f.err == nil; i++ {
		f.err = f.sendOne(ctx, c, i)
	}
}

func (f *flight) sendOne(ctx context.Context, c *confirmChannel, i int) error {
	o, err := f.next(i)
	if err != nil {
		return err
	}
	weight := min(int64(len(o.message.Body)), windowBytes)
	if err := f.window.Acquire(ctx, weight); err != nil {
		return err
	}
	at := time.Now()
	confirm, err := c.channel.PublishWithDeferredConfirm(o.exchange, o.key, true, false, o.message)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnconfirmed, err)
	}
	select {
	case f.sent <- sending{confirm: confirm, weight: weight, eventType: o.eventType, at: at}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// await waits for the confirm of each message. It cuts a connection that gives none for too long.
func (f *flight) await(ctx context.Context) error {
	watch := time.NewTicker(f.publisher.conn.config.ResponseTimeout)
	defer watch.Stop()
	var (
		head            *sending // awaits its confirm
		done            <-chan struct{}
		confirmed, seen int
	)
	for sent := f.sent; sent != nil || head != nil; {
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
			if err := f.channel.Load().outcome(head); err != nil {
				return err
			}
			f.publisher.conn.config.Watcher.Confirmed(time.Since(head.at))
			f.window.Release(head.weight)
			head, done = nil, nil
			confirmed++
		case <-watch.C:
			if c := f.channel.Load(); c != nil && confirmed == seen && c.session.blocked.Load() == nil {
				c.session.kill()
			}
			seen = confirmed
		case <-ctx.Done():
			err := context.Cause(ctx)
			if reason := f.publisher.conn.publishing.ready(); reason != nil {
				err = fmt.Errorf("%w: %w", err, reason)
			}
			return fmt.Errorf("%w: %d of %d are confirmed: %w", ErrUnconfirmed, confirmed, f.n, err)
		}
	}
	return f.err
}

// clear ends a flight that failed: its channel is thrown away with all that is under way on it, and what is missing of
// the topology is declared again, so that the next try finds it.
func (f *flight) clear(err error) {
	for range f.sent { // until the sender has ended
		continue
	}
	c := f.channel.Load()
	if c == nil {
		return
	}
	c.close()
	_, unroutable := errors.AsType[*UnroutableError](err)
	answer, ok := errors.AsType[*amqp091.Error](err)
	if unroutable || ok && answer.Code == amqp091.NotFound {
		defer c.session.bound()()
		if err := c.session.declare(f.publisher.conn.routing); err != nil {
			f.publisher.conn.config.Logger.Warn("cannot declare the topology again", "error", err)
		}
	}
}

// confirmChannel is a channel in confirm mode. It belongs to one flight at a time, so that what the broker returns is
// known to be of that flight.
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
		// As many as can be under way, since the broker's frames are read no further while a return finds no room.
		returned: channel.NotifyReturn(make(chan amqp091.Return, windowMessages+2)),
		closed:   channel.NotifyClose(make(chan *amqp091.Error, 1)),
	}, nil
}

// release makes a channel, on which nothing is under way, available again.
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
	_ = c.channel.Close() // of no use any more, whatever it says
}

// outcome is what became of a message whose confirm is there.
func (c *confirmChannel) outcome(s *sending) error {
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
		return fmt.Errorf("event type %q: %w: the broker could not take it", s.eventType, ErrUnconfirmed)
	}
}

package amqp

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
)

// DialUndeclared is Dial that declares nothing.
func DialUndeclared(ctx context.Context, c Config) (*Connection, error) {
	conn, err := newConnection(ctx, c)
	if err != nil {
		return nil, err
	}
	conn.declares = false
	return conn, conn.dial(ctx)
}

// DialQueue is Dial with another name of the consumer's queue.
func DialQueue(ctx context.Context, c Config, queue string) (*Connection, error) {
	conn, err := newConnection(ctx, c)
	if err != nil {
		return nil, err
	}
	conn.consumerQueue = queue
	return conn, conn.dial(ctx)
}

// OccupyChannels makes batches wait for a channel, until release.
func OccupyChannels(ctx context.Context, p *Publisher) (release func(), err error) {
	return func() { p.slots.Release(maxChannels) }, p.slots.Acquire(ctx, maxChannels)
}

// PublishAfter publishes a message, and waits once it has a channel.
func PublishAfter(ctx context.Context, p *Publisher, wait func()) error {
	wait = sync.OnceFunc(wait)
	_, err := p.send(ctx, 1, func(int) outgoing {
		wait()
		return outgoing{exchange: p.conn.exchange}
	})
	return err
}

// Unmarshal makes a message of a delivery.
func Unmarshal(d amqp091.Delivery) *message.Message { return unmarshal(d, DefaultMaxMessage) }

// URLOf is the URL of a Connection's broker.
func URLOf(c *Connection) string { return c.config.URL }

// DeliveryOf is the delivery that a message was made of.
func DeliveryOf(m *message.Message) amqp091.Delivery {
	o, _ := m.Context().Value(originKey{}).(origin)
	return o.delivery
}

// LimitIn is the limit that a refusal tells, 0 if none.
func LimitIn(refusal string) int64 {
	var l limits
	l.learn(refusal)
	return l.body.Load()
}

// SetFrame makes the negotiated size of a frame smaller, as if the broker had it so. Nothing may be published meanwhile.
func SetFrame(c *Connection, bytes int) { c.publishing.current.limits.frame = bytes }

// Refusal is the state of a failed queue.
type Refusal struct {
	refusal
	logger *slog.Logger
}

// NewRefusal returns one that logs.
func NewRefusal(l *slog.Logger) *Refusal { return &Refusal{logger: l} }

// Begin is a letter that the queue does not take.
func (r *Refusal) Begin(err error) { r.begin(err, r.logger) }

// Taken is a letter that it takes.
func (r *Refusal) Taken() { r.taken(r.logger) }

// Err is the state.
func (r *Refusal) Err() error { return r.state(r.logger) }

// LoseChannels makes the broker close the channels of a Subscriber, and waits for it: an ack that the library sends just after
// it has answered is an error of the whole connection.
func LoseChannels(s *Subscriber) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sub := range s.subscriptions {
		sub.do(context.Background(), func() {
			closed := sub.channel.NotifyClose(make(chan *amqp091.Error, 1))
			_ = sub.channel.Ack(1<<60, false) // the tag is unknown: 406
			for range closed {                // until it is
			}
		})
	}
}

// AckWithoutChannel acks a message after its channel was closed, before another is open. Of the closed channel no other
// message is handed over.
func AckWithoutChannel(s *Subscriber, m *message.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sub := range s.subscriptions {
		sub.do(context.Background(), func() {
			_ = sub.channel.Close()
			for range sub.deliveries { // what has arrived before
			}
			m.Ack()
			sub.settle(<-sub.results)
			sub.clear()
		})
	}
}

// QueueState is what the management API says of a queue.
type QueueState = queueState

// LettersQueue is what the failed queue is for.
const LettersQueue = lettersQueue

// Limits are those of [QueueLimits] for one queue.
func (s *queueState) Limits(queue string, r role) []string { return s.limits(queue, r) }

// WatchConsumersEach is [Connection.WatchConsumers] with another interval.
func WatchConsumersEach(ctx context.Context, c *Connection, interval time.Duration) {
	c.watchConsumers(ctx, interval)
}

// IsFull is whether the bodies that a Connection holds exceed the limit.
func IsFull(c *Connection) bool { return c.received.full() }

// State is the state of [Subscriber.Consuming], "" if there is an error.
func (s *Subscriber) State() string {
	state, _ := s.Consuming()
	return state
}

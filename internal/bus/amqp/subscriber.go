package amqp

import (
	"context"
	"errors"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Subscriber consumes queues.
type Subscriber struct{ conn *Connection }

var _ message.Subscriber = (*Subscriber)(nil)

// NewSubscriber returns a Subscriber over a Connection.
func NewSubscriber(c *Connection) *Subscriber { return &Subscriber{conn: c} }

// Subscribe consumes the queue of a topic.
func (s *Subscriber) Subscribe(context.Context, string) (<-chan *message.Message, error) {
	return nil, errors.ErrUnsupported
}

// Close ends all subscriptions.
func (s *Subscriber) Close() error { return nil }

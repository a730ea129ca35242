package amqp

import (
	"context"

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

// Unmarshal makes a message of a delivery.
func Unmarshal(d amqp091.Delivery) *message.Message { return unmarshal(d, DefaultMaxMessage) }

// URLOf is the URL of a Connection's broker.
func URLOf(c *Connection) string { return c.config.URL }

// DeliveryOf is the delivery that a message was made of.
func DeliveryOf(m *message.Message) amqp091.Delivery {
	o, _ := m.Context().Value(originKey{}).(origin)
	return o.delivery
}

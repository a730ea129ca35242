package amqp

import (
	"context"

	wamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
)

// DialRouting is Dial with another topology than the contract's.
func DialRouting(ctx context.Context, c Config, routing wamqp.Config) (*Connection, error) {
	return dial(ctx, c.withDefaults(), routing)
}

// URLOf is the URL of a Connection's broker.
func URLOf(c *Connection) string { return c.config.URL }

// DeliveryOf is the delivery that a message was made of.
func DeliveryOf(m *message.Message) amqp091.Delivery {
	o, _ := m.Context().Value(originKey{}).(origin)
	return o.delivery
}

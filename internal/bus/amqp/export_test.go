package amqp

import (
	"context"

	wamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
)

// DialRouting is Dial with another topology than the contract's.
func DialRouting(ctx context.Context, c Config, routing wamqp.Config) (*Connection, error) {
	return dial(ctx, c.withDefaults(), routing)
}

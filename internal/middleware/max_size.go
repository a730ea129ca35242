package middleware

import (
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"
)

// MaxSize fails the messages whose bodies have more than so many bytes, without a look into them.
func MaxSize(bytes int) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(m *message.Message) ([]*message.Message, error) {
			if len(m.Payload) > bytes {
				return nil, fmt.Errorf("the body has %d bytes, over the %d of the largest message", len(m.Payload), bytes)
			}
			return next(m)
		}
	}
}

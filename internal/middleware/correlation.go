package middleware

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/events"
)

type correlationKey struct{}

// Correlation makes sure that a message has a correlation id, propagated from the message or generated, and puts it
// into the context for all that happens on its behalf.
func Correlation(next message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		id := events.CorrelationIDOrNew(m.Metadata.Get(bus.CorrelationIDKey)).String()
		m.SetContext(context.WithValue(m.Context(), correlationKey{}, id))
		return next(m)
	}
}

// CorrelationID is the correlation id of the message in hand, "" if there is none.
func CorrelationID(ctx context.Context) string {
	id, _ := ctx.Value(correlationKey{}).(string)
	return id
}

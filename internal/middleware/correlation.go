package middleware

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/events"
)

type correlationKey struct{}

// Correlation puts the correlation id of a message into the context of all that happens on its behalf: the one that it
// carries ([bus.Complete] has looked into its body too), or else a new one.
func Correlation(next message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		id := events.CorrelationIDOrNew(m.Metadata.Get(bus.CorrelationIDKey)).String()
		m.SetContext(context.WithValue(m.Context(), correlationKey{}, id))
		return next(m)
	}
}

// CorrelationID is the correlation id of the message in flight, "" if there is none.
func CorrelationID(ctx context.Context) string {
	id, _ := ctx.Value(correlationKey{}).(string)
	return id
}

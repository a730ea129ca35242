package middleware

import (
	"context"
	"log/slog"

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

// CorrelationID is the correlation id of the message in hand, "" if there is none.
func CorrelationID(ctx context.Context) string {
	id, _ := ctx.Value(correlationKey{}).(string)
	return id
}

// LogCorrelation adds the correlation id of the message in hand, and what its handlers log the event, to each log line
// that is written on its behalf.
func LogCorrelation(next slog.Handler) slog.Handler { return correlatedLog{next} }

type correlatedLog struct{ slog.Handler }

func (h correlatedLog) Handle(ctx context.Context, r slog.Record) error {
	if id := CorrelationID(ctx); id != "" {
		r.AddAttrs(slog.String("correlation_id", id))
	}
	if e, ok := events.FromContext(ctx); ok {
		r.AddAttrs(slog.String("event_id", e.ID.String()), slog.String("event_type", e.Type))
	}
	return h.Handler.Handle(ctx, r)
}

func (h correlatedLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return correlatedLog{h.Handler.WithAttrs(attrs)}
}

func (h correlatedLog) WithGroup(name string) slog.Handler {
	return correlatedLog{h.Handler.WithGroup(name)}
}

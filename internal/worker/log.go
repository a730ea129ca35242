package worker

import (
	"context"
	"log/slog"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/middleware"
	"github.com/healz/worker/internal/tracing"
)

// contextLog adds to each line what its context knows: the correlation id, the event that is handled, and the span.
type contextLog struct {
	slog.Handler

	// quiet, if not nil, is closed when no line is worth more than the debug level any more.
	quiet <-chan struct{}
}

func (l contextLog) Handle(ctx context.Context, r slog.Record) error {
	select {
	case <-l.quiet:
		if !l.Enabled(ctx, slog.LevelDebug) {
			return nil
		}
		r.Level = slog.LevelDebug
	default:
	}
	if id := middleware.CorrelationID(ctx); id != "" {
		r.AddAttrs(slog.String("correlation_id", id))
	}
	if e, ok := events.FromContext(ctx); ok {
		r.AddAttrs(slog.String("event_id", e.ID.String()), slog.String("event_type", e.Type))
	} else {
		r.AddAttrs(middleware.LogAttrs(ctx)...)
	}
	r.AddAttrs(tracing.LogAttrs(ctx)...)
	return l.Handler.Handle(ctx, r)
}

func (l contextLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return contextLog{l.Handler.WithAttrs(attrs), l.quiet}
}

func (l contextLog) WithGroup(name string) slog.Handler {
	return contextLog{l.Handler.WithGroup(name), l.quiet}
}

package middleware

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/healz/worker/internal/bus"
)

// Outcome is what became of a message.
type Outcome string

// The outcomes of a message.
const (
	// Handled: every handler that the message is for has handled it, now or before.
	Handled Outcome = "handled"
	// Unhandled: no handler is registered for the event type; the message is acked.
	Unhandled Outcome = "unhandled"
	// DeadLettered: at least one handler failed for good, or the message is no event.
	DeadLettered Outcome = "dead-lettered"
	// Postponed: the handlers that failed try again later.
	Postponed Outcome = "postponed"
	// GivenBack: the worker stops, or the message could not be dead-lettered; it will be delivered again.
	GivenBack Outcome = "given back"
)

// Counts counts messages by their outcome. The zero value is ready; it is safe for concurrent use.
type Counts struct {
	handled, unhandled, deadLettered, postponed, givenBack atomic.Int64
}

// Map returns the counts by outcome.
func (c *Counts) Map() map[Outcome]int64 {
	return map[Outcome]int64{
		Handled: c.handled.Load(), Unhandled: c.unhandled.Load(), DeadLettered: c.deadLettered.Load(),
		Postponed: c.postponed.Load(), GivenBack: c.givenBack.Load(),
	}
}

func (c *Counts) add(o Outcome) {
	switch o {
	case Handled:
		c.handled.Add(1)
	case Unhandled:
		c.unhandled.Add(1)
	case DeadLettered:
		c.deadLettered.Add(1)
	case Postponed:
		c.postponed.Add(1)
	case GivenBack:
		c.givenBack.Add(1)
	}
}

// eventID is the id of a message as the log may have it: what another program puts there need not be an id, and could
// say anything of anybody.
func eventID(m *message.Message) string {
	id, err := uuid.Parse(m.UUID)
	if err != nil {
		return "unreadable"
	}
	return id.String()
}

type outcomeKey struct{}

// SetOutcome says what became of the message in hand, where it is not simply [Handled].
func SetOutcome(ctx context.Context, o Outcome) {
	if outcome, ok := ctx.Value(outcomeKey{}).(*Outcome); ok {
		*outcome = o
	}
}

// Observe logs one line for each message, when its outcome is known, and counts it.
func Observe(logger *slog.Logger, counts *Counts) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(m *message.Message) ([]*message.Message, error) {
			began := time.Now()
			outcome := Handled
			ctx := context.WithValue(m.Context(), outcomeKey{}, &outcome)
			m.SetContext(ctx)
			produced, err := next(m)
			level := slog.LevelInfo
			switch outcome {
			case DeadLettered:
				level = slog.LevelError
			case Postponed:
				level = slog.LevelWarn
			default:
			}
			attrs := []slog.Attr{
				slog.String("event_id", eventID(m)), slog.String("event_type", m.Metadata.Get(bus.EventTypeKey)),
				slog.Duration("took", time.Since(began).Round(time.Microsecond)),
			}
			if err != nil {
				outcome = GivenBack
				if !errors.Is(err, ErrStopping) {
					level = slog.LevelError
					attrs = append(attrs, slog.Any("error", err))
				}
			}
			counts.add(outcome)
			logger.LogAttrs(ctx, level, "event", append(attrs, slog.String("outcome", string(outcome)))...)
			return produced, err
		}
	}
}

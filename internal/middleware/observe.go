package middleware

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

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
	DeadLettered Outcome = "dead_lettered"
	// Postponed: the handlers that failed try again later.
	Postponed Outcome = "postponed"
	// GivenBack: the worker stops, or the message could not be dead-lettered; it will be delivered again.
	GivenBack Outcome = "given_back"
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

// LogValue implements [slog.LogValuer].
func (c *Counts) LogValue() slog.Value {
	return slog.GroupValue(
		slog.Int64(string(Handled), c.handled.Load()), slog.Int64(string(Unhandled), c.unhandled.Load()),
		slog.Int64(string(DeadLettered), c.deadLettered.Load()), slog.Int64(string(Postponed), c.postponed.Load()),
		slog.Int64(string(GivenBack), c.givenBack.Load()),
	)
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

// describe says which event a message is, as far as the log may have it.
func describe(m *message.Message) []slog.Attr {
	id, eventType := Describe(m)
	var attrs []slog.Attr
	if id != "" {
		attrs = append(attrs, slog.String("event_id", id))
	}
	if eventType != "" {
		attrs = append(attrs, slog.String("event_type", eventType))
	}
	return attrs
}

// Describe says which event a message is, as far as operators may see it, and "" for the rest: what another program puts
// into the place of an id could say anything of anybody.
func Describe(m *message.Message) (eventID, eventType string) {
	if id, err := uuid.Parse(m.UUID); err == nil {
		eventID = id.String()
	}
	if t := m.Metadata.Get(bus.EventTypeKey); isName(t) {
		eventType = t
	}
	return eventID, eventType
}

// isName tells whether s looks like a name that a program gives to a type of events.
func isName(s string) bool {
	const most = 100
	return s != "" && len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("._:/-", r)
	})
}

type outcomeKey struct{}

// SetOutcome says what became of the message in hand, where it is not simply [Handled].
func SetOutcome(ctx context.Context, o Outcome) {
	if outcome, ok := ctx.Value(outcomeKey{}).(*Outcome); ok {
		*outcome = o
	}
}

// OutcomeOf is what has become of the message in hand by now.
func OutcomeOf(ctx context.Context) Outcome {
	if outcome, ok := ctx.Value(outcomeKey{}).(*Outcome); ok {
		return *outcome
	}
	return Handled
}

// Observe counts each message by its outcome, when that is known, and logs a line for those that no handler has handled.
// Of the handlers' outcomes each has a line of its own: by the dispatcher, or if it failed by [DeadLetter].
func Observe(logger *slog.Logger, counts *Counts) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(m *message.Message) ([]*message.Message, error) {
			began := time.Now()
			outcome := Handled
			ctx := context.WithValue(m.Context(), outcomeKey{}, &outcome)
			m.SetContext(ctx)
			produced, err := next(m)
			if err != nil {
				outcome = GivenBack
			}
			counts.add(outcome)
			if outcome == Handled || outcome == DeadLettered || outcome == Postponed {
				return produced, err
			}
			level, attrs := slog.LevelInfo, describe(m)
			if err != nil && !errors.Is(err, ErrStopping) {
				level, attrs = slog.LevelError, append(attrs, slog.Any("error", err))
			}
			attrs = append(attrs, slog.String("outcome", string(outcome)),
				slog.Duration("took", time.Since(began).Round(time.Microsecond)))
			logger.LogAttrs(ctx, level, "event", attrs...)
			return produced, err
		}
	}
}

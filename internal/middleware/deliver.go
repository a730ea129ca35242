package middleware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/observe"
)

// ErrStopping is the error of a message that is given back because the worker stops: neither a failure nor poison. It
// wraps [context.Canceled], which Watermill's router does not log as an error.
var ErrStopping = fmt.Errorf("the worker is stopping: %w", context.Canceled)

// Lifetime is how long messages may be worked on.
type Lifetime struct {
	// Stopping is closed when the worker begins to stop: messages in flight are finished, no new one begins.
	Stopping <-chan struct{}
	// Ended is done when the grace period is over: handlers still running are cancelled.
	Ended context.Context //nolint:containedctx // its end is the handlers' cancellation, which no call outlives
}

// stopping tells whether the stop has begun.
func (l Lifetime) stopping() bool {
	select {
	case <-l.Stopping:
		return true
	default:
		return false
	}
}

type outcomeKey struct{}

// SetOutcome says what became of the message of ctx, where it is not simply [observe.Handled].
func SetOutcome(ctx context.Context, o observe.Outcome) {
	if outcome, ok := ctx.Value(outcomeKey{}).(*observe.Outcome); ok {
		*outcome = o
	}
}

// Deliver gives a message the worker's lifetime instead of the context of its subscription, which Watermill's router
// cancels at the very beginning of a shutdown, and reports its outcome. A message that arrives after the stop began is
// given back. The outcomes of handlers have log lines of their own; the others are logged here.
func Deliver(l Lifetime, o observe.Observer, logger *slog.Logger) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(m *message.Message) ([]*message.Message, error) {
			if l.stopping() {
				return nil, ErrStopping
			}
			ctx, cancel := context.WithCancelCause(context.WithoutCancel(m.Context()))
			defer cancel(nil)
			defer context.AfterFunc(l.Ended, func() { cancel(ErrStopping) })()
			began, outcome := time.Now(), observe.Handled
			ctx, end := o.Receive(context.WithValue(ctx, outcomeKey{}, &outcome), m)
			m.SetContext(ctx)
			produced, err := next(m)
			if err != nil {
				outcome = observe.GivenBack
			}
			end(outcome)
			if outcome == observe.Unhandled || outcome == observe.GivenBack {
				level, attrs := slog.LevelInfo, describe(m)
				if err != nil && !errors.Is(err, ErrStopping) {
					level, attrs = slog.LevelError, append(attrs, slog.Any("error", err))
				}
				logger.LogAttrs(ctx, level, "event", append(attrs, slog.String("outcome", string(outcome)),
					slog.Duration("took", time.Since(began).Round(time.Microsecond)))...)
			}
			return produced, err
		}
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
// into the place of an id could say anything about a person.
func Describe(m *message.Message) (eventID, eventType string) {
	if id, err := uuid.Parse(m.UUID); err == nil {
		eventID = id.String()
	}
	if t := m.Metadata.Get(bus.EventTypeKey); IsName(t) {
		eventType = t
	}
	return eventID, eventType
}

// IsName tells whether s looks like a name that a program gives to a type of events.
func IsName(s string) bool {
	const most = 100
	return s != "" && len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("._:/-", r)
	})
}

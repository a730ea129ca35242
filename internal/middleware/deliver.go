package middleware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
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

type deliveryKey struct{}

// delivery is a message that is being handled, and what becomes of it.
type delivery struct {
	message *message.Message
	outcome observe.Outcome
}

// SetOutcome says what became of the message of ctx, where it is not simply [observe.Handled].
func SetOutcome(ctx context.Context, o observe.Outcome) {
	if d, ok := ctx.Value(deliveryKey{}).(*delivery); ok {
		d.outcome = o
	}
}

// Deliver gives a message the worker's lifetime instead of the context of its subscription, which Watermill's router
// cancels at the very beginning of a shutdown, and reports its outcome. A message that arrives after the stop began is
// given back. The outcomes of handlers have log lines of their own; the others are logged here: each message that is given
// back, and of those without a handler the first one of each type and then their number, at most once a minute.
func Deliver(l Lifetime, o observe.Observer, logger *slog.Logger) message.HandlerMiddleware {
	unhandled := &unhandled{logger: logger}
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(m *message.Message) ([]*message.Message, error) {
			if l.stopping() {
				return nil, ErrStopping
			}
			ctx, cancel := context.WithCancelCause(context.WithoutCancel(m.Context()))
			defer cancel(nil)
			defer context.AfterFunc(l.Ended, func() { cancel(ErrStopping) })()
			began, d := time.Now(), &delivery{m, observe.Handled}
			ctx, end := o.Receive(context.WithValue(ctx, deliveryKey{}, d), m)
			m.SetContext(ctx)
			produced, err := next(m)
			if err != nil {
				d.outcome = observe.GivenBack
			}
			end(d.outcome)
			if d.outcome == observe.Unhandled {
				unhandled.note(ctx, m)
			}
			if d.outcome == observe.GivenBack {
				level, attrs := slog.LevelInfo, []slog.Attr{slog.String("outcome", string(d.outcome)), took(began)}
				if !errors.Is(err, ErrStopping) {
					level, attrs = slog.LevelError, append(attrs, slog.Any("error", err))
				}
				logger.LogAttrs(ctx, level, "event", attrs...)
			}
			return produced, err
		}
	}
}

func took(began time.Time) slog.Attr {
	return slog.Duration("took", time.Since(began).Round(time.Microsecond))
}

const (
	// unhandledInterval is how often the number of events without a handler is logged.
	unhandledInterval = time.Minute
	// unhandledTypes bounds the types of which the first event is logged.
	unhandledTypes = 1000
)

// unhandled logs the events without a handler. It is safe for concurrent use.
type unhandled struct {
	logger *slog.Logger

	mu     sync.Mutex
	types  map[string]struct{}
	others int       // events after the first of their type since the last line about them
	logged time.Time // when that was
}

func (u *unhandled) note(ctx context.Context, m *message.Message) {
	_, eventType := Describe(m)
	u.mu.Lock()
	defer u.mu.Unlock()
	outcome := slog.String("outcome", string(observe.Unhandled))
	if _, seen := u.types[eventType]; !seen && len(u.types) < unhandledTypes {
		if u.types == nil {
			u.types, u.logged = make(map[string]struct{}), time.Now()
		}
		u.types[eventType] = struct{}{}
		u.logger.LogAttrs(ctx, slog.LevelInfo, "event", outcome)
		return
	}
	u.logger.LogAttrs(ctx, slog.LevelDebug, "event", outcome)
	u.others++
	if since := time.Since(u.logged); since >= unhandledInterval {
		// Without ctx, as the line is not about one event.
		u.logger.Info("more events without a handler", "events", u.others, "within", since.Round(time.Second))
		u.others, u.logged = 0, time.Now()
	}
}

// LogAttrs says which message is being handled in a context, as far as the log may have it.
func LogAttrs(ctx context.Context) (attrs []slog.Attr) {
	d, ok := ctx.Value(deliveryKey{}).(*delivery)
	if !ok {
		return nil
	}
	id, eventType := Describe(d.message)
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

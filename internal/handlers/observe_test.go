package handlers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/metrics"
	"github.com/healz/worker/internal/middleware"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/tracing"
)

// told keeps what an observer is told, in order.
type told struct {
	observe.None

	lines []string
}

func (l *told) add(format string, args ...any) {
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

type tracedKey struct{}

func (l *told) Attempt(ctx context.Context, handler string, e events.Event, attempt int) (context.Context, func(error)) {
	l.add("%s begins %s %d", handler, e.Type, attempt)
	return context.WithValue(ctx, tracedKey{}, "traced"), func(err error) { l.add("%s ends: %v", handler, err) }
}

func (l *told) Duplicate(handler string, e events.Event) { l.add("%s spared %s", handler, e.Type) }

func TestTheObserverIsTold(t *testing.T) {
	t.Parallel()
	l := &told{}
	var errs []error
	b := newBench(t, func(reg *handlers.Registry) {
		handlers.On(reg, "Registered", "welcome", func(ctx context.Context, e events.Event, r registered) ([]events.Event, error) {
			l.add("handle as %v", ctx.Value(tracedKey{}))
			if len(errs) > 0 {
				err := errs[0]
				errs = errs[1:]
				return nil, err
			}
			return events.Follow(e, welcomed{})
		})
		handlers.OnAll(reg, "audit", func(context.Context, events.Event, json.RawMessage) ([]events.Event, error) { return nil, nil })
	})
	b.observers[0] = l

	e := newEvent(t, registered{"Ana"})
	errs = []error{errors.New("no place for Ana")}
	require.NoError(t, b.deliver(e))
	require.Equal(t, []string{
		"welcome begins Registered 1", "handle as traced", "welcome ends: no place for ‹name›",
		"welcome begins Registered 2", "handle as traced", "welcome ends: <nil>",
		"audit begins Registered 1", "audit ends: <nil>",
	}, l.lines)
	require.Contains(t, b.log.String(), "msg=event handler=welcome attempt=2 outcome=handled")

	l.lines = nil
	require.NoError(t, b.deliver(e), "again")
	require.Equal(t, []string{"welcome spared Registered", "audit spared Registered"}, l.lines)
	require.Contains(t, b.log.String(), "msg=event handler=welcome outcome=duplicate")

	l.lines = nil
	b.store.record = []error{fmt.Errorf("meanwhile: %w", store.ErrHandled)}
	require.NoError(t, b.replay(newEvent(t, registered{"Ana"}), "welcome"))
	require.Equal(t, []string{
		"welcome begins Registered 1", "handle as traced", "welcome ends: " + observe.ErrDuplicate.Error(), "welcome spared Registered",
	}, l.lines, "another delivery was first")

	l.lines = nil
	errs = []error{fmt.Errorf("not that of the inbox: %w", store.ErrHandled), nil}
	require.NoError(t, b.replay(newEvent(t, registered{"Ana"}), "welcome"))
	require.Contains(t, l.lines, "welcome begins Registered 2", "a handler cannot pass its event off as handled")
}

// nothing is an inbox that keeps nothing.
type nothing struct{ handlers.Inbox }

func (nothing) Handled(context.Context, events.Event) ([]string, error) { return nil, nil }

func (nothing) Attempt(ctx context.Context) context.Context { return ctx }

func (nothing) Record(context.Context, string, events.Event, []events.Event) error { return nil }

// What metrics and traces add to the dispatch of an event, without store and log.
func BenchmarkHandle(b *testing.B) {
	e, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, registered{"Ana"})
	require.NoError(b, err)
	body, err := json.Marshal(e)
	require.NoError(b, err)
	sampled := tracing.New(sdktrace.NewTracerProvider(), tracing.Places{})
	unsampled := tracing.New(sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample())), tracing.Places{})
	measured := metrics.New("v1")
	measured.Handlers(map[string][]string{"welcome": {"Registered"}})
	for name, observer := range map[string]observe.Observer{
		"nothing":                     observe.None{},
		"metrics":                     measured,
		"traces":                      sampled,
		"traces that are not sampled": unsampled,
		"metrics and traces":          observe.All{sampled, measured},
	} {
		b.Run(name, func(b *testing.B) {
			reg := &handlers.Registry{}
			handlers.On(reg, "Registered", "welcome", func(context.Context, events.Event, registered) ([]events.Event, error) { return nil, nil })
			logger := slog.New(slog.DiscardHandler)
			d, err := handlers.NewDispatcher(reg, handlers.Config{
				Inbox: nothing{}, Retry: middleware.Retry{Attempts: 1, Logger: logger}, Timeout: time.Minute, MaxMessage: 1 << 20,
				Observer: observer, Logger: logger,
			})
			require.NoError(b, err)
			b.ReportAllocs()
			for b.Loop() {
				m := bus.NewMessage(body)
				m.SetContext(b.Context())
				require.NoError(b, d.Handle(m))
			}
		})
	}
}

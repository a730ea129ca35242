package handlers

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/middleware"
)

// Watcher is told what one handler does. Its methods are called on every event's way, by many goroutines at a time: they
// are to be quick.
type Watcher interface {
	// Tried tells that an attempt, the first being 1, took so long, and its error; nil means that the event is handled.
	Tried(eventType string, attempt int, took time.Duration, err error)
	// Suppressed tells that the handler has handled the event before.
	Suppressed(eventType string)
}

// Trace begins the trace of an attempt of a handler. The attempt runs with the context that it returns, and its outcome,
// without what an error quotes of the event, goes to end.
type Trace func(ctx context.Context, handler string, e events.Event, attempt int) (traced context.Context, end func(error))

// Watch gives each handler the watcher that watch makes for its name and its event types. For a handler of all types
// these are the ones that the others are registered for, and it is told of others too. It is called before the first
// [Dispatcher.Handle].
func (d *Dispatcher) Watch(watch func(handler string, eventTypes []string, others bool) Watcher) {
	known := d.eventTypes()
	for _, r := range d.runners {
		if r.types == nil {
			r.watcher = watch(r.name, known, true)
		} else {
			r.watcher = watch(r.name, r.types, false)
		}
	}
}

// Trace traces each attempt from now on. It is called before the first [Dispatcher.Handle].
func (d *Dispatcher) Trace(t Trace) { d.trace = t }

// eventTypes are those that handlers are registered for, sorted.
func (d *Dispatcher) eventTypes() []string {
	var all []string
	for _, r := range d.runners {
		all = append(all, r.types...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// errDuplicate is the outcome of an attempt whose event turned out to be handled already.
var errDuplicate = errors.New("the handler has handled the event before")

// watched traces an attempt, tells its outcome to the watcher, and logs it if it is no failure: those are the Retry's to
// log, and whoever settles the message's.
func (d *Dispatcher) watched(r *runner, next message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		ctx := m.Context()
		e, _ := events.FromContext(ctx) // Handle has put it there
		attempt := middleware.Attempt(ctx)
		end := func(error) {}
		if d.trace != nil {
			ctx, end = d.trace(ctx, r.name, e, attempt)
			m.SetContext(ctx)
		}
		began := time.Now()
		produced, err := next(m)
		took := time.Since(began)
		if errors.Is(err, errDuplicate) {
			end(nil)
			r.suppressed(ctx, e)
			return nil, nil
		}
		end(err)
		if r.watcher != nil && !errors.Is(err, middleware.ErrStopping) {
			r.watcher.Tried(e.Type, attempt, took, err)
		}
		if err == nil {
			r.logger.LogAttrs(ctx, slog.LevelInfo, "event", slog.Int("attempt", attempt),
				slog.String("outcome", string(middleware.Handled)), slog.Duration("took", took.Round(time.Microsecond)))
		}
		return produced, err
	}
}

// suppressed tells that the handler need not handle e again.
func (r *runner) suppressed(ctx context.Context, e events.Event) {
	if r.watcher != nil {
		r.watcher.Suppressed(e.Type)
	}
	r.logger.LogAttrs(ctx, slog.LevelInfo, "event", slog.String("outcome", "duplicate"))
}

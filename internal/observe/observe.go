// Package observe has the one interface through which metrics, traces and counts learn what the worker does. The parts
// of the worker call an [Observer] and know neither Prometheus nor OpenTelemetry.
package observe

import (
	"context"
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/events"
)

// Observer is told what the worker does. A method that begins something returns the function to call at its end, with
// the error; where it returns a context too, the work runs with that. Error texts hold no values of events, except those
// of Append: the SQL of a handler may have failed.
//
// The methods are called for every event, by many goroutines: they must be quick and safe for concurrent use.
type Observer interface {
	// Append begins a write of the store. The batch that it returns is written instead of the given one: its events may
	// have more metadata.
	Append(ctx context.Context, o Operation, batch []events.Event) (context.Context, []events.Event, func(error))
	// Publish begins the publishing of a batch by the relay. It may add to the messages' metadata.
	Publish(ctx context.Context, batch []*message.Message) func(error)
	// Receive begins the handling of a message.
	Receive(ctx context.Context, m *message.Message) (context.Context, func(Outcome))
	// Attempt begins an attempt of a handler. The first is 1, and the numbers continue over the rounds of --retry-later. It
	// ends with nil if the event is handled, with [ErrDuplicate] if it was handled before, or with [ErrInterrupted] if the
	// worker stops.
	Attempt(ctx context.Context, handler string, e events.Event, attempt int) (context.Context, func(error))
	// Duplicate tells that a handler did not run, as it has handled the event before.
	Duplicate(handler string, e events.Event)
	// Failed tells that a message became a dead letter of a handler ("" if it reached none) or, if wait is not 0, that
	// the handler will try it again after that time.
	Failed(m *message.Message, handler string, wait time.Duration)
	// Confirmed tells how long RabbitMQ took to confirm a message.
	Confirmed(took time.Duration)
	// ConnectionLost tells that the named connection to RabbitMQ is lost.
	ConnectionLost(connection string)
}

// Errors with which an attempt ends that is no failure.
var (
	ErrDuplicate   = errors.New("the handler has handled the event before")
	ErrInterrupted = errors.New("the worker stops")
)

// Operation is a write of the store.
type Operation string

// The writes of the store.
const (
	// Append appends events.
	Append Operation = "append"
	// Record records that a handler has handled an event, and appends what follows.
	Record Operation = "record"
)

// None observes nothing. Embed it in an Observer that needs few of the methods.
type None struct{}

// Append implements [Observer].
func (None) Append(ctx context.Context, _ Operation, batch []events.Event) (context.Context, []events.Event, func(error)) {
	return ctx, batch, ignore[error]
}

// Publish implements [Observer].
func (None) Publish(context.Context, []*message.Message) func(error) { return ignore[error] }

// Receive implements [Observer].
func (None) Receive(ctx context.Context, _ *message.Message) (context.Context, func(Outcome)) {
	return ctx, ignore[Outcome]
}

// Attempt implements [Observer].
func (None) Attempt(ctx context.Context, _ string, _ events.Event, _ int) (context.Context, func(error)) {
	return ctx, ignore[error]
}

// Duplicate implements [Observer].
func (None) Duplicate(string, events.Event) {}

// Failed implements [Observer].
func (None) Failed(*message.Message, string, time.Duration) {}

// Confirmed implements [Observer].
func (None) Confirmed(time.Duration) {}

// ConnectionLost implements [Observer].
func (None) ConnectionLost(string) {}

func ignore[T any](T) {}

// All tells each of the observers, in their order; at an end, in the reverse order.
type All []Observer

// Append implements [Observer].
func (a All) Append(ctx context.Context, o Operation, batch []events.Event) (context.Context, []events.Event, func(error)) {
	ends := make([]func(error), len(a))
	for i, each := range a {
		ctx, batch, ends[i] = each.Append(ctx, o, batch) //nolint:fatcontext // each observer adds to the context of the one before
	}
	return ctx, batch, join(ends)
}

// Publish implements [Observer].
func (a All) Publish(ctx context.Context, batch []*message.Message) func(error) {
	ends := make([]func(error), len(a))
	for i, each := range a {
		ends[i] = each.Publish(ctx, batch)
	}
	return join(ends)
}

// Receive implements [Observer].
func (a All) Receive(ctx context.Context, m *message.Message) (context.Context, func(Outcome)) {
	ends := make([]func(Outcome), len(a))
	for i, each := range a {
		ctx, ends[i] = each.Receive(ctx, m) //nolint:fatcontext // as above
	}
	return ctx, join(ends)
}

// Attempt implements [Observer].
func (a All) Attempt(ctx context.Context, handler string, e events.Event, attempt int) (context.Context, func(error)) {
	ends := make([]func(error), len(a))
	for i, each := range a {
		ctx, ends[i] = each.Attempt(ctx, handler, e, attempt) //nolint:fatcontext // as above
	}
	return ctx, join(ends)
}

// Duplicate implements [Observer].
func (a All) Duplicate(handler string, e events.Event) {
	for _, each := range a {
		each.Duplicate(handler, e)
	}
}

// Failed implements [Observer].
func (a All) Failed(m *message.Message, handler string, wait time.Duration) {
	for _, each := range a {
		each.Failed(m, handler, wait)
	}
}

// Confirmed implements [Observer].
func (a All) Confirmed(took time.Duration) {
	for _, each := range a {
		each.Confirmed(took)
	}
}

// ConnectionLost implements [Observer].
func (a All) ConnectionLost(connection string) {
	for _, each := range a {
		each.ConnectionLost(connection)
	}
}

func join[T any](ends []func(T)) func(T) {
	return func(result T) {
		for i := len(ends) - 1; i >= 0; i-- {
			ends[i](result)
		}
	}
}

// Publisher publishes through Next, and reports each batch to Observer.
type Publisher struct {
	Next     bus.BatchPublisher
	Observer Observer
}

// PublishBatch implements [bus.BatchPublisher].
func (p Publisher) PublishBatch(ctx context.Context, batch []*message.Message) error {
	end := p.Observer.Publish(ctx, batch)
	err := p.Next.PublishBatch(ctx, batch)
	end(err)
	return err
}

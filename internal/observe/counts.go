package observe

import (
	"context"
	"log/slog"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Outcome is what became of a message.
type Outcome string

// The outcomes of a message.
const (
	// Handled: at least one handler has handled the message now, and the others that it is for, now or before.
	Handled Outcome = "handled"
	// Duplicate: every handler that the message is for has handled it before.
	Duplicate Outcome = "duplicate"
	// Unhandled: no handler is registered for the event type; the message is acked.
	Unhandled Outcome = "unhandled"
	// DeadLettered: at least one handler failed for good, or the message is no event.
	DeadLettered Outcome = "dead_lettered"
	// Postponed: the handlers that failed try again later.
	Postponed Outcome = "postponed"
	// GivenBack: the worker stops, or the message could not be dead-lettered; it will be delivered again.
	GivenBack Outcome = "given_back"
)

func outcomes() [6]Outcome {
	return [6]Outcome{Handled, Duplicate, Unhandled, DeadLettered, Postponed, GivenBack}
}

// Counts counts messages by their outcome. The zero value is ready.
type Counts struct {
	None

	counts [6]atomic.Int64
}

// Receive implements [Observer].
func (c *Counts) Receive(ctx context.Context, _ *message.Message) (context.Context, func(Outcome)) {
	return ctx, c.add
}

func (c *Counts) add(outcome Outcome) {
	for i, o := range outcomes() {
		if o == outcome {
			c.counts[i].Add(1)
		}
	}
}

// Map returns the counts by outcome.
func (c *Counts) Map() map[Outcome]int64 {
	counts := make(map[Outcome]int64, len(c.counts))
	for i, o := range outcomes() {
		counts[o] = c.counts[i].Load()
	}
	return counts
}

// LogValue implements [slog.LogValuer].
func (c *Counts) LogValue() slog.Value {
	var attrs []slog.Attr
	for i, o := range outcomes() {
		attrs = append(attrs, slog.Int64(string(o), c.counts[i].Load()))
	}
	return slog.GroupValue(attrs...)
}

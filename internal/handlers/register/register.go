// Package register is the one list of all handlers that the worker runs: each package of handlers has its line here.
package register

import (
	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
)

// Options are what registrations depend on.
type Options struct {
	// Streams is the store, for handlers that load aggregates.
	Streams events.Streams
	// Chaos lets events ask for failures, for demonstrations and tests.
	Chaos bool
}

// All registers every handler, in the order in which those of one event type run.
func All(reg *handlers.Registry, o Options) {
	clinic.Register(reg, o.Streams, o.Chaos)
}

// Aggregates make the aggregates whose state the console shows after each of their events. It is a help to those who look:
// what is not in the list is shown by its events alone.
func Aggregates() []func() events.Stateful {
	return []func() events.Stateful{
		func() events.Stateful { return clinic.NewAppointment() },
	}
}

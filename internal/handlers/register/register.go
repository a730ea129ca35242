// Package register is the one list of all handlers that the worker runs: each package of handlers has its line here.
package register

import (
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/handlers/clinic"
)

// Options are what registrations depend on.
type Options struct {
	// Chaos lets events ask for failures, for demonstrations and tests.
	Chaos bool
}

// All registers every handler, in the order in which those of one event type run.
func All(reg *handlers.Registry, o Options) {
	clinic.Register(reg, o.Chaos)
}

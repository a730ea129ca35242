// Package invoicing is what a team adds that has taken this repository as its template.
package invoicing

import (
	"context"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
)

// Register registers the handlers of invoicing.
func Register(reg *handlers.Registry) {
	handlers.On(reg, "TreatmentFinished", "request-invoice",
		func(_ context.Context, e events.Event, t TreatmentFinished) ([]events.Event, error) {
			return events.Follow(e, InvoiceRequested{Amount: t.Fee})
		})
}

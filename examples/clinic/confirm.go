package clinic

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
)

// ConfirmationReceived says that a patient has answered a reminder.
type ConfirmationReceived struct {
	AppointmentID uuid.UUID `json:"appointment_id"`
}

// EventType implements [events.Data].
func (ConfirmationReceived) EventType() string { return "ConfirmationReceived" }

// confirmAppointment returns the handler that lets an appointment decide what a patient's answer means. What it raises is
// appended with the record that the answer was handled; if the appointment moves on meanwhile, the handler runs again.
func confirmAppointment(
	appointments *events.Repository[*Appointment],
) func(context.Context, events.Event, ConfirmationReceived) ([]events.Event, error) {
	return func(ctx context.Context, e events.Event, c ConfirmationReceived) ([]events.Event, error) {
		raised, err := appointments.Decide(ctx, events.CausedBy(e), c.AppointmentID, (*Appointment).Confirm)
		switch {
		case errors.Is(err, ErrAlreadyConfirmed):
			return nil, nil
		case errors.Is(err, ErrNotScheduled), errors.Is(err, ErrAlreadyCancelled), errors.Is(err, events.ErrOtherTenant):
			return nil, handlers.Permanent(err)
		}
		return raised, err
	}
}

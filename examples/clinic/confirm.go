package clinic

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"github.com/healz/worker"
)

// ConfirmationReceived says that a patient has answered a reminder.
type ConfirmationReceived struct {
	AppointmentID uuid.UUID `json:"appointment_id"`
}

// EventType implements [worker.Data].
func (ConfirmationReceived) EventType() string { return "ConfirmationReceived" }

// confirmAppointment returns the handler that lets an appointment decide what a patient's answer means. What it raises is
// appended with the record that the answer was handled; if the appointment moves on meanwhile, the handler runs again.
func confirmAppointment(
	appointments *worker.Repository[*Appointment],
) func(context.Context, worker.Event, ConfirmationReceived) ([]worker.Event, error) {
	return func(ctx context.Context, e worker.Event, c ConfirmationReceived) ([]worker.Event, error) {
		raised, err := appointments.Decide(ctx, worker.CausedBy(e), c.AppointmentID, (*Appointment).Confirm)
		switch {
		case errors.Is(err, ErrAlreadyConfirmed):
			return nil, nil
		case errors.Is(err, ErrNotScheduled), errors.Is(err, ErrAlreadyCancelled), errors.Is(err, worker.ErrOtherTenant):
			return nil, worker.Permanent(err)
		}
		return raised, err
	}
}

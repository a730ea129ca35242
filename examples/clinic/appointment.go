// Package clinic is the example to learn from: an aggregate, its events, and handlers for them, of a small clinic.
package clinic

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker"
)

// What an appointment refuses.
var (
	ErrNotScheduled     = errors.New("the appointment is not scheduled")
	ErrAlreadyScheduled = errors.New("the appointment is already scheduled")
	ErrAlreadyConfirmed = errors.New("the appointment is already confirmed")
	ErrAlreadyCancelled = errors.New("the appointment is already cancelled")
)

// AppointmentScheduled begins an appointment.
type AppointmentScheduled struct {
	PatientID uuid.UUID `json:"patient_id"`
	StartsAt  time.Time `json:"starts_at"`
}

// AppointmentConfirmed says that the patient will come.
type AppointmentConfirmed struct{}

// AppointmentCancelled ends an appointment.
type AppointmentCancelled struct {
	Reason string `json:"reason,omitempty"`
}

// EventType implements [worker.Data].
func (AppointmentScheduled) EventType() string { return "AppointmentScheduled" }

// EventType implements [worker.Data].
func (AppointmentConfirmed) EventType() string { return "AppointmentConfirmed" }

// EventType implements [worker.Data].
func (AppointmentCancelled) EventType() string { return "AppointmentCancelled" }

// Appointment is scheduled, then confirmed or not, and perhaps cancelled.
type Appointment struct {
	worker.Root

	scheduled, confirmed, cancelled bool
	startsAt                        time.Time
}

// NewAppointment returns an appointment that has not begun.
func NewAppointment() *Appointment { return &Appointment{} }

// AggregateType implements [worker.Aggregate].
func (a *Appointment) AggregateType() string { return "Appointment" }

// Schedule begins the appointment.
func (a *Appointment) Schedule(patientID uuid.UUID, startsAt time.Time) error {
	switch {
	case a.cancelled:
		return ErrAlreadyCancelled
	case a.scheduled:
		return ErrAlreadyScheduled
	case patientID == uuid.Nil:
		return errors.New("an appointment needs a patient")
	case startsAt.IsZero():
		return errors.New("an appointment needs a time")
	}
	return worker.Raise(a, AppointmentScheduled{PatientID: patientID, StartsAt: startsAt})
}

// Confirm says that the patient will come.
func (a *Appointment) Confirm() error {
	switch {
	case !a.scheduled:
		return ErrNotScheduled
	case a.cancelled:
		return ErrAlreadyCancelled
	case a.confirmed:
		return ErrAlreadyConfirmed
	}
	return worker.Raise(a, AppointmentConfirmed{})
}

// Cancel ends the appointment; cancelling twice is refused.
func (a *Appointment) Cancel(reason string) error {
	switch {
	case !a.scheduled:
		return ErrNotScheduled
	case a.cancelled:
		return ErrAlreadyCancelled
	}
	return worker.Raise(a, AppointmentCancelled{Reason: reason})
}

// Apply implements [worker.Aggregate].
func (a *Appointment) Apply(e worker.Event) error {
	switch e.Type {
	case AppointmentScheduled{}.EventType():
		scheduled, err := worker.DataOf[AppointmentScheduled](e)
		if err != nil {
			return fmt.Errorf("apply: %w", err)
		}
		a.scheduled, a.startsAt = true, scheduled.StartsAt
	case AppointmentConfirmed{}.EventType():
		a.confirmed = true
	case AppointmentCancelled{}.EventType():
		a.cancelled = true
	}
	return nil
}

// State implements [worker.Stateful]: the console shows it.
func (a *Appointment) State() any {
	return struct {
		Scheduled bool      `json:"scheduled"`
		Confirmed bool      `json:"confirmed"`
		Cancelled bool      `json:"cancelled"`
		StartsAt  time.Time `json:"starts_at"`
	}{a.scheduled, a.confirmed, a.cancelled, a.startsAt}
}

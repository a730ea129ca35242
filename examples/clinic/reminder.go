package clinic

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker"
)

// reminderLead is how long before an appointment its patient is reminded.
const reminderLead = 24 * time.Hour

// ReminderScheduled says when a patient is to be reminded of an appointment.
type ReminderScheduled struct {
	AppointmentID uuid.UUID `json:"appointment_id"`
	PatientID     uuid.UUID `json:"patient_id"`
	RemindAt      time.Time `json:"remind_at"`
}

// EventType implements [worker.Data].
func (ReminderScheduled) EventType() string { return "ReminderScheduled" }

// AggregateType implements [worker.Opening].
func (ReminderScheduled) AggregateType() string { return "Reminder" }

// scheduleReminder lets a reminder follow from an appointment.
func scheduleReminder(_ context.Context, e worker.Event, a AppointmentScheduled) ([]worker.Event, error) {
	switch {
	case a.PatientID == uuid.Nil:
		return nil, worker.Permanent(errors.New("appointment has no patient_id"))
	case a.StartsAt.IsZero():
		return nil, worker.Permanent(errors.New("appointment has no starts_at"))
	}
	return worker.Follow(e, ReminderScheduled{
		AppointmentID: e.AggregateID, PatientID: a.PatientID, RemindAt: a.StartsAt.Add(-reminderLead),
	})
}

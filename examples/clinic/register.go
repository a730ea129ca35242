package clinic

import (
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
)

// Register registers the handlers of the clinic; streams is where they load aggregates from. With failOnDemand, events
// may ask for failures: "fail_times" in their metadata says how many.
func Register(reg *handlers.Registry, streams events.Streams, failOnDemand bool) {
	welcome := welcomePatient
	if failOnDemand {
		welcome = chaos(welcome)
	}
	handlers.On(reg, "PatientRegistered", "welcome-patient", welcome)
	handlers.On(reg, "AppointmentScheduled", "schedule-reminder", scheduleReminder)
	handlers.On(reg, "ConfirmationReceived", "confirm-appointment",
		confirmAppointment(events.NewRepository(streams, NewAppointment)))
}

package clinic

import "github.com/healz/worker"

// Register registers the handlers of the clinic.
func Register(app *worker.App) {
	worker.On(app, "PatientRegistered", "welcome-patient", welcomePatient)
	worker.On(app, "AppointmentScheduled", "schedule-reminder", scheduleReminder)
	worker.On(app, "ConfirmationReceived", "confirm-appointment",
		confirmAppointment(worker.NewRepository(app, NewAppointment)))
	worker.ShowState(app, NewAppointment)
}

package clinic

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker"
	"github.com/healz/worker/workertest"
)

func TestConfirmAppointment(t *testing.T) {
	t.Parallel()
	origin := workertest.Origin()
	stream := &workertest.Streams{}
	appointments := worker.NewRepository(stream, NewAppointment)
	handle := confirmAppointment(appointments)
	execute := func(id uuid.UUID, command func(*Appointment) error) {
		_, err := appointments.Execute(t.Context(), origin, id, command)
		require.NoError(t, err)
	}
	schedule := func(a *Appointment) error { return a.Schedule(uuid.New(), time.Now()) }
	scheduled, confirmed, cancelled := uuid.New(), uuid.New(), uuid.New()
	for _, id := range []uuid.UUID{scheduled, confirmed, cancelled} {
		execute(id, schedule)
	}
	execute(confirmed, (*Appointment).Confirm)
	execute(cancelled, func(a *Appointment) error { return a.Cancel("ill") })

	workertest.Handler(t, handle).When(ConfirmationReceived{AppointmentID: scheduled}).Then(AppointmentConfirmed{})
	workertest.Handler(t, handle).When(ConfirmationReceived{AppointmentID: confirmed}).Then()
	workertest.Handler(t, handle).When(ConfirmationReceived{AppointmentID: cancelled}).ThenPermanent()
	workertest.Handler(t, handle).When(ConfirmationReceived{AppointmentID: uuid.New()}).ThenPermanent()
}

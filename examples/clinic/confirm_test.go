package clinic

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/events/eventstest"
)

func TestConfirmAppointment(t *testing.T) {
	t.Parallel()
	origin := eventstest.Origin()
	stream := &eventstest.Streams{}
	appointments := events.NewRepository(stream, NewAppointment)
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

	eventstest.Handler(t, handle).When(ConfirmationReceived{AppointmentID: scheduled}).Then(AppointmentConfirmed{})
	eventstest.Handler(t, handle).When(ConfirmationReceived{AppointmentID: confirmed}).Then()
	eventstest.Handler(t, handle).When(ConfirmationReceived{AppointmentID: cancelled}).ThenPermanent()
	eventstest.Handler(t, handle).When(ConfirmationReceived{AppointmentID: uuid.New()}).ThenPermanent()
}

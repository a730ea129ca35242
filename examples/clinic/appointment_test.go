package clinic

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker"
	"github.com/healz/worker/workertest"
)

func scheduled() AppointmentScheduled {
	return AppointmentScheduled{
		PatientID: uuid.MustParse("0198c9ab-0000-7000-8000-000000000001"),
		StartsAt:  time.Date(2026, 7, 30, 9, 30, 0, 0, time.FixedZone("east", 2*60*60)),
	}
}

func schedule(a *Appointment) error { return a.Schedule(scheduled().PatientID, scheduled().StartsAt) }
func confirm(a *Appointment) error  { return a.Confirm() }
func cancel(a *Appointment) error   { return a.Cancel("ill") }

func TestAppointment(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		given []worker.Data
		when  func(*Appointment) error
		then  worker.Data
	}{
		"schedule": {nil, schedule, scheduled()},
		"confirm":  {[]worker.Data{scheduled()}, confirm, AppointmentConfirmed{}},
		"cancel":   {[]worker.Data{scheduled()}, cancel, AppointmentCancelled{Reason: "ill"}},
		"cancel what is confirmed": {
			[]worker.Data{scheduled(), AppointmentConfirmed{}}, cancel, AppointmentCancelled{Reason: "ill"},
		},
		"after an event of a newer worker": {
			[]worker.Data{scheduled(), roomAssigned{}}, confirm, AppointmentConfirmed{},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			workertest.Aggregate(t, NewAppointment).Given(test.given...).When(test.when).Then(test.then)
		})
	}
}

// roomAssigned is an event that an Appointment knows nothing of.
type roomAssigned struct{}

func (roomAssigned) EventType() string { return "RoomAssigned" }

func TestAppointmentRefuses(t *testing.T) {
	t.Parallel()
	confirmed := []worker.Data{scheduled(), AppointmentConfirmed{}}
	cancelled := []worker.Data{scheduled(), AppointmentCancelled{Reason: "ill"}}
	for name, test := range map[string]struct {
		given []worker.Data
		when  func(*Appointment) error
		then  error
	}{
		"schedule twice":            {[]worker.Data{scheduled()}, schedule, ErrAlreadyScheduled},
		"schedule after cancelling": {cancelled, schedule, ErrAlreadyCancelled},
		"confirm before scheduling": {nil, confirm, ErrNotScheduled},
		"confirm twice":             {confirmed, confirm, ErrAlreadyConfirmed},
		"confirm what is cancelled": {cancelled, confirm, ErrAlreadyCancelled},
		"cancel before scheduling":  {nil, cancel, ErrNotScheduled},
		"cancel twice":              {cancelled, cancel, ErrAlreadyCancelled},
		"cancel twice, once confirmed": {
			append(confirmed, AppointmentCancelled{}), cancel, ErrAlreadyCancelled,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			workertest.Aggregate(t, NewAppointment).Given(test.given...).When(test.when).ThenError(test.then)
		})
	}
}

func TestAnAppointmentNeedsAPatientAndATime(t *testing.T) {
	t.Parallel()
	a := NewAppointment()
	require.NoError(t, worker.Begin(a, uuid.New(), workertest.Origin()))
	require.ErrorContains(t, a.Schedule(uuid.Nil, scheduled().StartsAt), "needs a patient")
	require.ErrorContains(t, a.Schedule(scheduled().PatientID, time.Time{}), "needs a time")
	require.Empty(t, a.Uncommitted())
}

func TestAnAppointmentFromWhatItCannotRead(t *testing.T) {
	t.Parallel()
	e := workertest.Event(t, scheduled())
	e.AggregateType = NewAppointment().AggregateType()
	e.Data = []byte(`{"starts_at": "Ana's birthday"}`)
	err := worker.Load(NewAppointment(), func(yield func(worker.Event, error) bool) { yield(e, nil) })
	require.ErrorContains(t, err, "decode event_data of AppointmentScheduled")
	require.NotContains(t, err.Error(), "Ana")
}

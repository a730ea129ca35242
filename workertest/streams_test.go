package workertest_test

import (
	"errors"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker"
	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/workertest"
)

func TestStreamsAppendAllOrNothing(t *testing.T) {
	t.Parallel()
	first := workertest.Event(t, clinic.PatientRegistered{Name: "Ana"})
	next := func(version int) worker.Event {
		e := workertest.Event(t, clinic.PatientRegistered{Name: "Ana"})
		e.AggregateID, e.AggregateVersion = first.AggregateID, version
		return e
	}
	fresh := workertest.Event(t, clinic.PatientRegistered{})
	otherTenant := next(2)
	otherTenant.TenantID = uuid.New()
	again := next(2)
	again.ID = first.ID
	invalid := next(2)
	invalid.Type = ""
	tests := map[string]struct {
		batch []worker.Event
		is    func(error) bool
	}{
		"taken version": {[]worker.Event{fresh, next(1)}, func(err error) bool {
			conflict, ok := errors.AsType[*worker.ConflictError](err)
			return ok && conflict.Wanted == 1 && conflict.Found == 1 && errors.Is(err, worker.ErrConflict)
		}},
		"gap": {[]worker.Event{fresh, next(3)}, func(err error) bool {
			gap, ok := errors.AsType[*worker.GapError](err)
			return ok && gap.Wanted == 3 && gap.Found == 1
		}},
		"gap at the beginning": {[]worker.Event{withVersion(fresh, 2)}, func(err error) bool {
			gap, ok := errors.AsType[*worker.GapError](err)
			return ok && gap.Wanted == 2 && gap.Found == 0
		}},
		"repeated event": {[]worker.Event{fresh, again}, func(err error) bool {
			duplicate, ok := errors.AsType[*worker.DuplicateError](err)
			return ok && duplicate.EventID == first.ID
		}},
		"other tenant": {[]worker.Event{fresh, otherTenant}, func(err error) bool {
			return errors.Is(err, worker.ErrOtherTenant)
		}},
		"invalid": {[]worker.Event{fresh, invalid}, func(err error) bool {
			_, ok := errors.AsType[*worker.InvalidError](err)
			return ok
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s workertest.Streams
			require.NoError(t, s.AppendMany(t.Context(), []worker.Event{first}))
			err := s.AppendMany(t.Context(), test.batch)
			require.Error(t, err)
			require.True(t, test.is(err), "%v", err)
			var about *worker.EventError
			require.ErrorAs(t, err, &about)
			require.Equal(t, worker.EventError{Index: len(test.batch) - 1, Of: len(test.batch), Err: about.Err}, *about)
			require.Equal(t, []worker.Event{first}, s.Events())
		})
	}
}

func withVersion(e worker.Event, version int) worker.Event {
	e.AggregateVersion = version
	return e
}

func TestStreamsStream(t *testing.T) {
	t.Parallel()
	var s workertest.Streams
	one, two := uuid.New(), uuid.New()
	s.Given(t, "Appointment", one, scheduled())
	s.Given(t, "Appointment", two, scheduled())
	s.Given(t, "Appointment", one, clinic.AppointmentConfirmed{}, clinic.AppointmentCancelled{})
	read := func(aggregateType string, id uuid.UUID, after int) []int {
		var versions []int
		for e, err := range s.Stream(t.Context(), aggregateType, id, after) {
			require.NoError(t, err)
			require.Equal(t, id, e.AggregateID)
			versions = append(versions, e.AggregateVersion)
		}
		return versions
	}
	require.Equal(t, []int{1, 2, 3}, read("Appointment", one, 0))
	require.Equal(t, []int{3}, read("Appointment", one, 2))
	require.Equal(t, []int{1}, read("Appointment", two, 0))
	require.Empty(t, read("Patient", one, 0))
	require.Empty(t, read("Appointment", uuid.New(), 0))
	require.Len(t, s.Events(), 4)
}

func TestStreamsGiveOneOfTwoWritersAConflict(t *testing.T) {
	t.Parallel()
	var s workertest.Streams
	id := uuid.New()
	s.Given(t, "Appointment", id, scheduled())
	appointments := worker.NewRepository(&s, clinic.NewAppointment)
	first, err := appointments.Load(t.Context(), workertest.Origin(), id)
	require.NoError(t, err)
	second, err := appointments.Load(t.Context(), workertest.Origin(), id)
	require.NoError(t, err)
	require.NoError(t, first.Confirm())
	require.NoError(t, second.Cancel("ill"))

	require.NoError(t, appointments.Save(t.Context(), first))
	require.ErrorIs(t, appointments.Save(t.Context(), second), worker.ErrConflict)
}

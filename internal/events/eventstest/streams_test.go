package eventstest_test

import (
	"errors"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/events/eventstest"
	"github.com/healz/worker/internal/store"
)

func TestStreamsAppendAllOrNothing(t *testing.T) {
	t.Parallel()
	first := eventstest.Event(t, clinic.PatientRegistered{Name: "Ana"})
	next := func(version int) events.Event {
		e := eventstest.Event(t, clinic.PatientRegistered{Name: "Ana"})
		e.AggregateID, e.AggregateVersion = first.AggregateID, version
		return e
	}
	fresh := eventstest.Event(t, clinic.PatientRegistered{})
	otherTenant := next(2)
	otherTenant.TenantID = uuid.New()
	again := next(2)
	again.ID = first.ID
	invalid := next(2)
	invalid.Type = ""
	tests := map[string]struct {
		batch []events.Event
		is    func(error) bool
	}{
		"taken version": {[]events.Event{fresh, next(1)}, func(err error) bool {
			conflict, ok := errors.AsType[*store.ConflictError](err)
			return ok && conflict.Wanted == 1 && conflict.Found == 1 && errors.Is(err, events.ErrConflict)
		}},
		"gap": {[]events.Event{fresh, next(3)}, func(err error) bool {
			gap, ok := errors.AsType[*store.GapError](err)
			return ok && gap.Wanted == 3 && gap.Found == 1
		}},
		"gap at the beginning": {[]events.Event{withVersion(fresh, 2)}, func(err error) bool {
			gap, ok := errors.AsType[*store.GapError](err)
			return ok && gap.Wanted == 2 && gap.Found == 0
		}},
		"repeated event": {[]events.Event{fresh, again}, func(err error) bool {
			duplicate, ok := errors.AsType[*store.DuplicateError](err)
			return ok && duplicate.EventID == first.ID
		}},
		"other tenant": {[]events.Event{fresh, otherTenant}, func(err error) bool {
			return errors.Is(err, events.ErrOtherTenant)
		}},
		"invalid": {[]events.Event{fresh, invalid}, func(err error) bool {
			_, ok := errors.AsType[*events.InvalidError](err)
			return ok
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s eventstest.Streams
			require.NoError(t, s.AppendMany(t.Context(), []events.Event{first}))
			err := s.AppendMany(t.Context(), test.batch)
			require.Error(t, err)
			require.True(t, test.is(err), "%v", err)
			var about *store.EventError
			require.ErrorAs(t, err, &about)
			require.Equal(t, store.EventError{Index: len(test.batch) - 1, Of: len(test.batch), Err: about.Err}, *about)
			require.Equal(t, []events.Event{first}, s.Events())
		})
	}
}

func withVersion(e events.Event, version int) events.Event {
	e.AggregateVersion = version
	return e
}

func TestStreamsStream(t *testing.T) {
	t.Parallel()
	var s eventstest.Streams
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
	var s eventstest.Streams
	id := uuid.New()
	s.Given(t, "Appointment", id, scheduled())
	appointments := events.NewRepository(&s, clinic.NewAppointment)
	first, err := appointments.Load(t.Context(), eventstest.Origin(), id)
	require.NoError(t, err)
	second, err := appointments.Load(t.Context(), eventstest.Origin(), id)
	require.NoError(t, err)
	require.NoError(t, first.Confirm())
	require.NoError(t, second.Cancel("ill"))

	require.NoError(t, appointments.Save(t.Context(), first))
	require.ErrorIs(t, appointments.Save(t.Context(), second), events.ErrConflict)
}

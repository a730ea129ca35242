package clinic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/events/eventstest"
	"github.com/healz/worker/internal/handlers"
)

func TestWelcomePatient(t *testing.T) {
	t.Parallel()
	e := eventstest.Event(t, PatientRegistered{Name: "Ana"})
	eventstest.Handler(t, welcomePatient).WhenEvent(e).Then(WelcomeMessageRequested{PatientID: e.AggregateID, Name: "Ana"})

	for _, blank := range []string{"", " ", "\t\n\u00a0"} {
		eventstest.Handler(t, welcomePatient).When(PatientRegistered{Name: blank}).ThenPermanent()
	}
	for _, bad := range []string{`{}`, `null`, `{"name": null}`, `{"name": 7}`, `["Ana"]`} {
		e.Data = json.RawMessage(bad)
		eventstest.Handler(t, welcomePatient).WhenEvent(e).ThenPermanent()
	}
}

func TestAWelcomeMessageIsTheSameHoweverOftenItIsRequested(t *testing.T) {
	t.Parallel()
	e := eventstest.Event(t, PatientRegistered{Name: "Ana"})
	for range 2 {
		followUps, err := welcomePatient(t.Context(), e, PatientRegistered{Name: "Ana"})
		require.NoError(t, err)
		require.Len(t, followUps, 1)
		require.Equal(t, "Message", followUps[0].AggregateType)
		require.Equal(t, uuid.NewSHA1(e.ID, []byte("Message")), followUps[0].AggregateID)
		require.Equal(t, 1, followUps[0].AggregateVersion)
	}
}

func TestScheduleReminder(t *testing.T) {
	t.Parallel()
	e := eventstest.Event(t, scheduled())
	eventstest.Handler(t, scheduleReminder).WhenEvent(e).Then(ReminderScheduled{
		AppointmentID: e.AggregateID,
		PatientID:     scheduled().PatientID,
		RemindAt:      scheduled().StartsAt.Add(-24 * time.Hour),
	})

	noPatient, noTime := scheduled(), scheduled()
	noPatient.PatientID, noTime.StartsAt = uuid.Nil, time.Time{}
	eventstest.Handler(t, scheduleReminder).When(noPatient).ThenPermanent()
	eventstest.Handler(t, scheduleReminder).When(noTime).ThenPermanent()
	for _, bad := range []string{
		`{}`, `{"patient_id": "0198c9ab-0000-7000-8000-000000000001"}`, `{"starts_at": "2026-07-30T09:30:00Z"}`,
		`{"patient_id": "Ana", "starts_at": "2026-07-30T09:30:00Z"}`,
		`{"patient_id": "0198c9ab-0000-7000-8000-000000000001", "starts_at": "tomorrow"}`,
	} {
		e.Data = json.RawMessage(bad)
		eventstest.Handler(t, scheduleReminder).WhenEvent(e).ThenPermanent()
	}
}

func TestChaos(t *testing.T) {
	t.Parallel()
	registered := func(metadata string) events.Event {
		e := eventstest.Event(t, PatientRegistered{Name: "Ana"})
		e.Metadata = json.RawMessage(metadata)
		return e
	}
	welcome := chaos(welcomePatient)
	handle := func(e events.Event) error {
		_, err := welcome(t.Context(), e, PatientRegistered{Name: "Ana"})
		return err
	}

	one, other := registered(`{"fail_times": 2}`), registered(`{"fail_times": 1}`)
	for _, step := range []struct {
		e    events.Event
		want string
	}{
		{one, "chaos: failure 1 of 2"},
		{other, "chaos: failure 1 of 1"}, // each event has a count of its own
		{one, "chaos: failure 2 of 2"},
		{other, ""},
		{one, ""},
		{one, "chaos: failure 1 of 2"}, // a new delivery begins anew
	} {
		if err := handle(step.e); step.want == "" {
			require.NoError(t, err)
		} else {
			require.EqualError(t, err, step.want)
			require.False(t, handlers.IsPermanent(err), "a retry mends it")
		}
	}

	for _, calm := range []string{"", `{}`, `{"fail_times": 0}`, `{"fail_times": -1}`, `{"fail_times": null}`} {
		e := registered(calm)
		eventstest.Handler(t, welcome).WhenEvent(e).Then(WelcomeMessageRequested{PatientID: e.AggregateID, Name: "Ana"})
	}
	require.ErrorContains(t, handle(registered(`{"fail_times": "often"}`)), "field fail_times")

	permanent := errors.New("refused")
	refuse := chaos(func(context.Context, events.Event, PatientRegistered) ([]events.Event, error) {
		return nil, handlers.Permanent(permanent)
	})
	eventstest.Handler(t, refuse).WhenEvent(registered(`{}`)).ThenPermanent()
}

func TestRegister(t *testing.T) {
	t.Parallel()
	for _, failOnDemand := range []bool{false, true} {
		t.Run(fmt.Sprint("chaos ", failOnDemand), func(t *testing.T) {
			t.Parallel()
			reg := &handlers.Registry{}
			Register(reg, &eventstest.Streams{}, failOnDemand)
			_, err := handlers.NewDispatcher(reg, handlers.Config{Logger: slog.New(slog.DiscardHandler)})
			require.NoError(t, err)
		})
	}
}

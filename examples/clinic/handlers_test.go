package clinic

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker"
	"github.com/healz/worker/workertest"
)

func TestWelcomePatient(t *testing.T) {
	t.Parallel()
	e := workertest.Event(t, PatientRegistered{Name: "Ana"})
	workertest.Handler(t, welcomePatient).WhenEvent(e).Then(WelcomeMessageRequested{PatientID: e.AggregateID, Name: "Ana"})

	for _, blank := range []string{"", " ", "\t\n\u00a0"} {
		workertest.Handler(t, welcomePatient).When(PatientRegistered{Name: blank}).ThenPermanent()
	}
	for _, bad := range []string{`{}`, `null`, `{"name": null}`, `{"name": 7}`, `["Ana"]`} {
		e.Data = json.RawMessage(bad)
		workertest.Handler(t, welcomePatient).WhenEvent(e).ThenPermanent()
	}
}

func TestAWelcomeMessageIsTheSameHoweverOftenItIsRequested(t *testing.T) {
	t.Parallel()
	e := workertest.Event(t, PatientRegistered{Name: "Ana"})
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
	e := workertest.Event(t, scheduled())
	workertest.Handler(t, scheduleReminder).WhenEvent(e).Then(ReminderScheduled{
		AppointmentID: e.AggregateID,
		PatientID:     scheduled().PatientID,
		RemindAt:      scheduled().StartsAt.Add(-24 * time.Hour),
	})

	noPatient, noTime := scheduled(), scheduled()
	noPatient.PatientID, noTime.StartsAt = uuid.Nil, time.Time{}
	workertest.Handler(t, scheduleReminder).When(noPatient).ThenPermanent()
	workertest.Handler(t, scheduleReminder).When(noTime).ThenPermanent()
	for _, bad := range []string{
		`{}`, `{"patient_id": "0198c9ab-0000-7000-8000-000000000001"}`, `{"starts_at": "2026-07-30T09:30:00Z"}`,
		`{"patient_id": "Ana", "starts_at": "2026-07-30T09:30:00Z"}`,
		`{"patient_id": "0198c9ab-0000-7000-8000-000000000001", "starts_at": "tomorrow"}`,
	} {
		e.Data = json.RawMessage(bad)
		workertest.Handler(t, scheduleReminder).WhenEvent(e).ThenPermanent()
	}
}

func TestRegister(t *testing.T) {
	t.Parallel()
	var app worker.App
	Register(&app)
	require.NoError(t, app.Check())
}

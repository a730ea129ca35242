package workertest_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/uuid"

	"github.com/healz/worker"
	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/workertest"
)

func ExampleAggregate() {
	test := func(t *testing.T) { //nolint:thelper // it is a test
		workertest.Aggregate(t, clinic.NewAppointment).
			Given(scheduled()).
			When(func(a *clinic.Appointment) error { return a.Cancel("ill") }).
			Then(clinic.AppointmentCancelled{Reason: "ill"})

		workertest.Aggregate(t, clinic.NewAppointment).
			Given(scheduled(), clinic.AppointmentCancelled{Reason: "ill"}).
			When(func(a *clinic.Appointment) error { return a.Cancel("away") }).
			ThenError(clinic.ErrAlreadyCancelled)
	}
	_ = test // is the body of a function of the name TestAppointment
}

func ExampleHandler() {
	test := func(t *testing.T) { //nolint:thelper // it is a test
		printCard := func(_ context.Context, e worker.Event, p clinic.PatientRegistered) ([]worker.Event, error) {
			return worker.Follow(e, CardPrinted{Name: p.Name})
		}
		workertest.Handler(t, printCard).
			When(clinic.PatientRegistered{Name: "Ana"}).
			Then(CardPrinted{Name: "Ana"})
	}
	_ = test // is the body of a function of the name TestPrintCard
}

// A repository over Streams needs no server.
func ExampleStreams() {
	ctx := context.Background()
	var streams workertest.Streams
	appointments := worker.NewRepository(&streams, clinic.NewAppointment)
	id := uuid.New()
	for _, command := range []func(*clinic.Appointment) error{
		func(a *clinic.Appointment) error { return a.Schedule(scheduled().PatientID, scheduled().StartsAt) },
		func(a *clinic.Appointment) error { return a.Cancel("ill") },
		func(a *clinic.Appointment) error { return a.Cancel("away") },
	} {
		if _, err := appointments.Execute(ctx, workertest.Origin(), id, command); err != nil {
			fmt.Println(err)
		}
	}
	for _, e := range streams.Events() {
		fmt.Println(e.AggregateVersion, e.Type)
	}

	// Output:
	// the appointment is already cancelled
	// 1 AppointmentScheduled
	// 2 AppointmentCancelled
}

package demo

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/worker"
)

const (
	// interval is the time between two new events.
	interval = 250 * time.Millisecond
	// failureEvery is the number of new events per permanent failure.
	failureEvery = 240
	// maxFailures limits the failures of a demo that runs for long.
	maxFailures = 20
	// maxRequests is the number of requests that are kept for answers of their patients.
	maxRequests = 40
)

type traffic struct {
	backend worker.Backend
	clinics []practice
	// requests are requests for appointments, the oldest first.
	requests []events.Event
}

func (t *traffic) run(ctx context.Context) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	failures := 0
	for n := 1; ; n++ {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		at := t.clinics[rand.IntN(len(t.clinics)-1)] // the last has no hours
		err := t.next(ctx, at)
		if err == nil && n%failureEvery == 0 && failures < maxFailures {
			failures++
			err = t.fact(ctx, at.newOrigin(), "Patient", clinic.PatientRegistered{}, nil)
		}
		if err != nil {
			return err
		}
	}
}

// next generates one random event at a clinic.
func (t *traffic) next(ctx context.Context, at practice) error {
	switch dice := rand.IntN(10); {
	case dice < 4:
		name := []string{"Ana", "Ben", "Cleo", "Dan", "Eve"}[rand.IntN(5)]
		return t.fact(ctx, at.newOrigin(), "Patient", clinic.PatientRegistered{Name: name}, func(e *events.Event) {
			if dice == 0 {
				e.Metadata = []byte(`{"fail_times": 1}`)
			}
		})
	case dice < 8 || len(t.requests) == 0:
		return t.fact(ctx, at.newOrigin(), requestType, appointmentRequested{PatientID: uuid.New()}, func(e *events.Event) {
			t.requests = append(t.requests, *e)
			t.requests = t.requests[max(0, len(t.requests)-maxRequests):]
		})
	case dice < 9:
		return t.answer(ctx, t.request())
	default:
		return t.cancel(ctx, t.request())
	}
}

func (t *traffic) request() events.Event {
	r := t.requests[0]
	t.requests = t.requests[1:]
	return r
}

// answer confirms the appointment of a request, if its reminder exists already.
func (t *traffic) answer(ctx context.Context, request events.Event) error {
	chain, err := t.backend.ByCorrelation(ctx, request.CorrelationID, store.Query{})
	if err != nil {
		return err
	}
	for _, e := range chain.Events {
		if e.Type == (clinic.ReminderScheduled{}).EventType() {
			answer := clinic.ConfirmationReceived{AppointmentID: appointmentOf(request)}
			return t.fact(ctx, events.CausedBy(e), "Confirmation", answer, nil)
		}
	}
	return nil
}

// cancel cancels the appointment of a request, if it is booked already.
func (t *traffic) cancel(ctx context.Context, request events.Event) error {
	repository := events.NewRepository(t.backend, clinic.NewAppointment)
	_, err := repository.Execute(ctx, events.CausedBy(request), appointmentOf(request), func(a *clinic.Appointment) error {
		return a.Cancel("the patient called")
	})
	if errors.Is(err, clinic.ErrNotScheduled) {
		return nil
	}
	return err
}

// fact appends the first event of a new aggregate, after an optional change.
func (t *traffic) fact(
	ctx context.Context, origin events.Origin, aggregateType string, data events.Data, change func(*events.Event),
) error {
	e, err := events.New(origin, aggregateType, uuid.New(), 1, data)
	if err != nil {
		return err
	}
	if change != nil {
		change(&e)
	}
	return t.backend.Append(ctx, e)
}

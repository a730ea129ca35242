package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
)

// Register registers the handlers of the live demo: those of every worker, and some that make longer traces.
func Register(reg *handlers.Registry) {
	clinic.Register(reg)
	handlers.On(reg, clinicOpened{}.EventType(), "transfer-waiting-list", transferWaitingList)
	handlers.On(reg, waitingListTransferred{}.EventType(), "request-appointments", requestAppointments)
	handlers.On(reg, appointmentRequested{}.EventType(), "book-appointment",
		bookAppointment(events.NewRepository(reg, newClinic)))
}

// openingHours are times of the day, as "08:00".
type openingHours struct {
	Opens  string `json:"opens"`
	Closes string `json:"closes"`
}

// clinicOpened opens a clinic, which may have a waiting list.
type clinicOpened struct {
	Name     string        `json:"name"`
	Hours    *openingHours `json:"opening_hours"`
	Patients []uuid.UUID   `json:"waiting_patients,omitempty"`
}

type clinicHoursSet openingHours

type waitingListTransferred struct {
	Patients []uuid.UUID `json:"patients"`
}

// appointmentRequested requests the first free time at the clinic of the event.
type appointmentRequested struct {
	PatientID uuid.UUID `json:"patient_id"`
}

func (clinicOpened) EventType() string               { return "ClinicOpened" }
func (clinicHoursSet) EventType() string             { return "ClinicHoursSet" }
func (waitingListTransferred) EventType() string     { return "WaitingListTransferred" }
func (waitingListTransferred) AggregateType() string { return "WaitingList" }
func (appointmentRequested) EventType() string       { return "AppointmentRequested" }

const requestType = "AppointmentRequest"

type site struct {
	events.Root

	hours *openingHours
}

func newClinic() *site { return &site{} }

// AggregateType implements [events.Aggregate].
func (*site) AggregateType() string { return "Clinic" }

// Apply implements [events.Aggregate].
func (s *site) Apply(e events.Event) error {
	switch e.Type {
	case clinicOpened{}.EventType():
		opened, err := events.DataOf[clinicOpened](e)
		if err != nil {
			return err
		}
		s.hours = opened.Hours
	case clinicHoursSet{}.EventType():
		set, err := events.DataOf[clinicHoursSet](e)
		if err != nil {
			return err
		}
		s.hours = (*openingHours)(&set)
	}
	return nil
}

func transferWaitingList(_ context.Context, e events.Event, c clinicOpened) ([]events.Event, error) {
	if len(c.Patients) == 0 {
		return nil, nil
	}
	return events.Follow(e, waitingListTransferred{Patients: c.Patients})
}

func requestAppointments(_ context.Context, e events.Event, w waitingListTransferred) ([]events.Event, error) {
	requests := make([]events.Event, len(w.Patients))
	for i, patient := range w.Patients {
		id := events.DerivedID(e.ID, requestType+patient.String())
		request, err := events.New(events.CausedBy(e), requestType, id, 1, appointmentRequested{PatientID: patient})
		if err != nil {
			return nil, err
		}
		requests[i] = request
	}
	return requests, nil
}

// bookAppointment returns the handler that schedules an appointment within the opening hours of its clinic.
func bookAppointment(
	clinics *events.Repository[*site],
) func(context.Context, events.Event, appointmentRequested) ([]events.Event, error) {
	return func(ctx context.Context, e events.Event, r appointmentRequested) ([]events.Event, error) {
		c, err := clinics.Load(ctx, events.CausedBy(e), e.ClinicID.UUID)
		switch {
		case errors.Is(err, events.ErrNotFound), errors.Is(err, events.ErrOtherTenant):
			return nil, handlers.Permanent(err)
		case err != nil:
			return nil, err
		case c.hours == nil:
			return nil, handlers.Permanent(fmt.Errorf("clinic %s has no opening hours: they are missing in ClinicOpened, "+
				"and there is no ClinicHoursSet", c.ID()))
		}
		opens, err := time.Parse("15:04", c.hours.Opens)
		if err != nil {
			return nil, handlers.Permanent(fmt.Errorf("the opening hours of clinic %s are not times of the day", c.ID()))
		}
		day := e.CreatedAt.UTC().AddDate(0, 0, 3)
		starts := time.Date(day.Year(), day.Month(), day.Day(), opens.Hour(), opens.Minute(), 0, 0, time.UTC)
		scheduled, err := events.New(events.CausedBy(e), clinic.NewAppointment().AggregateType(), appointmentOf(e), 1,
			clinic.AppointmentScheduled{PatientID: r.PatientID, StartsAt: starts})
		return []events.Event{scheduled}, err
	}
}

func appointmentOf(request events.Event) uuid.UUID {
	return events.DerivedID(request.ID, clinic.NewAppointment().AggregateType())
}

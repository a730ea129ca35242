package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/worker"
)

// Stage is the environment of the worker of a live demo.
type Stage struct {
	// Settings are for a temporary store and the in-process bus.
	Settings worker.Settings
	// Log is for the log of the worker.
	Log io.Writer
	// Serving must be called with the address of the worker.
	Serving func(url string)
}

// Live appends sample traffic until ctx ends, and deletes its directory then. run must run a worker with the handlers of
// [Register]. Live prints a guided tour to out after the first failure.
func Live(ctx context.Context, out io.Writer, run func(context.Context, Stage) error) (err error) {
	directory, settings, err := newDirectory()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(directory)) }()
	log, err := os.Create(filepath.Join(directory, "worker.log"))
	if err != nil {
		return fmt.Errorf("create the log of the worker: %w", err)
	}
	defer log.Close()

	address := make(chan string, 1)
	working, workingCtx := errgroup.WithContext(ctx)
	working.Go(func() error {
		return run(workingCtx, Stage{Settings: settings, Log: log, Serving: func(url string) { address <- url }})
	})
	working.Go(func() error {
		select {
		case url := <-address:
			if err := live(workingCtx, out, settings, url, log.Name()); workingCtx.Err() == nil {
				return err
			}
			return nil // the demo was ended
		case <-workingCtx.Done():
			return nil
		}
	})
	return working.Wait()
}

func live(ctx context.Context, out io.Writer, s worker.Settings, url, log string) (err error) {
	backend, err := s.OpenStore(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, backend.Close()) }()
	if err := backend.Migrate(ctx); err != nil {
		return err
	}
	t := traffic{backend: backend, clinics: newPractices()}
	failing, err := t.open(ctx)
	if err != nil {
		return err
	}
	d := demo{letters: deadletter.NewTable(backend.SQL())}
	letter, err := d.awaitLetter(ctx, func(l deadletter.Letter) bool {
		return l.Event.CorrelationID == failing.CorrelationID && l.Event.Type == appointmentRequested{}.EventType()
	})
	if err != nil {
		return fmt.Errorf("wait for the appointment that fails: %w", err)
	}
	fmt.Fprintf(out, guide, url, log, s.SQLitePath, letter.ID, failing.CorrelationID, failing.AggregateID,
		fix(failing))
	return t.run(ctx)
}

// fix returns an event that sets the opening hours of a clinic without them, as a line of JSON.
func fix(opened events.Event) string {
	return fmt.Sprintf(`{"event_type":%q,"aggregate_type":%q,"aggregate_id":%q,"tenant_id":%q,`+
		`"event_data":{"opens":"08:00","closes":"17:00"}}`,
		clinicHoursSet{}.EventType(), opened.AggregateType, opened.AggregateID, opened.TenantID)
}

const guide = `A worker with its console runs on sample traffic of three clinics: %[1]s
Its log is %[2]s. End the demo with Ctrl-C, which deletes all its files.

Most events are handled, some only at the second attempt, and a few become dead letters, for different reasons. One of them
is an appointment that was not booked. Find out why, in the console (%[1]s/dead-letters) or in another terminal:

  export DATABASE_URL= RABBITMQ_URL= WORKER_SQLITE_PATH=%[3]s
  bin/worker dlq list
  bin/worker dlq show %[4]s
  bin/worker trace %[5]s

The clinic has no opening hours: they are missing in the event at the root of the tree.

  bin/worker events --aggregate Clinic/%[6]s -o json --reveal

Set them, and replay the dead letter, here or in the console. The tree then ends with a reminder of the appointment:

  echo '%[7]s' | bin/worker append
  bin/worker dlq replay --id %[4]s
  bin/worker trace %[5]s

To follow the events: bin/worker tail. To check store and worker: bin/worker doctor.
`

type practice struct {
	origin events.Origin
	name   string
	hours  *openingHours
}

// newPractices returns three clinics of three tenants. The last one has no opening hours.
func newPractices() []practice {
	list := []practice{
		{name: "East Clinic", hours: &openingHours{Opens: "08:30", Closes: "17:00"}},
		{name: "West Clinic", hours: &openingHours{Opens: "09:00", Closes: "18:30"}},
		{name: "North Clinic"},
	}
	for i := range list {
		list[i].origin = events.Origin{TenantID: uuid.New(), ClinicID: uuid.NullUUID{UUID: uuid.New(), Valid: true}}
	}
	return list
}

// newOrigin returns an origin of the practice with a new correlation id.
func (p practice) newOrigin() events.Origin {
	origin := p.origin
	origin.CorrelationID = events.NewCorrelationID()
	origin.UserID = uuid.NullUUID{UUID: uuid.New(), Valid: true}
	return origin
}

// open appends the clinics, and an event for each kind of failure. It returns the event that will make an appointment fail.
func (t *traffic) open(ctx context.Context) (events.Event, error) {
	var opened events.Event
	for _, c := range t.clinics {
		e, err := events.New(c.newOrigin(), newClinic().AggregateType(), c.origin.ClinicID.UUID, 1,
			clinicOpened{Name: c.name, Hours: c.hours, Patients: []uuid.UUID{uuid.New()}})
		if err != nil {
			return e, err
		}
		if err := t.backend.Append(ctx, e); err != nil {
			return e, err
		}
		opened = e
	}
	nameless, unlucky, misspelt := clinic.PatientRegistered{}, clinic.PatientRegistered{Name: "Fay"}, clinic.PatientRegistered{}
	return opened, errors.Join(
		t.fact(ctx, t.clinics[0].newOrigin(), "Patient", nameless, nil),
		t.fact(ctx, t.clinics[1].newOrigin(), "Patient", unlucky, func(e *events.Event) { e.Metadata = []byte(`{"fail_times": 99}`) }),
		t.fact(ctx, t.clinics[1].newOrigin(), "Patient", misspelt, func(e *events.Event) { e.Data = []byte(`{"name": 4711}`) }),
		t.fact(ctx, t.clinics[0].newOrigin(), "Appointment", clinic.AppointmentScheduled{StartsAt: time.Now().UTC()}, nil),
		t.fact(ctx, t.clinics[2].newOrigin(), "Confirmation", clinic.ConfirmationReceived{AppointmentID: uuid.New()}, nil),
	)
}

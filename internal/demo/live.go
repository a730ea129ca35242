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

// Stage is what a live demo runs its worker on.
type Stage struct {
	// Settings name the demo's store; the bus is inside the process.
	Settings worker.Settings
	// Log takes the worker's log.
	Log io.Writer
	// Serving is to be called with the worker's address, as soon as it has one.
	Serving func(url string)
}

// Live plays sample traffic until ctx ends, in a folder that is gone afterwards, while run runs a worker with the handlers
// of [Register] on it. Once there is something to see, out says what and how.
func Live(ctx context.Context, out io.Writer, run func(context.Context, Stage) error) (err error) {
	folder, err := os.MkdirTemp("", "healz-demo-")
	if err != nil {
		return fmt.Errorf("make the demo's folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	log, err := os.Create(filepath.Join(folder, "worker.log"))
	if err != nil {
		return fmt.Errorf("make the worker's log: %w", err)
	}
	defer log.Close()

	settings := worker.DefaultSettings()
	settings.SQLitePath = filepath.Join(folder, "demo.db")
	settings.Tuning.RetryAttempts = attempts
	address := make(chan string, 1)
	working, workingCtx := errgroup.WithContext(ctx)
	working.Go(func() error {
		return run(workingCtx, Stage{Settings: settings, Log: log, Serving: func(url string) { address <- url }})
	})
	working.Go(func() error {
		select {
		case url := <-address:
			return live(workingCtx, out, settings, url, log.Name())
		case <-workingCtx.Done():
			return nil
		}
	})
	return working.Wait()
}

// live plays the traffic, and guides through it.
func live(ctx context.Context, out io.Writer, s worker.Settings, url, log string) (err error) {
	backend, err := s.OpenStore(ctx)
	if err != nil {
		return ignoreEnd(ctx, err)
	}
	defer func() { err = errors.Join(err, backend.Close()) }()
	if err := backend.Migrate(ctx); err != nil {
		return ignoreEnd(ctx, err)
	}
	t := traffic{backend: backend, clinics: newPractices()}
	failing, err := t.open(ctx)
	if err != nil {
		return ignoreEnd(ctx, err)
	}
	d := demo{letters: deadletter.NewTable(backend.SQL())}
	letter, err := d.awaitLetter(ctx, func(l deadletter.Letter) bool {
		return l.Event.CorrelationID == failing.CorrelationID && l.Event.Type == appointmentRequested{}.EventType()
	})
	if err != nil {
		return ignoreEnd(ctx, fmt.Errorf("wait for the appointment that fails: %w", err))
	}
	fmt.Fprintf(out, guide, url, log, s.SQLitePath, letter.ID, failing.CorrelationID, failing.AggregateID,
		mend(failing))
	return ignoreEnd(ctx, t.trickle(ctx))
}

// ignoreEnd is err, unless the demo was ended.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return nil
}

// mend is the event that supplies the hours of the clinic that was opened without, as a line of JSON.
func mend(opened events.Event) string {
	return fmt.Sprintf(`{"event_type":%q,"aggregate_type":%q,"aggregate_id":%q,"tenant_id":%q,`+
		`"event_data":{"opens":"08:00","closes":"17:00"}}`,
		clinicHoursSet{}.EventType(), opened.AggregateType, opened.AggregateID, opened.TenantID)
}

const guide = `A worker runs on the sample traffic of three clinics: %[1]s
Its log is %[2]s; all of it is gone when you end the demo with Ctrl-C.

Most events are handled, some only at a second try, and a few fail for good, for several reasons. One of these is an
appointment that nobody booked. Find out why, on that page (%[1]s/dead-letters) or in another terminal:

  export DATABASE_URL= RABBITMQ_URL= WORKER_SQLITE_PATH=%[3]s
  bin/worker dlq list
  bin/worker dlq show %[4]s
  bin/worker trace %[5]s

The clinic has no opening hours: the event at the root of the tree, with which it all began, came without them.

  bin/worker events --aggregate Clinic/%[6]s --format json

Supply them, and replay the appointment, here or on the page; the tree then ends with a reminder of it:

  echo '%[7]s' | bin/worker append
  bin/worker dlq replay --id %[4]s
  bin/worker trace %[5]s

What happens meanwhile: bin/worker tail. Whether all is well: bin/worker doctor.
`

// practice is one of the clinics whose traffic it is.
type practice struct {
	origin events.Origin
	name   string
	hours  *openingHours
}

// newPractices are three clinics of three tenants, of which the last is opened without hours.
func newPractices() []practice {
	var list []practice
	for _, p := range []practice{
		{name: "East Clinic", hours: &openingHours{Opens: "08:30", Closes: "17:00"}},
		{name: "West Clinic", hours: &openingHours{Opens: "09:00", Closes: "18:30"}},
		{name: "North Clinic"},
	} {
		p.origin = events.Origin{TenantID: uuid.New(), ClinicID: uuid.NullUUID{UUID: uuid.New(), Valid: true}}
		list = append(list, p)
	}
	return list
}

// beginning is the origin of a new chain of the practice.
func (p practice) beginning() events.Origin {
	origin := p.origin
	origin.CorrelationID = events.NewCorrelationID()
	origin.UserID = uuid.NullUUID{UUID: uuid.New(), Valid: true}
	return origin
}

// open appends what all begins with: the clinics, and an event for each way to fail. It returns the event because of
// which an appointment will fail.
func (t *traffic) open(ctx context.Context) (events.Event, error) {
	var opened events.Event
	for _, c := range t.clinics {
		e, err := events.New(c.beginning(), newClinic().AggregateType(), c.origin.ClinicID.UUID, 1,
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
		t.fact(ctx, t.clinics[0].beginning(), "Patient", nameless, nil),
		t.fact(ctx, t.clinics[1].beginning(), "Patient", unlucky, func(e *events.Event) { e.Metadata = []byte(`{"fail_times": 99}`) }),
		t.fact(ctx, t.clinics[1].beginning(), "Patient", misspelt, func(e *events.Event) { e.Data = []byte(`{"name": 4711}`) }),
		t.fact(ctx, t.clinics[0].beginning(), "Appointment", clinic.AppointmentScheduled{StartsAt: time.Now().UTC()}, nil),
		t.fact(ctx, t.clinics[2].beginning(), "Confirmation", clinic.ConfirmationReceived{AppointmentID: uuid.New()}, nil),
	)
}

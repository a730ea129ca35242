// Package demo runs the worker on sample traffic of clinics in a temporary directory: [Run] is a short script, and [Live]
// runs until it is stopped.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/worker"
)

const (
	// timeout bounds a step.
	timeout = 20 * time.Second
	// pollInterval is the interval at which a step polls for its result.
	pollInterval = 20 * time.Millisecond
	// attempts is the number of attempts of a handler.
	attempts = 3
)

// Run prints each step to out. The error says which step failed.
func Run(ctx context.Context, out io.Writer) (err error) {
	directory, settings, err := newDirectory()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(directory)) }()

	printer := log.New(out, "", 0) // the worker logs to it, too
	logger := slog.New(slog.NewTextHandler(indented{printer}, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: withoutTime}))
	registerAll := func(reg *handlers.Registry) {
		clinic.Register(reg)
		handlers.FailOnDemand(reg)
	}
	w, closeParts, err := worker.Open(ctx, settings, worker.OpenOptions{Register: registerAll, Migrate: true, Logger: logger})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeParts()) }()
	backend, err := settings.OpenStore(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, backend.Close()) }()

	working, stop := context.WithCancel(ctx)
	worked := make(chan error, 1)
	go func() { worked <- w.Run(working) }()
	defer func() {
		stop()
		err = errors.Join(err, <-worked)
	}()
	d := demo{printer: printer, backend: backend, letters: deadletter.NewTable(backend.SQL()), clinic: events.Origin{TenantID: uuid.New()}}
	return d.play(ctx)
}

// newDirectory makes a directory, and settings for a store in it.
func newDirectory() (string, worker.Settings, error) {
	s := worker.DefaultSettings()
	directory, err := os.MkdirTemp("", "healz-demo-")
	if err != nil {
		return "", s, fmt.Errorf("create the directory of the demo: %w", err)
	}
	s.SQLitePath = filepath.Join(directory, "demo.db")
	s.Tuning.RetryAttempts = attempts
	return directory, s, nil
}

type demo struct {
	printer *log.Logger
	backend worker.Backend
	letters *deadletter.Table
	clinic  events.Origin
	step    int
}

func (d *demo) play(ctx context.Context) error {
	for _, step := range []func(context.Context) error{d.handled, d.commanded, d.retried, d.deadLettered} {
		if err := step(ctx); err != nil {
			return fmt.Errorf("step %d: %w", d.step, err)
		}
	}
	d.say("\nDone: no event was lost, and none was handled twice. The directory of the demo is deleted.")
	return nil
}

func (d *demo) handled(ctx context.Context) error {
	d.title("A patient is registered. The event is appended, the relay publishes it, and its handler returns a follow-up event.")
	e, err := d.register(ctx, clinic.PatientRegistered{Name: "Ana"}, "")
	if err != nil {
		return err
	}
	return d.await(ctx, e, clinic.WelcomeMessageRequested{}.EventType())
}

func (d *demo) commanded(ctx context.Context) error {
	d.title("An appointment is scheduled, and cancelled twice: the aggregate refuses the second cancellation.")
	repository := events.NewRepository(d.backend, clinic.NewAppointment)
	id, patient := uuid.New(), uuid.New()
	origin := d.clinic
	origin.CorrelationID = events.NewCorrelationID()
	if _, err := repository.Execute(ctx, origin, id, func(a *clinic.Appointment) error {
		return a.Schedule(patient, time.Now().Add(72*time.Hour).UTC().Truncate(time.Minute))
	}); err != nil {
		return err
	}
	cancel := func(a *clinic.Appointment) error { return a.Cancel("the patient called") }
	if _, err := repository.Execute(ctx, origin, id, cancel); err != nil {
		return err
	}
	_, err := repository.Execute(ctx, origin, id, cancel)
	if !errors.Is(err, clinic.ErrAlreadyCancelled) {
		return fmt.Errorf("the second cancellation was not refused: %w", err)
	}
	d.say("  refused: %s", err)
	return d.await(ctx, events.Event{CorrelationID: origin.CorrelationID}, clinic.ReminderScheduled{}.EventType())
}

func (d *demo) retried(ctx context.Context) error {
	d.title("A handler fails twice (as the metadata of the event asks it to), and is retried until it succeeds.")
	e, err := d.register(ctx, clinic.PatientRegistered{Name: "Ben"}, `{"fail_times": 2}`)
	if err != nil {
		return err
	}
	return d.await(ctx, e, clinic.WelcomeMessageRequested{}.EventType())
}

func (d *demo) deadLettered(ctx context.Context) error {
	d.title("A handler fails in all of its %d attempts. The event becomes a dead letter; other events are not delayed.", attempts)
	e, err := d.register(ctx, clinic.PatientRegistered{Name: "Cleo"}, fmt.Sprintf(`{"fail_times": %d}`, attempts))
	if err != nil {
		return err
	}
	letter, err := d.awaitLetter(ctx, func(l deadletter.Letter) bool { return l.Event.ID == e.ID })
	if err != nil {
		return err
	}
	d.title("Why did it fail? See `worker dlq list` and `worker dlq show`.")
	d.say("  letter   %s\n  event    %s %s\n  handler  %s\n  attempts %d\n  reason   %s", letter.ID, letter.Event.Type,
		letter.Event.ID, letter.Handler, letter.Attempts, letter.Reason)

	d.title("The cause is fixed. `worker dlq replay --id %s` publishes it again, to the handler that failed.", letter.ID)
	replay := deadletter.ReplayOptions{Patience: timeout}
	for _, err := range d.letters.Replay(ctx, deadletter.Filter{IDs: []string{letter.ID}}, replay) {
		if err != nil {
			return err
		}
	}
	return d.await(ctx, e, clinic.WelcomeMessageRequested{}.EventType())
}

func (d *demo) register(ctx context.Context, p clinic.PatientRegistered, metadata string) (events.Event, error) {
	e, err := events.New(d.clinic, "Patient", uuid.New(), 1, p)
	if err != nil {
		return e, err
	}
	if metadata != "" {
		e.Metadata = []byte(metadata)
	}
	return e, d.backend.Append(ctx, e)
}

// await waits for an event of a type with the correlation id of e, and prints all events with that id.
func (d *demo) await(ctx context.Context, e events.Event, eventType string) error {
	var chain []events.Event
	err := d.until(ctx, func() (bool, error) {
		page, err := d.backend.ByCorrelation(ctx, e.CorrelationID, store.Query{})
		chain = page.Events
		return slices.ContainsFunc(chain, func(found events.Event) bool { return found.Type == eventType }), err
	})
	if err != nil {
		return fmt.Errorf("wait for %s: %w", eventType, err)
	}
	for _, c := range chain {
		cause := "root"
		if c.CausationID.Valid {
			cause = "caused by " + c.CausationID.UUID.String()
		}
		d.say("  %-24s %s  %s", c.Type, c.ID, cause)
	}
	return nil
}

func (d *demo) awaitLetter(ctx context.Context, wanted func(deadletter.Letter) bool) (deadletter.Letter, error) {
	var letter deadletter.Letter
	err := d.until(ctx, func() (bool, error) {
		for l, err := range d.letters.List(ctx, deadletter.Filter{}) {
			if err != nil || wanted(l) {
				letter = l
				return err == nil, err
			}
		}
		return false, nil
	})
	return letter, err
}

func (d *demo) until(ctx context.Context, happened func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		if ok, err := happened(); ok || err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *demo) title(format string, args ...any) {
	d.step++
	d.say("\n%d. %s", d.step, fmt.Sprintf(format, args...))
}

func (d *demo) say(format string, args ...any) { d.printer.Printf(format, args...) }

type indented struct{ *log.Logger }

func (i indented) Write(p []byte) (int, error) {
	i.Printf("  | %s", p)
	return len(p), nil
}

func withoutTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

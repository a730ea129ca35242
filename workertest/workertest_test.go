package workertest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker"
	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/workertest"
)

// fakeTB records how a test has failed.
type fakeTB struct {
	testing.TB
	failed   bool
	messages strings.Builder
	cleanups []func()
}

func (f *fakeTB) Errorf(format string, args ...any) {
	f.failed = true
	fmt.Fprintf(&f.messages, format, args...)
}

func (f *fakeTB) Failed() bool { return f.failed }

func (f *fakeTB) Cleanup(end func()) { f.cleanups = append(f.cleanups, end) }

func (f *fakeTB) FailNow() {
	f.failed = true
	panic(f) // ends the test that is tested
}

// failure runs a test that must fail and returns what it reports.
func failure(t *testing.T, test func(t testing.TB)) string {
	t.Helper()
	f := &fakeTB{TB: t}
	func() {
		defer func() {
			if r := recover(); r != nil && r != any(f) {
				panic(r)
			}
		}()
		test(f)
	}()
	for _, end := range f.cleanups {
		end()
	}
	require.True(t, f.failed, "it should have failed")
	return f.messages.String()
}

// CardPrinted is the first event of a card.
type CardPrinted struct {
	Name string `json:"name"`
}

func (CardPrinted) EventType() string     { return "CardPrinted" }
func (CardPrinted) AggregateType() string { return "Card" }

func printCard(_ context.Context, e worker.Event, p clinic.PatientRegistered) ([]worker.Event, error) {
	return worker.Follow(e, CardPrinted(p))
}

func scheduled() clinic.AppointmentScheduled {
	return clinic.AppointmentScheduled{
		PatientID: uuid.MustParse("0198c9ab-0000-7000-8000-000000000001"),
		StartsAt:  time.Date(2026, 7, 30, 9, 30, 0, 0, time.UTC),
	}
}

func cancel(a *clinic.Appointment) error { return a.Cancel("ill") }

func TestAggregate(t *testing.T) {
	t.Parallel()
	workertest.Aggregate(t, clinic.NewAppointment).
		When(func(a *clinic.Appointment) error { return a.Schedule(scheduled().PatientID, scheduled().StartsAt) }).
		Then(scheduled())
	workertest.Aggregate(t, clinic.NewAppointment).
		Given(scheduled()).
		Given(clinic.AppointmentConfirmed{}).
		When(cancel).
		Then(clinic.AppointmentCancelled{Reason: "ill"})
	workertest.Aggregate(t, clinic.NewAppointment).
		Given(scheduled()).
		When(func(a *clinic.Appointment) error { return errors.Join(a.Confirm(), a.Cancel("ill")) }).
		Then(clinic.AppointmentConfirmed{}, clinic.AppointmentCancelled{Reason: "ill"})
	workertest.Aggregate(t, clinic.NewAppointment).
		Given(scheduled(), clinic.AppointmentCancelled{}).
		When(cancel).
		ThenError(clinic.ErrAlreadyCancelled)
	workertest.Aggregate(t, clinic.NewAppointment).
		When(func(*clinic.Appointment) error { return nil }).
		Then()
}

func TestHandler(t *testing.T) {
	t.Parallel()
	workertest.Handler(t, printCard).When(clinic.PatientRegistered{Name: "Ana"}).Then(CardPrinted{Name: "Ana"})

	refused := errors.New("refused")
	refuse := func(err error) func(context.Context, worker.Event, clinic.PatientRegistered) ([]worker.Event, error) {
		return func(context.Context, worker.Event, clinic.PatientRegistered) ([]worker.Event, error) { return nil, err }
	}
	workertest.Handler(t, refuse(nil)).When(clinic.PatientRegistered{}).Then()
	workertest.Handler(t, refuse(refused)).When(clinic.PatientRegistered{}).ThenError(refused)
	workertest.Handler(t, refuse(handlers.Permanent(refused))).When(clinic.PatientRegistered{}).ThenPermanent()
}

func TestHandlerHasTheEventInHand(t *testing.T) {
	t.Parallel()
	e := workertest.Event(t, clinic.PatientRegistered{Name: "Ana"})
	e.Metadata = json.RawMessage(`{"source": "import"}`)
	workertest.Handler(t, func(ctx context.Context, got worker.Event, raw json.RawMessage) ([]worker.Event, error) {
		inContext, ok := events.FromContext(ctx)
		require.True(t, ok)
		require.Equal(t, e, inContext)
		require.Equal(t, e, got)
		require.JSONEq(t, `{"name": "Ana"}`, string(raw))
		return nil, nil
	}).WhenEvent(e).Then()
}

func TestDataThatDoesNotDecodeIsAPermanentErrorAsInTheWorker(t *testing.T) {
	t.Parallel()
	e := workertest.Event(t, clinic.PatientRegistered{})
	e.Data = json.RawMessage(`{"name": 1}`)
	workertest.Handler(t, printCard).WhenEvent(e).ThenPermanent()
}

func TestHandlerThatLoadsAnAggregate(t *testing.T) {
	t.Parallel()
	appointment := uuid.New()
	var streams workertest.Streams
	streams.Given(t, "Appointment", appointment, scheduled())
	appointments := worker.NewRepository(&streams, clinic.NewAppointment)
	cancelAppointment := func(ctx context.Context, e worker.Event, _ clinic.PatientRegistered) ([]worker.Event, error) {
		return appointments.Decide(ctx, worker.CausedBy(e), appointment, cancel)
	}
	workertest.Handler(t, cancelAppointment).
		When(clinic.PatientRegistered{Name: "Ana"}).
		Then(clinic.AppointmentCancelled{Reason: "ill"})
}

func TestOtherOutcomesFailTheTest(t *testing.T) {
	t.Parallel()
	begin := func(t testing.TB) *workertest.Outcome {
		t.Helper()
		return workertest.Aggregate(t, clinic.NewAppointment).Given(scheduled()).When(cancel)
	}
	refused := func(t testing.TB) *workertest.Outcome {
		t.Helper()
		return workertest.Aggregate(t, clinic.NewAppointment).When(cancel)
	}
	tests := map[string]struct {
		when func(t testing.TB) *workertest.Outcome
		then func(*workertest.Outcome)
		want []string
	}{
		"other data": {
			begin, func(o *workertest.Outcome) { o.Then(clinic.AppointmentCancelled{Reason: "away"}) },
			[]string{"other events than expected", `-  "reason": "away"`, `+  "reason": "ill"`},
		},
		"another type": {
			begin, func(o *workertest.Outcome) { o.Then(clinic.AppointmentConfirmed{}) },
			[]string{"-AppointmentConfirmed {}", "+AppointmentCancelled {"},
		},
		"one too many": {
			begin, func(o *workertest.Outcome) { o.Then() },
			[]string{"+AppointmentCancelled {"},
		},
		"one missing": {
			begin, func(o *workertest.Outcome) {
				o.Then(clinic.AppointmentCancelled{Reason: "ill"}, clinic.AppointmentConfirmed{})
			},
			[]string{"-AppointmentConfirmed {}"},
		},
		"an error instead of events": {
			refused, func(o *workertest.Outcome) { o.Then(clinic.AppointmentCancelled{Reason: "ill"}) },
			[]string{clinic.ErrNotScheduled.Error()},
		},
		"events instead of an error": {
			begin, func(o *workertest.Outcome) { o.ThenError(clinic.ErrAlreadyCancelled) },
			[]string{clinic.ErrAlreadyCancelled.Error()},
		},
		"another error": {
			refused, func(o *workertest.Outcome) { o.ThenError(clinic.ErrAlreadyCancelled) },
			[]string{clinic.ErrNotScheduled.Error(), clinic.ErrAlreadyCancelled.Error()},
		},
		"an error that a retry may mend": {
			refused, (*workertest.Outcome).ThenPermanent,
			[]string{"the error would be retried: " + clinic.ErrNotScheduled.Error()},
		},
		"no error": {
			begin, (*workertest.Outcome).ThenPermanent,
			[]string{"An error is expected"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			report := failure(t, func(t testing.TB) {
				t.Helper()
				test.then(test.when(t))
			})
			for _, want := range test.want {
				require.Contains(t, report, want)
			}
		})
	}
}

func TestAHistoryThatCannotBeEncodedFailsTheTest(t *testing.T) {
	t.Parallel()
	report := failure(t, func(t testing.TB) {
		t.Helper()
		workertest.Aggregate(t, clinic.NewAppointment).Given(unencodable{})
	})
	require.Contains(t, report, "given")
	require.Contains(t, report, "encode data of Unencodable")
}

// unencodable is data that JSON cannot carry.
type unencodable struct{ C chan int }

func (unencodable) EventType() string { return "Unencodable" }

func TestFollowUpsMustCarryOn(t *testing.T) {
	t.Parallel()
	other := uuid.MustParse("0198c9ab-0000-7000-8000-00000000000f")
	for name, test := range map[string]struct {
		spoil func(*worker.Event)
		want  string
	}{
		"tenant":      {func(e *worker.Event) { e.TenantID = other }, "CardPrinted: tenant_id"},
		"correlation": {func(e *worker.Event) { e.CorrelationID = other }, "CardPrinted: correlation_id"},
		"cause":       {func(e *worker.Event) { e.CausationID.UUID = other }, "CardPrinted: causation_id"},
		"no cause":    {func(e *worker.Event) { e.CausationID = uuid.NullUUID{} }, "CardPrinted: causation_id"},
		"validity":    {func(e *worker.Event) { e.AggregateVersion = 0 }, "aggregate_version"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spoilt := func(_ context.Context, e worker.Event, p clinic.PatientRegistered) ([]worker.Event, error) {
				followUps, err := worker.Follow(e, CardPrinted(p))
				test.spoil(&followUps[0])
				return followUps, err
			}
			report := failure(t, func(t testing.TB) {
				t.Helper()
				workertest.Handler(t, spoilt).When(clinic.PatientRegistered{Name: "Ana"}).Then(CardPrinted{Name: "Ana"})
			})
			require.Contains(t, report, test.want)
		})
	}
}

func TestATestThatAsksForNoOutcomeFails(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(t testing.TB){
		"no When": func(t testing.TB) { t.Helper(); workertest.Aggregate(t, clinic.NewAppointment).Given(scheduled()) },
		"no Then": func(t testing.TB) {
			t.Helper()
			workertest.Aggregate(t, clinic.NewAppointment).Given(scheduled()).When(cancel)
		},
		"a handler alone": func(t testing.TB) { t.Helper(); workertest.Handler(t, printCard) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Contains(t, failure(t, test), "asks for no outcome")
		})
	}
}

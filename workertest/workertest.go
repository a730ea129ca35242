// Package workertest is for testing aggregates and handlers without a server, in the words in which they are thought of:
// given these events, when this happens, then those events follow.
//
//	workertest.Aggregate(t, clinic.NewAppointment).
//		Given(clinic.AppointmentScheduled{…}).
//		When(func(a *clinic.Appointment) error { return a.Cancel("ill") }).
//		Then(clinic.AppointmentCancelled{Reason: "ill"})
//
//	workertest.Handler(t, welcomePatient).
//		When(PatientRegistered{Name: "Ana"}).
//		Then(WelcomeMessageRequested{Name: "Ana", …})
//
// Data goes through JSON on its way, as it does in the worker, and is compared by its JSON. A handler that loads
// aggregates gets its repository over [Streams], an event store in memory; one with SQL of its own is tested on a real
// store, see [HandlerTest.On].
package workertest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
)

// Origin is the origin of all events that this package makes: one tenant, clinic, user and correlation.
func Origin() worker.Origin {
	id := func(name string) uuid.UUID { return uuid.NewSHA1(uuid.NameSpaceOID, []byte(name)) }
	return worker.Origin{
		TenantID:      id("tenant"),
		ClinicID:      uuid.NullUUID{UUID: id("clinic"), Valid: true},
		UserID:        uuid.NullUUID{UUID: id("user"), Valid: true},
		CorrelationID: id("correlation"),
	}
}

// Event returns a valid event that carries data: the first of a new aggregate, with the [Origin]. The caller may change
// what else it should be.
func Event(t testing.TB, data worker.Data) worker.Event {
	t.Helper()
	aggregateType := "Test"
	if opening, opens := data.(worker.Opening); opens {
		aggregateType = opening.AggregateType()
	}
	return event(t, aggregateType, uuid.Must(uuid.NewV7()), 1, data)
}

func event(t testing.TB, aggregateType string, id uuid.UUID, version int, data worker.Data) worker.Event {
	t.Helper()
	e, err := events.New(Origin(), aggregateType, id, version, data)
	require.NoError(t, err, "given")
	return e
}

// AggregateTest is the test of an aggregate, begun by [Aggregate].
type AggregateTest[A worker.Aggregate] struct {
	t          testing.TB
	asked      *bool
	streams    *Streams
	repository *worker.Repository[A]
	// aggregateType and id are those of the aggregate.
	aggregateType string
	id            uuid.UUID
}

// Aggregate begins the test of an aggregate. As for [worker.NewRepository], each call of empty must return a new one.
func Aggregate[A worker.Aggregate](t testing.TB, empty func() A) *AggregateTest[A] {
	t.Helper()
	streams := &Streams{}
	return &AggregateTest[A]{
		t:             t,
		asked:         mustAsk(t),
		streams:       streams,
		repository:    events.NewRepository(streams, empty),
		aggregateType: empty().AggregateType(),
		id:            uuid.Must(uuid.NewV7()),
	}
}

// Given says what has happened before, oldest first.
func (a *AggregateTest[A]) Given(history ...worker.Data) *AggregateTest[A] {
	a.t.Helper()
	a.streams.Given(a.t, a.aggregateType, a.id, history...)
	return a
}

// When runs a command on the aggregate as its history made it.
func (a *AggregateTest[A]) When(command func(A) error) *Outcome {
	a.t.Helper()
	raised, err := a.repository.Decide(a.t.Context(), Origin(), a.id, command)
	return &Outcome{t: a.t, asked: a.asked, err: err, events: raised}
}

// HandlerTest is the test of a handler, begun by [Handler].
type HandlerTest[T any] struct {
	t      testing.TB
	asked  *bool
	handle func(context.Context, worker.Event, T) ([]worker.Event, error)
	inbox  handlers.Inbox
}

// Handler begins the test of a handler: the function that is registered with [worker.On].
func Handler[T any](t testing.TB, handle func(context.Context, worker.Event, T) ([]worker.Event, error)) *HandlerTest[T] {
	t.Helper()
	return &HandlerTest[T]{t: t, asked: mustAsk(t), handle: handle}
}

// On lets the handler work on a real store, as it does in the worker: what it registers with [worker.InTx] is done,
// and what follows is appended.
func (h *HandlerTest[T]) On(s *worker.Store) *HandlerTest[T] {
	h.inbox = s.Inbox()
	return h
}

// When lets the handler handle an [Event] that carries data.
func (h *HandlerTest[T]) When(data worker.Data) *Outcome {
	h.t.Helper()
	return h.WhenEvent(Event(h.t, data))
}

// WhenEvent lets the handler handle e. What follows must be valid, have e as its cause, and carry on its tenant and its
// correlation.
func (h *HandlerTest[T]) WhenEvent(e worker.Event) *Outcome {
	h.t.Helper()
	require.NoError(h.t, e.Validate(), "when")
	data, err := events.DataOf[T](e)
	if err != nil {
		return &Outcome{t: h.t, asked: h.asked, err: handlers.Permanent(err)}
	}
	ctx := events.NewContext(h.t.Context(), e)
	if h.inbox != nil {
		ctx = h.inbox.Attempt(ctx)
	}
	followUps, err := h.handle(ctx, e, data)
	for i, f := range followUps {
		which := fmt.Sprintf("event %d of %d that follow, %s:", i+1, len(followUps), f.Type)
		assert.NoError(h.t, f.Validate(), which)
		assert.Equal(h.t, e.TenantID.String(), f.TenantID.String(), "%s tenant_id", which)
		assert.Equal(h.t, e.CorrelationID.String(), f.CorrelationID.String(), "%s correlation_id", which)
		assert.Equal(h.t, uuid.NullUUID{UUID: e.ID, Valid: true}, f.CausationID, "%s causation_id", which)
	}
	if err == nil && h.inbox != nil {
		err = h.inbox.Record(ctx, "handler under test", e, followUps)
	}
	return &Outcome{t: h.t, asked: h.asked, err: err, events: followUps}
}

// mustAsk fails the test if it ends before it has asked for an outcome: it would assert nothing.
func mustAsk(t testing.TB) *bool {
	t.Helper()
	asked := false
	t.Cleanup(func() {
		if !asked && !t.Failed() {
			t.Errorf("the test asks for no outcome: end it with Then, ThenError or ThenPermanent")
		}
	})
	return &asked
}

// Outcome is what a command or a handler has brought about. One of its methods ends the test.
type Outcome struct {
	t      testing.TB
	asked  *bool
	err    error
	events []worker.Event
}

// Then requires success and exactly these events, in this order; none means that nothing happens.
func (o *Outcome) Then(want ...worker.Data) {
	o.t.Helper()
	*o.asked = true
	require.NoError(o.t, o.err)
	var wanted, got strings.Builder
	for _, data := range want {
		raw, err := json.Marshal(data)
		require.NoError(o.t, err, "then")
		describe(&wanted, data.EventType(), raw)
	}
	for _, e := range o.events {
		describe(&got, e.Type, e.Data)
	}
	require.Equal(o.t, wanted.String(), got.String(), "other events than expected")
}

// ThenError requires an error that is, or wraps, target.
func (o *Outcome) ThenError(target error) {
	o.t.Helper()
	*o.asked = true
	require.ErrorIs(o.t, o.err, target)
}

// ThenPermanent requires an error that no retry will mend; see [worker.Permanent].
func (o *Outcome) ThenPermanent() {
	o.t.Helper()
	*o.asked = true
	require.Error(o.t, o.err)
	require.True(o.t, handlers.IsPermanent(o.err), "the error would be retried: %v", o.err)
}

// describe writes an event's type and data such that those that mean the same read the same.
func describe(b *strings.Builder, eventType string, data []byte) {
	var value any
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	text := data
	if decoder.Decode(&value) == nil {
		text, _ = json.MarshalIndent(value, "", "  ") // what was decoded can be encoded
	}
	fmt.Fprintf(b, "%s %s\n", eventType, text)
}

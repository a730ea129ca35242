package torture

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

// fate is what is to become of an event.
type fate int

const (
	// unhandled: no handler is registered for its type.
	unhandled fate = iota
	// handled: one event follows from it.
	handled
	// failing: it becomes a dead letter, and nothing follows.
	failing
	// mended: it becomes a dead letter, and one event follows from it when that is replayed, once or several times.
	mended
)

// endless is more failures than there are attempts, replays included, and passing as many as a worker has tried at the
// second time that it is delivered.
const (
	endless = 1_000_000_000
	passing = attempts * 3 / 2
)

// author makes things up. Two of the same seed and name make up the same.
type author struct {
	*rand.Rand
	source  io.Reader
	planted string
}

func newAuthor(seed uint64, name string) *author {
	source := rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "%d %s", seed, name)))
	return &author{Rand: rand.New(source), source: source, planted: plantedValue(seed)}
}

// plantedValue stands for all that must not be logged: it is in each password, in event_data and in metadata.
func plantedValue(seed uint64) string { return fmt.Sprintf("PLANTED%dPLANTED", seed) }

func (a *author) chance(p float64) bool { return a.Float64() < p }

func (a *author) between(least, most time.Duration) time.Duration {
	return least + time.Duration(a.Int64N(int64(most-least)+1))
}

func (a *author) number(least, most int) int { return least + a.IntN(most-least+1) }

func (a *author) id() uuid.UUID {
	return uuid.Must(uuid.NewRandomFromReader(a.source)) // the source never fails
}

// stream is an aggregate that is written to.
type stream struct {
	aggregateType string
	id, tenant    uuid.UUID
	version       int
}

func (a *author) newStream() *stream {
	s := &stream{aggregateType: "Patient", id: a.id(), tenant: a.id()}
	if a.chance(0.3) {
		s.aggregateType = "Appointment"
	}
	return s
}

// reply makes up an appointment, and a patient's reply to it, on which its handler adds to the appointment.
func (a *author) reply() []entry {
	appointment := &stream{aggregateType: "Appointment", id: a.id(), tenant: a.id()}
	reply := &stream{aggregateType: "Reply", id: a.id(), tenant: appointment.tenant}
	batch := append(a.some(appointment, 1), a.some(reply, 1)...)
	batch[1].event.Type, batch[1].fate = "ConfirmationReceived", handled
	batch[1].event.Data = fmt.Appendf(nil, `{"appointment_id":%q,"remark":%q}`, appointment.id, a.planted)
	return batch
}

// failures makes up n events of one aggregate whose handler fails for good.
func (a *author) failures(n int) []entry {
	batch := a.some(&stream{aggregateType: "Patient", id: a.id(), tenant: a.id()}, n)
	for i := range batch {
		batch[i].event.Type, batch[i].fate = "PatientRegistered", failing
		batch[i].event.Data, batch[i].event.Metadata = fmt.Appendf(nil, `{"name":"","remark":%q}`, a.planted), nil
	}
	return batch
}

// next makes up the event behind the n that are on their way to s.
func (a *author) next(s *stream, n int) (events.Event, fate) {
	e := events.Event{
		ID: a.id(), AggregateType: s.aggregateType, AggregateID: s.id, AggregateVersion: s.version + n + 1, TenantID: s.tenant,
		ClinicID: uuid.NullUUID{UUID: a.id(), Valid: a.chance(0.5)}, UserID: uuid.NullUUID{UUID: a.id(), Valid: a.chance(0.5)},
		CorrelationID: a.id(), CreatedAt: time.Now().UTC().Truncate(time.Millisecond),
	}
	data, metadata := map[string]any{"remark": a.planted}, map[string]any{"note": a.planted}
	f := unhandled
	switch {
	case s.aggregateType == "Patient" && a.chance(0.8):
		e.Type, f = "PatientRegistered", handled
		data["name"] = a.planted
		switch a.IntN(50) {
		case 0, 1, 2, 3, 4:
			metadata["fail_times"] = a.number(1, 2)
		case 5:
			metadata["fail_times"], f = endless, failing
		case 6:
			data["name"], f = "", failing
		case 7:
			metadata["fail_times"], f = passing, mended
		}
	case s.aggregateType == "Patient":
		e.Type = "PatientMoved"
	case e.AggregateVersion == 1:
		e.Type, f = "AppointmentScheduled", handled
		data["patient_id"], data["starts_at"] = a.id(), "2027-01-02T09:00:00Z"
	default:
		e.Type = "AppointmentConfirmed"
	}
	e.Data, _ = json.Marshal(data)         // strings, numbers and ids
	e.Metadata, _ = json.Marshal(metadata) // likewise
	return e, f
}

// some makes up the next n events of s.
func (a *author) some(s *stream, n int) []entry {
	batch := make([]entry, n)
	for i := range batch {
		batch[i].event, batch[i].fate = a.next(s, i)
	}
	return batch
}

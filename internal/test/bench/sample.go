package bench

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

const (
	// streamLength is how many events an aggregate of the samples has.
	streamLength = 10
	// tenants is how many tenants the samples are spread over.
	tenants = 20

	aggregateType = "Appointment"
	eventType     = "AppointmentBooked"
	followUpType  = "ReminderRequested"
)

// booked is the data of the samples, about as large as a clinic's.
type booked struct {
	PatientID uuid.UUID `json:"patient_id"`
	DoctorID  uuid.UUID `json:"doctor_id"`
	StartsAt  time.Time `json:"starts_at"`
	Minutes   int       `json:"minutes"`
	Reason    string    `json:"reason"`
}

// reminder is the data of what follows from a sample.
type reminder struct {
	PatientID uuid.UUID `json:"patient_id"`
	At        time.Time `json:"at"`
}

func (booked) EventType() string       { return eventType }
func (reminder) EventType() string     { return followUpType }
func (reminder) AggregateType() string { return "Reminder" }

// samples makes n events, in streams of [streamLength] one after another.
func samples(n int) ([]events.Event, error) {
	return samplesOf(n, "check-up after the operation of last week")
}

// samplesOf is samples with another reason.
func samplesOf(n int, reason string) ([]events.Event, error) {
	list := make([]events.Event, n)
	var origin events.Origin
	var aggregate uuid.UUID
	for i := range list {
		version := i%streamLength + 1
		if version == 1 {
			aggregate = uuid.New()
			origin = events.Origin{
				TenantID: uuid.NewSHA1(uuid.Nil, fmt.Append(nil, "tenant ", rand.IntN(tenants))), CorrelationID: uuid.New(),
			}
		}
		e, err := events.New(origin, aggregateType, aggregate, version, booked{
			PatientID: uuid.New(), DoctorID: uuid.New(), StartsAt: time.Now().UTC().Truncate(time.Second), Minutes: 30,
			Reason: reason,
		})
		if err != nil {
			return nil, err
		}
		list[i] = e
	}
	return list, nil
}

// bodies are the samples as they go over the wire.
func bodies(list []events.Event) ([]json.RawMessage, error) {
	all := make([]json.RawMessage, len(list))
	for i, e := range list {
		body, err := e.MarshalJSON()
		if err != nil {
			return nil, err
		}
		all[i] = body
	}
	return all, nil
}

// share is caller i's part of the samples, whose streams it has to itself.
func share(list []events.Event, i int) []events.Event {
	streams := len(list) / streamLength
	return list[streams*i/callers*streamLength : streams*(i+1)/callers*streamLength]
}

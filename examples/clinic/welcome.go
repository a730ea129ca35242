package clinic

import (
	"context"
	"errors"
	"strings"

	"github.com/google/uuid"

	"github.com/healz/worker"
)

// PatientRegistered says that a clinic has a new patient.
type PatientRegistered struct {
	Name string `json:"name"`
}

// EventType implements [worker.Data].
func (PatientRegistered) EventType() string { return "PatientRegistered" }

// WelcomeMessageRequested asks for a message to a new patient.
type WelcomeMessageRequested struct {
	PatientID uuid.UUID `json:"patient_id"`
	Name      string    `json:"name"`
}

// EventType implements [worker.Data].
func (WelcomeMessageRequested) EventType() string { return "WelcomeMessageRequested" }

// AggregateType implements [worker.Opening].
func (WelcomeMessageRequested) AggregateType() string { return "Message" }

// welcomePatient lets a welcome message follow from a registration.
func welcomePatient(_ context.Context, e worker.Event, p PatientRegistered) ([]worker.Event, error) {
	if strings.TrimSpace(p.Name) == "" {
		return nil, worker.Permanent(errors.New("patient has no name"))
	}
	return worker.Follow(e, WelcomeMessageRequested{PatientID: e.AggregateID, Name: p.Name})
}

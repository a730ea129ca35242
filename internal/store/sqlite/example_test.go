package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store/sqlite"
)

type patientRegistered struct {
	Name string `json:"name"`
}

func (patientRegistered) EventType() string { return "PatientRegistered" }

func Example() {
	folder, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(folder)
	if err := registerTwice(context.Background(), filepath.Join(folder, "events.db")); err != nil {
		log.Print(err)
	}
	// Output:
	// a second version 1 is a conflict: true
	// version 1: PatientRegistered {"name":"Ana"}
}

// registerTwice appends an event, finds its version taken, and reads it back.
func registerTwice(ctx context.Context, path string) error {
	s, err := sqlite.Open(ctx, path)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Migrate(ctx); err != nil {
		return err
	}

	patient, origin := uuid.New(), events.Origin{TenantID: uuid.New()}
	registered, err := events.New(origin, "Patient", patient, 1, patientRegistered{Name: "Ana"})
	if err != nil {
		return err
	}
	if err := s.Append(ctx, registered); err != nil {
		return err
	}
	again, err := events.New(origin, "Patient", patient, 1, patientRegistered{Name: "Bea"})
	if err != nil {
		return err
	}
	fmt.Println("a second version 1 is a conflict:", errors.Is(s.Append(ctx, again), events.ErrConflict))

	for e, err := range s.Stream(ctx, "Patient", patient, 0) {
		if err != nil {
			return err
		}
		fmt.Printf("version %d: %s %s\n", e.AggregateVersion, e.Type, e.Data)
	}
	return nil
}

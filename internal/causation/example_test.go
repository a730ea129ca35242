package causation_test

import (
	"context"
	"os"
	"path/filepath"

	"github.com/healz/worker/internal/causation"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store/sqlite"
)

func ExampleLoad() {
	ctx := context.Background()
	folder, err := os.MkdirTemp("", "causation-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(folder)
	s, err := sqlite.Open(ctx, filepath.Join(folder, "events.db"))
	if err != nil {
		panic(err)
	}
	defer s.Close()
	if err := s.Migrate(ctx); err != nil {
		panic(err)
	}
	if err := s.AppendMany(ctx, chain("chain", "PatientReferred", "AppointmentRequested<PatientReferred")); err != nil {
		panic(err)
	}

	// The id may also be the id of an event.
	tree, err := causation.Load(ctx, s, id("AppointmentRequested"), deadletter.NewTable(s.SQL()))
	if err != nil {
		panic(err)
	}
	if err := tree.WriteText(os.Stdout, 0); err != nil {
		panic(err)
	}
	// Output:
	// correlation  5d38ca89-b5f5-58ea-8d00-dd077ecb3eb7
	// tenant       a8b9899d-b128-59a1-aa86-754920b7f5ed
	// began        2026-07-30 09:00:00.000Z
	//              2 events in 1s, 0 dead letters
	//
	//       +0ms  PatientReferred  Patient/ec6b2b95-fbef-588d-9a58-a82adb773f7a v1  56ded679-9843-5b9a-a4a5-248e1013f0fa
	//        +1s  └─ AppointmentRequested  Patient/78005059-3fce-5dc3-b9f8-63c7ab3d6e4e v1  69a89888-1117-5a4b-b602-e6ae977ddf2a
}

package events_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/workertest"
)

// Bed is an aggregate: it embeds the root, refuses what must not happen, and says how events change its state.
type Bed struct {
	events.Root

	patient string
}

// BedOccupied says who lies in a bed.
type BedOccupied struct {
	Patient string `json:"patient"`
}

func (BedOccupied) EventType() string { return "BedOccupied" }

func (b *Bed) AggregateType() string { return "Bed" }

func (b *Bed) Occupy(patient string) error {
	if b.patient != "" {
		return errors.New("the bed is taken")
	}
	return events.Raise(b, BedOccupied{Patient: patient})
}

func (b *Bed) Apply(e events.Event) error {
	if e.Type == (BedOccupied{}).EventType() {
		occupied, err := events.DataOf[BedOccupied](e)
		if err != nil {
			return err
		}
		b.patient = occupied.Patient
	}
	return nil
}

// MealOrdered opens an order of its own.
type MealOrdered struct {
	Patient string `json:"patient"`
}

func (MealOrdered) EventType() string     { return "MealOrdered" }
func (MealOrdered) AggregateType() string { return "Meal" }

// An aggregate raises events, a repository keeps it, and a handler lets other events follow.
func Example() {
	ctx := context.Background()
	var store workertest.Streams
	beds := events.NewRepository(&store, func() *Bed { return &Bed{} })
	id, origin := uuid.New(), events.Origin{TenantID: uuid.New()}

	for _, patient := range []string{"Ana", "Ben"} {
		_, err := beds.Execute(ctx, origin, id, func(b *Bed) error { return b.Occupy(patient) })
		fmt.Println(patient, err)
	}

	bed, err := beds.Load(ctx, origin, id)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(bed.patient, bed.Version())

	occupied := store.Events()[0]
	follow, err := events.Follow(occupied, MealOrdered{Patient: bed.patient})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(follow[0].Type, string(follow[0].Data))
	fmt.Println(follow[0].CorrelationID == occupied.CorrelationID, follow[0].CausationID.UUID == occupied.ID)

	// Output:
	// Ana <nil>
	// Ben the bed is taken
	// Ana 1
	// MealOrdered {"patient":"Ana"}
	// true true
}

package events_test

import (
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
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

// An aggregate raises events and is loaded from them; a handler lets others follow.
func Example() {
	bed := &Bed{}
	if err := events.Begin(bed, uuid.New(), events.Origin{TenantID: uuid.New()}); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(bed.Occupy("Ana"), bed.Version())
	fmt.Println(bed.Occupy("Ben"), bed.Version())

	again := &Bed{}
	if err := events.Load(again, each(bed.Uncommitted(), nil)); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(again.patient, again.Version())

	occupied := bed.Uncommitted()[0]
	follow, err := events.Follow(occupied, MealOrdered{Patient: "Ana"})
	if err != nil {
		fmt.Println(err)
		return
	}
	meal := follow[0]
	fmt.Println(meal.Type, string(meal.Data))
	fmt.Println(meal.CorrelationID == occupied.CorrelationID, meal.CausationID.UUID == occupied.ID)

	// Output:
	// <nil> 1
	// the bed is taken 1
	// Ana 1
	// MealOrdered {"patient":"Ana"}
	// true true
}

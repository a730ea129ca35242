package worker_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"github.com/healz/worker"
	"github.com/healz/worker/workertest"
)

// BedOccupied says who lies in a bed.
type BedOccupied struct {
	Patient string `json:"patient"`
}

func (BedOccupied) EventType() string { return "BedOccupied" }

// MealOrdered opens an order of its own.
type MealOrdered struct {
	Bed uuid.UUID `json:"bed"`
}

func (MealOrdered) EventType() string     { return "MealOrdered" }
func (MealOrdered) AggregateType() string { return "Meal" }

// Bed embeds the root, refuses what must not happen, and says how events change its state.
type Bed struct {
	worker.Root

	patient string
}

func NewBed() *Bed { return &Bed{} }

func (*Bed) AggregateType() string { return "Bed" }

// Occupy is a command.
func (b *Bed) Occupy(patient string) error {
	if b.patient != "" {
		return errors.New("the bed is taken")
	}
	return worker.Raise(b, BedOccupied{Patient: patient})
}

func (b *Bed) Apply(e worker.Event) error {
	if e.Type != (BedOccupied{}).EventType() {
		return nil
	}
	occupied, err := worker.DataOf[BedOccupied](e)
	b.patient = occupied.Patient
	return err
}

// openStore opens a store in a temporary folder.
func openStore() (*worker.Store, func()) {
	folder, err := os.MkdirTemp("", "example-")
	if err != nil {
		panic(err)
	}
	store, err := worker.OpenStore(context.Background(), worker.StoreConfig{SQLitePath: filepath.Join(folder, "clinic.db")})
	if err != nil {
		panic(err)
	}
	return store, func() { _ = errors.Join(store.Close(), os.RemoveAll(folder)) }
}

// A service runs commands on its aggregates. A worker on the same database publishes the events.
func ExampleRepository() {
	ctx := context.Background()
	store, closeStore := openStore()
	defer closeStore()
	beds := worker.NewRepository(store, NewBed)
	clinic, bed := worker.Origin{TenantID: uuid.New()}, uuid.New()
	for _, patient := range []string{"Ana", "Ben"} {
		_, err := beds.Execute(ctx, clinic, bed, func(b *Bed) error { return b.Occupy(patient) })
		fmt.Println(patient, err)
	}
	_, err := beds.Load(ctx, worker.Origin{TenantID: uuid.New()}, bed)
	fmt.Println("another clinic:", errors.Is(err, worker.ErrOtherTenant))

	// Output:
	// Ana <nil>
	// Ben the bed is taken
	// another clinic: true
}

// Two writers that saw the same version cannot both append the next one.
func ExampleStore_Append() {
	ctx := context.Background()
	store, closeStore := openStore()
	defer closeStore()
	clinic, bed := worker.Origin{TenantID: uuid.New()}, uuid.New()
	for _, patient := range []string{"Ana", "Ben"} {
		e, err := worker.NewEvent(clinic, "Bed", bed, 1, BedOccupied{Patient: patient})
		if err != nil {
			panic(err)
		}
		err = store.Append(ctx, e)
		var conflict *worker.ConflictError
		if errors.As(err, &conflict) {
			fmt.Printf("%s: version %d is taken\n", patient, conflict.Wanted)
		}
	}
	page, err := store.ByTenant(ctx, clinic.TenantID, worker.Query{})
	if err != nil {
		panic(err)
	}
	for _, e := range page.Events {
		fmt.Println(e.Type, string(e.Data))
	}

	// Output:
	// Ben: version 1 is taken
	// BedOccupied {"patient":"Ana"}
}

// A handler returns what follows.
func ExampleOn() {
	order := func(_ context.Context, e worker.Event, occupied BedOccupied) ([]worker.Event, error) {
		if occupied.Patient == "" {
			return nil, worker.Permanent(errors.New("the bed has no patient"))
		}
		return worker.Follow(e, MealOrdered{Bed: e.AggregateID})
	}
	register := func(app *worker.App) { // for service.Main or service.New
		worker.On(app, "BedOccupied", "order-meal", order)
	}
	var app worker.App
	register(&app)
	fmt.Println(app.Names(), app.Check())

	// Output: [order-meal] <nil>
}

// A handler decides by an aggregate what an event means.
func ExampleApp() {
	type patientArrived struct {
		Bed  uuid.UUID `json:"bed"`
		Name string    `json:"name"`
	}
	register := func(app *worker.App) {
		beds := worker.NewRepository(app, NewBed)
		worker.On(app, "PatientArrived", "occupy-bed",
			func(ctx context.Context, e worker.Event, p patientArrived) ([]worker.Event, error) {
				return beds.Decide(ctx, worker.CausedBy(e), p.Bed, func(b *Bed) error { return b.Occupy(p.Name) })
			})
	}
	var app worker.App
	register(&app)
	fmt.Println(app.EventTypes())

	// Output: map[occupy-bed:[PatientArrived]]
}

// A handler's SQL is in the transaction of the record that it has handled its event.
func ExampleInSQLiteTx() {
	count := func(ctx context.Context, e worker.Event, _ BedOccupied) ([]worker.Event, error) {
		return nil, worker.InSQLiteTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "INSERT INTO occupied (bed) VALUES (?)", e.AggregateID.String())
			return err
		})
	}
	// Outside of a worker there is no such transaction.
	_, err := count(context.Background(), worker.Event{}, BedOccupied{})
	fmt.Println(errors.Is(err, worker.ErrNoTransaction))

	// Output: true
}

// A test of a repository needs no server.
func Example_test() {
	var streams workertest.Streams
	beds := worker.NewRepository(&streams, NewBed)
	_, err := beds.Execute(context.Background(), workertest.Origin(), uuid.New(), func(b *Bed) error { return b.Occupy("Ana") })
	if err != nil {
		panic(err)
	}
	for _, e := range streams.Events() {
		fmt.Println(e.AggregateVersion, e.Type)
	}

	// Output: 1 BedOccupied
}

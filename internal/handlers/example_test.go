package handlers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/middleware"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/store/sqlite"
)

// RoomBooked says for whom a room is booked.
type RoomBooked struct {
	Patient string `json:"patient"`
}

func (RoomBooked) EventType() string { return "RoomBooked" }

// CleaningRequested opens an order of its own.
type CleaningRequested struct {
	After string `json:"after"`
}

func (CleaningRequested) EventType() string     { return "CleaningRequested" }
func (CleaningRequested) AggregateType() string { return "Cleaning" }

// Handlers are registered before the worker starts. The worker's bus then hands each event to a [handlers.Dispatcher].
func Example() {
	reg := &handlers.Registry{}
	handlers.On(reg, "RoomBooked", "order-cleaning",
		func(_ context.Context, e events.Event, booked RoomBooked) ([]events.Event, error) {
			if booked.Patient == "" {
				return nil, handlers.Permanent(errors.New("nobody has booked the room"))
			}
			return events.Follow(e, CleaningRequested{After: booked.Patient})
		})
	handlers.OnEach(reg, []string{"RoomBooked", "RoomRebooked"}, "update-door-sign",
		func(_ context.Context, e events.Event, _ RoomBooked) ([]events.Event, error) {
			fmt.Println("the door sign is changed by", e.Type)
			return nil, nil
		})
	handlers.OnAll(reg, "count",
		func(_ context.Context, e events.Event, data json.RawMessage) ([]events.Event, error) {
			fmt.Println("counted:", e.Type, len(data), "bytes")
			return nil, nil
		})

	if err := dispatch(reg, RoomBooked{Patient: "Ana"}, RoomBooked{}); err != nil {
		fmt.Println(err)
	}

	// Output:
	// the door sign is changed by RoomBooked
	// counted: RoomBooked 17 bytes
	// appended: CleaningRequested {"after":"Ana"}
	// the door sign is changed by RoomBooked
	// counted: RoomBooked 14 bytes
	// order-cleaning: nobody has booked the room
}

// dispatch hands events to the handlers, as the worker does, and prints what follows.
func dispatch(reg *handlers.Registry, list ...events.Data) error {
	ctx := context.Background()
	s, closeStore, err := openStore(ctx)
	if err != nil {
		return err
	}
	defer closeStore()
	logger := slog.New(slog.DiscardHandler)
	d, err := handlers.NewDispatcher(reg, handlers.Config{
		Inbox: s, Retry: middleware.Retry{Attempts: 1, Logger: logger}, Timeout: time.Second, MaxMessage: 1 << 20,
		Observer: observe.None{}, Logger: logger,
	})
	if err != nil {
		return err
	}
	for _, data := range list {
		e, err := events.New(events.Origin{TenantID: uuid.New()}, "Room", uuid.New(), 1, data)
		if err != nil {
			return err
		}
		body, err := e.MarshalJSON()
		if err != nil {
			return err
		}
		m := bus.NewMessage(body)
		m.SetContext(ctx)
		if err := d.Handle(m); err != nil {
			return err
		}
		for f, err := range s.Stream(ctx, "Cleaning", events.DerivedID(e.ID, "Cleaning"), 0) {
			if err != nil {
				return err
			}
			fmt.Println("appended:", f.Type, string(f.Data))
		}
	}
	return nil
}

// openStore opens an empty store, and returns what removes it again.
func openStore(ctx context.Context) (s *sqlite.Store, remove func(), err error) {
	folder, err := os.MkdirTemp("", "handlers")
	if err != nil {
		return nil, nil, err
	}
	if s, err = sqlite.Open(ctx, filepath.Join(folder, "events.db")); err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(folder))
	}
	return s, func() { _ = errors.Join(s.Close(), os.RemoveAll(folder)) }, s.Migrate(ctx)
}

// A DryRun tells whether dead letters would pass with the handlers of now, and leaves everything as it is.
func ExampleDryRun() {
	ctx := context.Background()
	s, closeStore, err := openStore(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer closeStore()
	reg := &handlers.Registry{}
	handlers.On(reg, "RoomBooked", "order-cleaning",
		func(_ context.Context, e events.Event, booked RoomBooked) ([]events.Event, error) {
			if booked.Patient == "" {
				return nil, errors.New("nobody has booked the room")
			}
			return events.Follow(e, CleaningRequested{After: booked.Patient})
		})
	handlers.On(reg, "RoomBooked", "mail-reception",
		func(context.Context, events.Event, RoomBooked) ([]events.Event, error) { return nil, nil }, handlers.OutsideEffects)
	dryRun, err := handlers.NewDryRun(s, reg, handlers.DryRunConfig{HandlerTimeout: time.Second, MaxMessage: 1 << 20}, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println(err)
		return
	}

	var letters []deadletter.Letter
	for _, failed := range []struct{ patient, handler string }{
		{"Ana", "order-cleaning"}, {"", "order-cleaning"}, {"Ana", "mail-reception"},
	} {
		origin := events.Origin{TenantID: uuid.New()}
		e, err := events.New(origin, "Room", uuid.New(), 1, RoomBooked{Patient: failed.patient})
		if err != nil {
			fmt.Println(err)
			return
		}
		body, _ := e.MarshalJSON()
		letter := deadletter.Letter{Body: body, Failure: deadletter.Failure{Handler: failed.handler}}
		letters = append(letters, deadletter.Complete(letter))
	}
	for outcome, err := range dryRun.Run(ctx, letters) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s %s: %q\n", outcome.Letter.Handler, outcome.Verdict, outcome.Reason)
	}
	// Output:
	// order-cleaning would pass: ""
	// order-cleaning would fail: "nobody has booked the room"
	// mail-reception cannot tell: "the handler declares outside effects"
}

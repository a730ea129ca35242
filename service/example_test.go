package service_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"github.com/healz/worker"
	"github.com/healz/worker/service"
)

type orderPlaced struct {
	Item string `json:"item"`
}

func (orderPlaced) EventType() string { return "OrderPlaced" }

// A worker inside a program handles what the program appends.
func ExampleNew() {
	ctx, stop := context.WithCancel(context.Background())
	folder, err := os.MkdirTemp("", "example-")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(folder) }()
	handled := make(chan string, 1)
	w, err := service.New(ctx, service.Config{SQLitePath: filepath.Join(folder, "orders.db")}, func(app *worker.App) {
		worker.On(app, "OrderPlaced", "print", func(_ context.Context, _ worker.Event, o orderPlaced) ([]worker.Event, error) {
			handled <- o.Item
			return nil, nil
		})
	})
	if err != nil {
		panic(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()

	e, err := worker.NewEvent(worker.Origin{TenantID: uuid.New()}, "Order", uuid.New(), 1, orderPlaced{Item: "bandages"})
	if err != nil {
		panic(err)
	}
	if err := w.Append(ctx, e); err != nil {
		panic(err)
	}
	fmt.Println("handled:", <-handled)
	stop()
	fmt.Println(<-ended, w.Close())

	// Output:
	// handled: bandages
	// <nil> <nil>
}

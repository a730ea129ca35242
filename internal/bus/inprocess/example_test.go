package inprocess_test

import (
	"context"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/inprocess"
)

func Example() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()

	b := inprocess.New(4)
	messages, err := b.Subscribe(ctx, inprocess.Topic)
	if err != nil {
		fmt.Println(err)
		return
	}
	go func() {
		for m := range messages {
			fmt.Println("handled", m.Metadata.Get(bus.EventTypeKey))
			m.Ack()
		}
	}()

	err = bus.Deliver(ctx, b, []*message.Message{
		bus.NewMessage([]byte(`{"event_type": "PatientRegistered", "aggregate_id": "0198c9ab-0000-7000-8000-000000000001"}`)),
		bus.NewMessage([]byte(`{"event_type": "PatientMoved", "aggregate_id": "0198c9ab-0000-7000-8000-000000000001"}`)),
	})
	fmt.Println("delivered", err)
	fmt.Println("closed", b.Close())

	// Output:
	// handled PatientRegistered
	// handled PatientMoved
	// delivered <nil>
	// closed <nil>
}

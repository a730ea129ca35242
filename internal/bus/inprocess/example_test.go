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

	queues := inprocess.New(4)
	for _, topic := range queues.Topics() {
		messages, err := queues.Subscribe(ctx, topic)
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
	}

	err := queues.PublishBatch(ctx, []*message.Message{
		bus.NewMessage([]byte(`{"event_type": "PatientRegistered", "aggregate_id": "0198c9ab-0000-7000-8000-000000000001"}`)),
		bus.NewMessage([]byte(`{"event_type": "PatientMoved", "aggregate_id": "0198c9ab-0000-7000-8000-000000000001"}`)),
	})
	fmt.Println("published", err)
	fmt.Println("closed", queues.Close())

	// Output:
	// handled PatientRegistered
	// handled PatientMoved
	// published <nil>
	// closed <nil>
}

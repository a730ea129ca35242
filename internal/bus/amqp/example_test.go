package amqp_test

import (
	"fmt"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/amqp"
)

// A message of a program that knows nothing of Watermill, with a header that is no string.
func ExampleMarshaler() {
	m, err := amqp.Marshaler{}.Unmarshal(amqp091.Delivery{
		Headers: amqp091.Table{"attempt": int32(1), "origin": "billing"},
		Body:    []byte(`{"event_id":"0198c9a0-0000-7000-8000-000000000001","event_type":"PatientRegistered"}`),
	})
	fmt.Println(err, m.UUID, m.Metadata.Get(bus.EventTypeKey), m.Metadata.Get("origin"))
	// Output: <nil> 0198c9a0-0000-7000-8000-000000000001 PatientRegistered billing
}

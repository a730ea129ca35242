package amqp_test

import (
	"fmt"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/amqp"
)

// Metadata become properties where AMQP has one for them, and else headers.
func ExampleMarshal() {
	p, err := amqp.Marshal(bus.NewMessage([]byte(
		`{"event_id":"0198c9a0-0000-7000-8000-000000000001","event_type":"PatientRegistered","aggregate_id":"p1"}`)))
	fmt.Println(err, p.MessageId, p.Type, p.Headers)
	// Output: <nil> 0198c9a0-0000-7000-8000-000000000001 PatientRegistered map[aggregate_id:p1]
}

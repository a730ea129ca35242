package tracing_test

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/tracing"
)

// What a handler lets follow is appended below its span, whose trace the event's metadata name.
func Example() {
	spans := tracetest.NewInMemoryExporter()
	tracer := tracing.New(sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)), tracing.Places{
		Bus: tracing.Place{System: "rabbitmq", Name: "healz.events"}, Store: tracing.Place{System: "sqlite"},
	})
	cause, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, data{"Ana"})
	if err != nil {
		fmt.Println(err)
		return
	}
	appending, appended, endAppend := tracer.Append(context.Background(), observe.Append, []events.Event{cause})
	endAppend(nil)

	_, endHandle := tracer.Attempt(appending, "welcome-patient", appended[0], 1)
	endHandle(nil)
	for _, s := range spans.GetSpans() {
		fmt.Println(s.Name, len(s.Links))
	}
	fmt.Println(len(appended[0].Metadata), "bytes of metadata")
	// Output:
	// append events 0
	// handle welcome-patient 1
	// 73 bytes of metadata
}

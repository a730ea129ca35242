// Package tracing makes the way of an event one trace of OpenTelemetry, over processes: it is appended, published,
// received and handled, and what follows from it is appended.
//
//	append                      by a command, or below a handler; its context goes into the event's metadata
//	└── publish                 by the relay; its context goes into the message's headers
//	    └── process             a message, from its receipt to its outcome
//	        └── handle          one an attempt of a handler, with a link to the append of its event
//	            └── append      of what follows
//
// The context travels as W3C's traceparent, which services that know nothing of the worker may set in either place. One
// that cannot be read is ignored. Names and attributes follow OpenTelemetry's semantic conventions for databases and
// messaging; the worker's own attributes begin with "worker.". Spans carry ids and names, never an event's data. An event's
// identity does not depend on its metadata, so neither a retry nor a replay makes another event of it.
//
// A worker that sends no traces has no [Tracer], and nothing of this is on an event's way.
package tracing

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/middleware"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/store"
)

// The worker's own attributes of spans, besides those of OpenTelemetry's semantic conventions. docs/operations.md has the
// list.
const (
	eventIDKey       = attribute.Key("worker.event_id")
	correlationIDKey = attribute.Key("worker.correlation_id")
	eventTypeKey     = attribute.Key("worker.event_type")
	aggregateTypeKey = attribute.Key("worker.aggregate_type")
	aggregateIDKey   = attribute.Key("worker.aggregate_id")
	tenantIDKey      = attribute.Key("worker.tenant_id")
	handlerKey       = attribute.Key("worker.handler")
	attemptKey       = attribute.Key("worker.attempt")
	outcomeKey       = attribute.Key("worker.outcome")
)

// maxParsed is the most bytes of a message's body that are parsed for a traceparent.
const maxParsed = 1 << 20

// Tracer makes the spans of a worker: it is an [observe.Observer]. It is safe for concurrent use.
type Tracer struct {
	observe.None

	tracer     trace.Tracer
	bus, store []attribute.KeyValue
	exchange   string
	routes     bool // by routing keys
	delivery   *delivery
}

// Places are the systems that the spans of a worker name.
type Places struct{ Bus, Store Place }

// Place is a system with its name in the semantic conventions: "rabbitmq" or "in_process", "postgresql" or "sqlite".
type Place struct {
	System string
	// Name is the exchange or the topic of a bus, and the database of a store if it is on a server.
	Name string
	// Host and Port are "" and 0 if it is not on a server.
	Host string
	Port int
}

// server are the attributes of the server, none if there is none.
func (p Place) server() []attribute.KeyValue {
	if p.Host == "" {
		return nil
	}
	return []attribute.KeyValue{semconv.ServerAddress(p.Host), semconv.ServerPort(p.Port)}
}

// New returns a Tracer over a provider.
func New(provider trace.TracerProvider, p Places) *Tracer {
	t := &Tracer{
		tracer:   provider.Tracer("github.com/healz/worker", trace.WithSchemaURL(semconv.SchemaURL)),
		bus:      append(p.Bus.server(), semconv.MessagingSystemKey.String(p.Bus.System)),
		store:    append(p.Store.server(), semconv.DBSystemNameKey.String(p.Store.System), semconv.DBCollectionName("events")),
		exchange: p.Bus.Name,
		routes:   p.Bus.System == semconv.MessagingSystemRabbitMQ.Value.AsString(),
		delivery: &delivery{},
	}
	if p.Store.Name != "" {
		t.store = append(t.store, semconv.DBNamespace(p.Store.Name))
	}
	return t
}

// Dropped is the number of spans that were not exported.
func (t *Tracer) Dropped() int64 { return t.delivery.dropped.Load() }

// Append begins the span of an append: one for each chain of causes in the batch, below the span in ctx or else the one
// that an event of the chain names. The metadata of the events that it returns name the span, where they named none.
func (t *Tracer) Append(
	ctx context.Context, _ observe.Operation, batch []events.Event,
) (traced context.Context, marked []events.Event, end func(error)) {
	chains := map[uuid.UUID]context.Context{}
	var spans []trace.Span
	traced, marked = ctx, make([]events.Event, len(batch))
	for i, e := range batch {
		own := parse(ctx, traceparentIn(e.Metadata))
		chain, begun := chains[e.CorrelationID]
		if !begun {
			parent := ctx
			if !trace.SpanContextFromContext(ctx).IsValid() && own.IsValid() {
				parent = trace.ContextWithRemoteSpanContext(ctx, own)
			}
			var span trace.Span
			chain, span = t.tracer.Start(parent, "append events", trace.WithSpanKind(trace.SpanKindClient),
				trace.WithAttributes(slices.Concat(describeOne(e, len(batch)), t.store,
					[]attribute.KeyValue{semconv.DBOperationName("append")})...))
			chains[e.CorrelationID] = chain //nolint:fatcontext // each is below ctx, and none below another
			spans = append(spans, span)
			traced = chain
		}
		e.Metadata = mark(e.Metadata, trace.SpanContextFromContext(chain))
		marked[i] = e
	}
	return traced, marked, func(err error) {
		for _, span := range spans {
			if code, ok := sqlState(err); ok {
				span.SetAttributes(semconv.DBResponseStatusCode(code))
			}
			finish(span, err, "not appended") // a handler's own SQL may have failed, and its text say anything
		}
	}
}

// Publish begins a span for each message below the one that the message, or its event, names. The span's context goes
// into the message.
func (t *Tracer) Publish(ctx context.Context, batch []*message.Message) func(error) {
	spans := make([]trace.Span, len(batch))
	for i, m := range batch {
		var published context.Context
		published, spans[i] = t.tracer.Start(extract(ctx, m), "publish "+t.exchange,
			trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(slices.Concat(describeMessage(m), t.bus,
				[]attribute.KeyValue{semconv.MessagingOperationTypeSend, semconv.MessagingOperationName("publish")},
				t.destination(t.exchange, t.exchange, m.Metadata.Get(bus.EventTypeKey), ""))...))
		propagation.TraceContext{}.Inject(published, propagation.MapCarrier(m.Metadata))
	}
	return func(err error) {
		for i, span := range spans {
			select {
			case <-batch[i].Acked(): // only the others failed
				finish(span, nil, "")
			default:
				finish(span, err, "")
			}
		}
	}
}

// destination describes where a message is published to, or where it comes from. The template is what the spans are named
// after. A routing key is RabbitMQ's; one that could say anything is left out.
func (t *Tracer) destination(template, exchange, routingKey, queue string) []attribute.KeyValue {
	if !t.routes || !middleware.IsName(routingKey) {
		routingKey = ""
	}
	parts := []string{exchange, routingKey, queue}
	if routingKey == queue {
		parts = parts[:2]
	}
	name := strings.Join(slices.DeleteFunc(parts, func(part string) bool { return part == "" }), ":")
	attrs := []attribute.KeyValue{semconv.MessagingDestinationTemplate(template), semconv.MessagingDestinationName(name)}
	if routingKey != "" {
		attrs = append(attrs, semconv.MessagingRabbitMQDestinationRoutingKey(routingKey))
	}
	return attrs
}

// Receive begins the span of a message, below the one that it, or its event, names.
func (t *Tracer) Receive(ctx context.Context, m *message.Message) (context.Context, func(observe.Outcome)) {
	parent := extract(ctx, m)
	if !trace.SpanContextFromContext(parent).IsValid() && len(m.Payload) <= maxParsed {
		parent = trace.ContextWithRemoteSpanContext(parent, parse(parent, bus.Traceparent(m.Payload)))
	}
	queue := message.SubscribeTopicFromCtx(ctx)
	exchange, routingKey := amqp.Route(ctx)
	ctx, span := t.tracer.Start(parent, "process "+queue,
		trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(slices.Concat(describeMessage(m), t.bus,
			[]attribute.KeyValue{semconv.MessagingOperationTypeProcess, semconv.MessagingOperationName("process")},
			t.destination(queue, exchange, routingKey, queue))...))
	return ctx, func(outcome observe.Outcome) {
		span.SetAttributes(outcomeKey.String(string(outcome)))
		if outcome != observe.Handled && outcome != observe.Duplicate && outcome != observe.Unhandled {
			span.SetAttributes(semconv.ErrorTypeKey.String(string(outcome)))
			span.SetStatus(codes.Error, string(outcome))
		}
		span.End()
	}
}

// Attempt begins the span of an attempt of a handler. It links to the append of the event.
func (t *Tracer) Attempt(ctx context.Context, handler string, e events.Event, attempt int) (context.Context, func(error)) {
	options := []trace.SpanStartOption{trace.WithAttributes(append(describe(e),
		handlerKey.String(handler), attemptKey.Int(attempt))...)}
	if source := parse(ctx, traceparentIn(e.Metadata)); source.IsValid() {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: source}))
	}
	ctx, span := t.tracer.Start(ctx, "handle "+handler, options...)
	return ctx, func(err error) {
		if errors.Is(err, observe.ErrDuplicate) || errors.Is(err, observe.ErrInterrupted) {
			err = nil
		}
		finish(span, err, "")
	}
}

// finish ends a span with its error, if there is one, and a description, or the error's own text, which must be fit for
// operators.
func finish(span trace.Span, err error, description string) {
	if err != nil {
		span.SetAttributes(semconv.ErrorTypeKey.String(errorType(err)))
		span.SetStatus(codes.Error, cmp.Or(description, deadletter.CutReason(err.Error())))
	}
	span.End()
}

// errorType is one of a few kinds of errors.
func errorType(err error) string {
	code, hasCode := sqlState(err)
	switch _, refused := errors.AsType[*bus.RefusedError](err); {
	case errors.Is(err, events.ErrConflict):
		return "conflict"
	case refused:
		return "refused"
	case hasCode:
		return code
	case errors.Is(err, store.ErrUnavailable):
		return "unavailable"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	return semconv.ErrorTypeOther.Value.AsString()
}

// sqlState is the code by which the database refused something.
func sqlState(err error) (code string, ok bool) {
	var coded interface{ SQLState() string }
	if !errors.As(err, &coded) || coded.SQLState() == "" {
		return "", false
	}
	return coded.SQLState(), true
}

// LogAttrs are the ids of the trace and the span in ctx, for a log line; none if there is no span.
func LogAttrs(ctx context.Context) []slog.Attr {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() {
		return nil
	}
	return []slog.Attr{slog.String("trace_id", span.TraceID().String()), slog.String("span_id", span.SpanID().String())}
}

// extract returns ctx with the span that the headers of m name as its parent, or as it is if they name none.
func extract(ctx context.Context, m *message.Message) context.Context {
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier(m.Metadata))
}

// parse reads a traceparent; what is none is an invalid context.
func parse(ctx context.Context, traceparent string) trace.SpanContext {
	if traceparent == "" {
		return trace.SpanContext{}
	}
	ctx = trace.ContextWithSpanContext(ctx, trace.SpanContext{})
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{bus.TraceparentKey: traceparent})
	return trace.SpanContextFromContext(ctx)
}

// traceparentIn is the traceparent in an event's metadata, "" if there is none.
func traceparentIn(metadata json.RawMessage) string {
	var m struct {
		Traceparent string `json:"traceparent"`
	}
	if len(metadata) > 0 {
		_ = json.Unmarshal(metadata, &m) // what is no string is none
	}
	return m.Traceparent
}

// mark adds a traceparent to an event's metadata, which stay as they are if they have one, whatever it says.
func mark(metadata json.RawMessage, span trace.SpanContext) json.RawMessage {
	var fields map[string]json.RawMessage
	if len(metadata) > 0 && json.Unmarshal(metadata, &fields) != nil {
		return metadata // it is no object, which the store has to say
	}
	if _, has := fields[bus.TraceparentKey]; has || !span.IsValid() {
		return metadata
	}
	marked := fmt.Appendf(nil, `{"%s":"00-%s-%s-%s"`, bus.TraceparentKey, span.TraceID(), span.SpanID(), span.TraceFlags())
	if len(fields) == 0 {
		return append(marked, '}')
	}
	_, rest, _ := bytes.Cut(metadata, []byte{'{'})
	return append(append(marked, ','), rest...)
}

// describe says which event e is.
func describe(e events.Event) []attribute.KeyValue {
	return []attribute.KeyValue{
		eventIDKey.String(e.ID.String()), correlationIDKey.String(e.CorrelationID.String()),
		eventTypeKey.String(e.Type), aggregateTypeKey.String(e.AggregateType), aggregateIDKey.String(e.AggregateID.String()),
		tenantIDKey.String(e.TenantID.String()),
	}
}

// describeOne describes one of a batch: alone, or by what it has in common with the others of its chain.
func describeOne(e events.Event, of int) []attribute.KeyValue {
	if of == 1 {
		return describe(e)
	}
	return []attribute.KeyValue{correlationIDKey.String(e.CorrelationID.String()), semconv.DBOperationBatchSize(of)}
}

// describeMessage says which event a message is, as far as can be shown.
func describeMessage(m *message.Message) []attribute.KeyValue {
	attrs := []attribute.KeyValue{semconv.MessagingMessageBodySize(len(m.Payload))}
	id, eventType := middleware.Describe(m)
	if id != "" {
		attrs = append(attrs, semconv.MessagingMessageID(id), eventIDKey.String(id))
	}
	if eventType != "" {
		attrs = append(attrs, eventTypeKey.String(eventType))
	}
	if correlation, err := uuid.Parse(m.Metadata.Get(bus.CorrelationIDKey)); err == nil {
		attrs = append(attrs,
			semconv.MessagingMessageConversationID(correlation.String()), correlationIDKey.String(correlation.String()))
	}
	return attrs
}

// TraceID is the id of the trace of ctx if its spans are sent, else "".
func TraceID(ctx context.Context) string {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsSampled() {
		return ""
	}
	return span.TraceID().String()
}

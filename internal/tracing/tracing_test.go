package tracing_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/tracing"
)

const (
	foreign      = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	foreignTrace = "0af7651916cd43dd8448eb211c80319c"
	foreignSpan  = "b7ad6b7169203331"
)

// recorder keeps the spans that have ended.
func recorder(t *testing.T, options ...sdktrace.TracerProviderOption) (*tracing.Tracer, *tracetest.InMemoryExporter) {
	t.Helper()
	spans := tracetest.NewInMemoryExporter()
	p := sdktrace.NewTracerProvider(append(options, sdktrace.WithSyncer(spans))...)
	return tracing.New(p, places()), spans
}

func places() tracing.Places {
	return tracing.Places{
		Bus:   tracing.Place{System: "rabbitmq", Name: "healz.events", Host: "broker", Port: 5672},
		Store: tracing.Place{System: "postgresql", Name: "clinic", Host: "database", Port: 5432},
	}
}

type data struct {
	Name string `json:"name"`
}

func (data) EventType() string { return "PatientRegistered" }

func event(t *testing.T, metadata string) events.Event {
	t.Helper()
	e, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, data{"Ana"})
	require.NoError(t, err)
	if metadata != "" {
		e.Metadata = json.RawMessage(metadata)
	}
	require.NoError(t, e.Validate())
	return e
}

func traceparentOf(t *testing.T, e events.Event) string {
	t.Helper()
	var m struct{ Traceparent string }
	require.NoError(t, e.DecodeMetadata(&m))
	return m.Traceparent
}

// named is what a traceparent says of a span.
func named(s tracetest.SpanStub) string {
	return "00-" + s.SpanContext.TraceID().String() + "-" + s.SpanContext.SpanID().String() + "-01"
}

func attributes(s tracetest.SpanStub) map[attribute.Key]string {
	all := map[attribute.Key]string{}
	for _, a := range s.Attributes {
		all[a.Key] = a.Value.String()
	}
	return all
}

func TestAppendMarksTheEventsOfEachChain(t *testing.T) {
	t.Parallel()
	tracer, spans := recorder(t)
	first, second, other := event(t, ""), event(t, `{ "source" : "import", "n": 1.10 }`), event(t, "{ }")
	second.CorrelationID = first.CorrelationID
	batch := []events.Event{first, second, other}
	_, marked, end := tracer.Append(t.Context(), observe.Append, batch)
	end(nil)

	require.Empty(t, batch[0].Metadata, "the caller's events are left alone")
	require.Len(t, spans.GetSpans(), 2, "one a chain")
	require.Equal(t, named(spans.GetSpans()[0]), traceparentOf(t, marked[0]))
	require.Equal(t, named(spans.GetSpans()[0]), traceparentOf(t, marked[1]))
	require.Equal(t, named(spans.GetSpans()[1]), traceparentOf(t, marked[2]))
	require.Contains(t, string(marked[1].Metadata), `"source" : "import", "n": 1.10 }`, "byte by byte")
	for i, e := range marked {
		require.NoError(t, e.Validate())
		require.Equal(t, batch[i].Fingerprint(), e.Fingerprint(), "it is the same event")
	}
}

func TestAppendKeepsATraceparentAndGoesOnWithIt(t *testing.T) {
	t.Parallel()
	tracer, spans := recorder(t)
	e := event(t, `{"traceparent":"`+foreign+`"}`)
	_, marked, end := tracer.Append(t.Context(), observe.Append, []events.Event{e})
	end(errors.New("away"))
	require.Equal(t, []events.Event{e}, marked)
	span := spans.GetSpans()[0]
	require.Equal(t, foreignTrace, span.SpanContext.TraceID().String())
	require.Equal(t, foreignSpan, span.Parent.SpanID().String())
	require.Equal(t, sdktrace.Status{Code: codes.Error, Description: "not appended"}, span.Status)
}

func TestErrorsAreOfAFewKinds(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"conflict":    &store.ConflictError{AggregateType: "Patient"},
		"23505":       fmt.Errorf("record: %w", &pgconn.PgError{Code: "23505", Detail: "Ana"}),
		"unavailable": store.ErrReadOnly,
		"timeout":     fmt.Errorf("timed out: %w", context.DeadlineExceeded),
		"canceled":    context.Canceled,
		"refused":     &bus.RefusedError{Err: errors.New("too large")},
		"_OTHER":      errors.New("no place for Ana"),
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			tracer, spans := recorder(t)
			_, _, end := tracer.Append(t.Context(), observe.Append, []events.Event{event(t, ""), event(t, "")})
			end(err)
			_, end = tracer.Attempt(t.Context(), "h", event(t, ""), 1)
			end(err)
			got := spans.GetSpans()
			require.Len(t, got, 3)
			for _, s := range got {
				require.Equal(t, want, attributes(s)["error.type"])
			}
			for _, s := range got[:2] {
				require.Equal(t, "not appended", s.Status.Description)
				require.Equal(t, "2", attributes(s)["db.operation.batch.size"])
				if want == "23505" {
					require.Equal(t, want, attributes(s)["db.response.status_code"])
				}
			}
		})
	}
}

// Of a batch that failed, the messages that the bus has confirmed are published.
func TestOnlyUnconfirmedMessagesFail(t *testing.T) {
	t.Parallel()
	tracer, spans := recorder(t)
	batch := []*message.Message{message.NewMessage("", nil), message.NewMessage("", nil)}
	end := tracer.Publish(t.Context(), batch)
	batch[0].Ack()
	end(errors.New("the connection broke"))
	got := spans.GetSpans()
	require.Equal(t, codes.Unset, got[0].Status.Code)
	require.Equal(t, codes.Error, got[1].Status.Code)
	require.Equal(t, "_OTHER", attributes(got[1])["error.type"])
}

func TestBadTraceparentsAreIgnored(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{
		"garbage": `"garbage"`, "zero": `"00-00000000000000000000000000000000-0000000000000000-01"`, "number": `7`,
		"object": `{"a":1}`, "null": `null`, "empty": `""`, "long": `"` + strings.Repeat("0", 10_000) + `"`,
		"upper case": `"00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01"`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tracer, spans := recorder(t)
			e := event(t, `{"traceparent":`+value+`}`)
			_, marked, end := tracer.Append(t.Context(), observe.Append, []events.Event{e})
			end(nil)
			require.Equal(t, []events.Event{e}, marked)

			body, err := e.MarshalJSON()
			require.NoError(t, err)
			m := bus.NewMessage(body)
			ctx, received := tracer.Receive(t.Context(), m)
			_, end = tracer.Attempt(ctx, "h", e, 1)
			end(nil)
			received(observe.Handled)
			got := spans.GetSpans()
			require.Len(t, got, 3)
			require.False(t, got[0].Parent.IsValid())
			require.Empty(t, got[1].Links)
			require.False(t, got[2].Parent.IsValid())
		})
	}
}

// TestOneTrace follows an event by hand over all stations.
func TestOneTrace(t *testing.T) {
	t.Parallel()
	tracer, spans := recorder(t)
	_, marked, end := tracer.Append(t.Context(), observe.Append, []events.Event{event(t, "")})
	end(nil)
	body, err := marked[0].MarshalJSON()
	require.NoError(t, err)

	m := bus.NewMessage(body)
	tracer.Publish(t.Context(), []*message.Message{m})(nil)

	ctx, received := tracer.Receive(t.Context(), m.Copy())
	ctx, handled := tracer.Attempt(ctx, "welcome-patient", marked[0], 2)
	_, _, followed := tracer.Append(ctx, observe.Record, []events.Event{event(t, "")})
	followed(nil)
	handled(errors.New("no"))
	received(observe.DeadLettered)

	got := spans.GetSpans()
	require.Len(t, got, 5)
	first, publish, follow, handle, process := got[0], got[1], got[2], got[3], got[4]
	for _, s := range got {
		require.Equal(t, first.SpanContext.TraceID(), s.SpanContext.TraceID(), s.Name)
	}
	require.False(t, first.Parent.IsValid())
	for _, link := range [][2]tracetest.SpanStub{
		{first, publish}, {publish, process}, {process, handle}, {handle, follow},
	} {
		require.Equal(t, link[0].SpanContext.SpanID(), link[1].Parent.SpanID(), link[1].Name)
	}
	require.Equal(t, first.SpanContext.SpanID(), handle.Links[0].SpanContext.SpanID())
	require.Equal(t, []string{"append events", "publish healz.events", "append events", "handle welcome-patient"},
		[]string{first.Name, publish.Name, follow.Name, handle.Name})
	require.Equal(t, []trace.SpanKind{trace.SpanKindClient, trace.SpanKindProducer, trace.SpanKindInternal, trace.SpanKindConsumer},
		[]trace.SpanKind{first.SpanKind, publish.SpanKind, handle.SpanKind, process.SpanKind})
	require.Equal(t, "dead_lettered", attributes(process)["worker.outcome"])
	require.Equal(t, "2", attributes(handle)["worker.attempt"])
	require.Equal(t, marked[0].ID.String(), attributes(publish)["messaging.message.id"])
	require.Equal(t, marked[0].CorrelationID.String(), attributes(process)["messaging.message.conversation_id"])
	require.Equal(t, codes.Error, handle.Status.Code)
	for _, s := range got {
		text, err := json.Marshal(s.Attributes)
		require.NoError(t, err)
		require.NotContains(t, string(text), "Ana")
	}
}

func TestReceiveHonoursTheHeaderAndElseTheBody(t *testing.T) {
	t.Parallel()
	body := `{"event_id":"x","metadata":{"traceparent":"` + foreign + `"}}`
	const other = "00-11111111111111111111111111111111-2222222222222222-01"
	for name, test := range map[string]struct {
		header, body string
		want         string
	}{
		"header":                  {other, body, "2222222222222222"},
		"body":                    {"", body, foreignSpan},
		"bad header":              {"garbage", body, foreignSpan},
		"too large to be parsed":  {"", body + strings.Repeat(" ", 1<<20), "0000000000000000"},
		"neither":                 {"", `{}`, "0000000000000000"},
		"not JSON":                {"", `}`, "0000000000000000"},
		"metadata of other shape": {"", `{"metadata":[1]}`, "0000000000000000"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tracer, spans := recorder(t)
			m := message.NewMessage("id", []byte(test.body))
			if test.header != "" {
				m.Metadata.Set(bus.TraceparentKey, test.header)
			}
			_, end := tracer.Receive(t.Context(), m)
			end(observe.Handled)
			require.Equal(t, test.want, spans.GetSpans()[0].Parent.SpanID().String())
		})
	}
}

func TestWhatAMessageSaysOfItselfIsShownOnlyIfItIsAName(t *testing.T) {
	t.Parallel()
	tracer, spans := recorder(t)
	m := message.NewMessage("Ana Kovačević", nil)
	m.Metadata.Set(bus.EventTypeKey, "Ana Kovačević")
	m.Metadata.Set(bus.CorrelationIDKey, "Ana Kovačević")
	_, end := tracer.Receive(t.Context(), m)
	end(observe.GivenBack)
	span := spans.GetSpans()[0]
	require.Equal(t, "given_back", attributes(span)["worker.outcome"])
	text, err := json.Marshal(span.Attributes)
	require.NoError(t, err)
	require.NotContains(t, string(text), "Ana")
}

func TestAnUnsampledTraceStaysUnsampled(t *testing.T) {
	t.Parallel()
	tracer, spans := recorder(t)
	unsampled := strings.TrimSuffix(foreign, "01") + "00"
	m := message.NewMessage("id", nil)
	m.Metadata.Set(bus.TraceparentKey, unsampled)
	ctx, received := tracer.Receive(t.Context(), m)
	_, marked, end := tracer.Append(ctx, observe.Append, []events.Event{event(t, "")})
	end(nil)
	received(observe.Handled)
	require.Regexp(t, "^00-"+foreignTrace+"-[0-9a-f]{16}-00$", traceparentOf(t, marked[0]))
	require.Empty(t, spans.GetSpans())
}

func TestLogAttrsNameTheSpan(t *testing.T) {
	t.Parallel()
	tracer, _ := recorder(t)
	require.Empty(t, tracing.LogAttrs(t.Context()))
	ctx, end := tracer.Attempt(t.Context(), "h", event(t, ""), 1)
	defer end(nil)
	span := trace.SpanContextFromContext(ctx)
	require.Equal(t, []slog.Attr{slog.String("trace_id", span.TraceID().String()), slog.String("span_id", span.SpanID().String())},
		tracing.LogAttrs(ctx))
}

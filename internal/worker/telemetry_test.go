package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/metrics"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/tracing"
	"github.com/healz/worker/internal/worker"
)

// tracer is a tracer with the spans that it has ended.
func tracer() (*tracing.Tracer, *tracetest.InMemoryExporter) {
	spans := tracetest.NewInMemoryExporter()
	return tracing.New(sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)), tracing.Places{}), spans
}

type registered struct {
	Name string `json:"name"`
}

func (registered) EventType() string     { return "PatientRegistered" }
func (registered) AggregateType() string { return "Patient" }

type requested struct {
	Name string `json:"name"`
}

func (requested) EventType() string     { return "WelcomeMessageRequested" }
func (requested) AggregateType() string { return "Message" }

// chain is a handler, what follows from it, and the follow-up's handler.
func chain(reg *handlers.Registry) {
	handlers.On(reg, "PatientRegistered", "welcome-patient",
		func(_ context.Context, e events.Event, p registered) ([]events.Event, error) {
			return events.Follow(e, requested(p))
		})
	handlers.On(reg, "WelcomeMessageRequested", "send-message",
		func(context.Context, events.Event, requested) ([]events.Event, error) { return nil, nil })
}

// runObserved runs a worker until the test ends.
func runObserved(
	t *testing.T, settings worker.Settings, register func(*handlers.Registry), m *metrics.Metrics, tr *tracing.Tracer,
) *syncBuffer {
	t.Helper()
	log := &syncBuffer{}
	var observers observe.All
	if tr != nil {
		observers = append(observers, tr)
	}
	w, closeParts, err := worker.Open(t.Context(), settings, worker.OpenOptions{
		Register: register, Migrate: true, Metrics: m, Observers: observers, Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-done)
		require.NoError(t, closeParts())
	})
	return log
}

func sites(t *testing.T) map[string]func() worker.Settings {
	t.Helper()
	return map[string]func() worker.Settings{
		"on servers": func() worker.Settings {
			s := worker.DefaultSettings()
			s.DatabaseURL, s.AMQP.URL = testservers.Postgres(t), testservers.RabbitMQ(t)
			return s
		},
		"embedded": func() worker.Settings {
			s := worker.DefaultSettings()
			s.SQLitePath = filepath.Join(t.TempDir(), "events.db")
			return s
		},
	}
}

func named(spans tracetest.SpanStubs, name string) tracetest.SpanStubs {
	return slices.DeleteFunc(slices.Clone(spans), func(s tracetest.SpanStub) bool { return !strings.HasPrefix(s.Name, name) })
}

// From the append to the handler of what follows it is one trace, in which each station is below the one before it.
func TestAChainOfCausesIsOneTrace(t *testing.T) {
	t.Parallel()
	for name, settings := range sites(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := settings()
			workers, spans := tracer()
			log := runObserved(t, s, chain, nil, workers)

			command, commandSpans := tracer() // another process
			backend, err := s.OpenStore(t.Context())
			require.NoError(t, err)
			defer func() { require.NoError(t, backend.Close()) }()
			e, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, registered{secret})
			require.NoError(t, err)
			require.NoError(t, worker.Observed(backend, observe.All{command}).Append(t.Context(), e))

			stations := []string{"publish", "process", "handle welcome-patient", "append", "publish", "process", "handle send-message"}
			require.Eventually(t, func() bool {
				got := spans.GetSpans()
				return len(named(got, "handle")) == 2 && len(named(got, "process")) == 2 && len(named(got, "publish")) == 2
			}, patience, tick, "%v", spans)
			parent := commandSpans.GetSpans()[0]
			require.Equal(t, "append events", parent.Name)
			appended := parent.SpanContext.SpanID()
			for _, station := range stations {
				below := slices.DeleteFunc(named(spans.GetSpans(), station), func(s tracetest.SpanStub) bool {
					return s.Parent.SpanID() != parent.SpanContext.SpanID()
				})
				require.Len(t, below, 1, "%s below %s", station, parent.Name)
				parent = below[0]
				require.Equal(t, commandSpans.GetSpans()[0].SpanContext.TraceID(), parent.SpanContext.TraceID())
				switch {
				case strings.HasPrefix(station, "handle"):
					require.Equal(t, appended, parent.Links[0].SpanContext.SpanID(), "a link to the append of the event")
				case station == "append":
					appended = parent.SpanContext.SpanID()
				}
			}
			require.Len(t, spans.GetSpans(), len(stations))
			require.Contains(t, log.String(), "trace_id="+parent.SpanContext.TraceID().String())
			for _, span := range spans.GetSpans() {
				text, err := json.Marshal(span)
				require.NoError(t, err)
				require.NotContains(t, string(text), secret)
			}

			// The store has the event as it was, with one field more in its metadata.
			page, err := backend.ByCorrelation(t.Context(), e.CorrelationID, store.Query{})
			require.NoError(t, err)
			require.Len(t, page.Events, 2)
			require.Equal(t, e.Fingerprint(), page.Events[0].Fingerprint())
			for _, stored := range page.Events {
				require.Contains(t, string(stored.Metadata), commandSpans.GetSpans()[0].SpanContext.TraceID().String())
			}
		})
	}
}

// A service that knows nothing of the worker names its span in the header, or in the event's metadata, or nowhere.
func TestAForeignTraceparentIsHonoured(t *testing.T) {
	t.Parallel()
	const traceID, inHeader, inMetadata = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"
	traceparent := func(span string) string { return "00-" + traceID + "-" + span + "-01" }
	s := sites(t)["on servers"]()
	workers, spans := tracer()
	runObserved(t, s, func(reg *handlers.Registry) {
		handlers.OnAll(reg, "witness", func(context.Context, events.Event, json.RawMessage) ([]events.Event, error) { return nil, nil })
	}, nil, workers)
	client := publisher(t, s)
	for _, test := range []struct {
		headers  amqp091.Table
		metadata map[string]any
		want     string
	}{
		{amqp091.Table{"traceparent": traceparent(inHeader)}, map[string]any{"traceparent": traceparent(inMetadata)}, inHeader},
		{amqp091.Table{"traceparent": "garbage"}, map[string]any{"traceparent": traceparent(inMetadata)}, inMetadata},
		{nil, map[string]any{"traceparent": traceparent(inMetadata)}, inMetadata},
		{amqp091.Table{"traceparent": int32(7)}, map[string]any{"traceparent": []int{1}}, "0000000000000000"},
		{nil, nil, "0000000000000000"},
	} {
		spans.Reset()
		client.publish(body(map[string]any{"metadata": test.metadata}), test.headers)
		require.Eventually(t, func() bool { return len(named(spans.GetSpans(), "process")) == 1 }, patience, tick)
		require.Equal(t, test.want, named(spans.GetSpans(), "process")[0].Parent.SpanID().String())
	}
}

// The numbers of the attempts continue over the rounds of --retry-later, in the spans as in the log.
func TestAttemptsContinueOverTheRoundsOfRetryLater(t *testing.T) {
	t.Parallel()
	s := sites(t)["on servers"]()
	s.Tuning.RetryInitial, s.Tuning.RetryAttempts = 1, 2
	s.AMQP.RetryLater = []time.Duration{10 * time.Millisecond, 20 * time.Millisecond}
	workers, spans := tracer()
	var attempts atomic.Int64
	log := runObserved(t, s, func(reg *handlers.Registry) {
		handlers.OnAll(reg, "late", func(context.Context, events.Event, json.RawMessage) ([]events.Event, error) {
			if attempts.Add(1) < 6 {
				return nil, errors.New("not yet")
			}
			return nil, nil
		})
		handlers.OnAll(reg, "never", func(context.Context, events.Event, json.RawMessage) ([]events.Event, error) {
			return nil, errors.New("no")
		})
	}, nil, workers)
	publisher(t, s).publish(body(nil), nil)
	require.Eventually(t, func() bool { return len(named(spans.GetSpans(), "handle")) == 12 }, patience, tick)
	for _, handler := range []string{"late", "never"} {
		var numbers []int64
		for _, span := range named(spans.GetSpans(), "handle "+handler) {
			for _, a := range span.Attributes {
				if a.Key == "worker.attempt" {
					numbers = append(numbers, a.Value.AsInt64())
				}
			}
		}
		require.Equal(t, []int64{1, 2, 3, 4, 5, 6}, numbers, handler)
	}
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "outcome=dead_lettered") }, patience, tick)
	for _, line := range []string{
		`will retry" handler=never attempt=1 `, `will retry" handler=never attempt=3 `, `will retry" handler=never attempt=5 `,
		`attempt=2 reason=no handler=never outcome=postponed`, `attempt=4 reason=no handler=never outcome=postponed`,
		`attempt=6 reason=no handler=never outcome=dead_lettered`, `msg=event handler=late attempt=6 outcome=handled`,
	} {
		require.Contains(t, log.String(), line)
	}
}

// A redelivered and a replayed event is the same event, and is told so.
func TestMetrics(t *testing.T) {
	t.Parallel()
	for name, settings := range sites(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := settings()
			s.Tuning.RetryInitial, s.Tuning.RetryAttempts = 1, 2
			m := metrics.New("v1")
			log := runObserved(t, s, func(reg *handlers.Registry) {
				chain(reg)
				handlers.On(reg, "PatientRegistered", "fail",
					func(context.Context, events.Event, registered) ([]events.Event, error) { return nil, errors.New("no") })
			}, m, nil)
			backend, err := s.OpenStore(t.Context())
			require.NoError(t, err)
			defer func() { require.NoError(t, backend.Close()) }()
			e, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, registered{secret})
			require.NoError(t, err)
			require.NoError(t, backend.Append(t.Context(), e))

			want := []string{
				`worker_handler_handled_total{event_type="PatientRegistered",handler="welcome-patient"} 1`,
				`worker_handler_handled_total{event_type="WelcomeMessageRequested",handler="send-message"} 1`,
				`worker_handler_failures_total{event_type="PatientRegistered",handler="fail"} 2`,
				`worker_handler_retries_total{event_type="PatientRegistered",handler="fail"} 1`,
				`worker_handler_dead_letters_total{event_type="PatientRegistered",handler="fail"} 1`,
				`worker_messages_total{outcome="dead_lettered"} 1`, `worker_messages_total{outcome="handled"} 1`,
				`worker_relay_events_total 2`, `worker_relay_lag_events 0`, `worker_relay_leads 1`, `worker_relay_publishing 1`,
				`worker_messages_in_flight 0`, `worker_messages_total{outcome="duplicate"} 0`,
				`worker_handler_event_age_seconds_count{event_type="PatientRegistered",handler="welcome-patient"} 1`,
				`worker_store_duration_seconds_count{operation="record"} 2`, `worker_part_up{part="bus"} 1`,
			}
			if !s.Embedded() {
				body, err := e.MarshalJSON()
				require.NoError(t, err)
				require.Eventually(t, func() bool { return has(m, want[0]) }, patience, tick)
				publisher(t, s).publish(body, nil) // not byte for byte what the relay has published, so it makes a letter of its own
				want = append(want[:5], `worker_handler_duplicates_total{event_type="PatientRegistered",handler="welcome-patient"} 1`,
					`worker_publish_confirm_duration_seconds_count 4`, `worker_queue_messages{queue="healz.events.consumer"} 0`,
					`worker_queue_consumers{queue="healz.events.consumer"} 1`, `worker_rabbitmq_connection_up{connection="publish"} 1`,
					`worker_queue_consumed{queue="healz.events.consumer"} 1`, `worker_queue_unacked{queue="healz.events.consumer"} 0`,
					`worker_dead_letters{place="queue"} 0`, `worker_dead_letters{place="store"} 2`,
					`worker_store_connections_limit{pool="store"} 20`)
				want[2] = strings.TrimSuffix(want[2], "2") + "4"
				want[3] = strings.TrimSuffix(want[3], "1") + "2"
				want[4] = strings.TrimSuffix(want[4], "1") + "2"
			} else {
				want = append(want, `worker_dead_letters{place="store"} 1`)
			}
			for _, line := range want {
				require.Eventually(t, func() bool { return has(m, line) }, patience, tick, "%s", line)
			}
			require.Contains(t, log.String(), "handler=welcome-patient attempt=1 outcome=handled")
			require.Contains(t, log.String(), "correlation_id="+e.CorrelationID.String()+" event_id="+e.ID.String())
			require.Regexp(t, `attempt=2 reason=no handler=fail outcome=dead_lettered correlation_id=`+e.CorrelationID.String(), log.String())
		})
	}
}

// has tells whether a scrape has the line.
func has(m *metrics.Metrics, line string) bool {
	recorded := httptest.NewRecorder()
	m.Handler().ServeHTTP(recorded, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return strings.Contains(recorded.Body.String(), line+"\n")
}

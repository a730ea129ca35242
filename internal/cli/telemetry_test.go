package cli

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/healz/worker/internal/test/otlp"
	"github.com/healz/worker/internal/test/posix"
)

// traceReceiver receives traces.
type traceReceiver struct {
	otlp.Receiver

	URL string
}

func newTraceReceiver(t *testing.T) *traceReceiver {
	t.Helper()
	r := &traceReceiver{}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.URL = server.URL
	return r
}

// names are the names of all spans below one, from the top.
func (r *traceReceiver) names(parent otlp.Span) []string {
	names := []string{parent.GetName()}
	for _, s := range r.Spans() {
		if string(s.GetParentSpanId()) == string(parent.GetSpanId()) {
			names = append(names, r.names(s)...)
		}
	}
	return names
}

// The spans of a command that appends, and of a worker that relays and handles, make one trace. Without the setting, nothing
// is exported, and events contain no traceparent.
func TestTracesOverProcesses(t *testing.T) {
	t.Parallel()
	p := onServers(t)
	received := newTraceReceiver(t)
	quiet := *p
	p.env = append(slices.Clone(p.env), "OTEL_EXPORTER_OTLP_ENDPOINT="+received.URL)
	w := p.start()
	e := p.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0]
	p.awaitFollowUp(e, "WelcomeMessageRequested")
	w.stop()

	require.NotEmpty(t, received.Spans())
	var roots []otlp.Span
	instances := map[string]bool{}
	for _, s := range received.Spans() {
		instances[s.Resource["service.instance.id"]] = true
		require.Equal(t, received.Spans()[0].GetTraceId(), s.GetTraceId(), s.GetName())
		if len(s.GetParentSpanId()) == 0 {
			roots = append(roots, s)
		}
	}
	require.Len(t, instances, 2, "the command and the worker")
	require.Len(t, roots, 1)
	names := received.names(roots[0])
	require.Equal(t, []string{
		"append events", "publish healz.events", "process healz.events.consumer", "handle welcome-patient", "append events",
	}, names[:5])

	silent := newTraceReceiver(t)
	quiet.env = append(slices.Clone(quiet.env), "OTEL_EXPORTER_OTLP_ENDPOINT="+silent.URL, "OTEL_TRACES_EXPORTER=none")
	w = quiet.start()
	e = quiet.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0]
	quiet.awaitFollowUp(e, "WelcomeMessageRequested")
	w.stop()
	require.Empty(t, silent.Spans())
	require.NotContains(t, quiet.must("", "events", "--correlation", e.CorrelationID, "-o", "json", "--reveal"), "traceparent")
}

func TestTraceSettingsAreChecked(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]string{
		"OTEL_TRACES_EXPORTER=zipkin": "OTEL_TRACES_EXPORTER",
		"OTEL_RESOURCE_ATTRIBUTES=a":  "OTEL_RESOURCE_ATTRIBUTES",
	} {
		p := embedded(t)
		p.env = append(p.env, "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", setting)
		r := p.run("", "run", "--http-addr", "127.0.0.1:0")
		require.Equal(t, exitUsage, r.code, r.err)
		require.Contains(t, r.err, want)
	}
}

// The names, kinds and attributes of all spans are those of OpenTelemetry's semantic conventions. The worker's own
// attributes are in docs/operations.md.
func TestSpansFollowTheConventions(t *testing.T) {
	t.Parallel()
	const own = "worker."
	type form struct {
		kind               trace.Span_SpanKind
		required, optional []attribute.Key
	}
	event := []attribute.Key{
		"worker.event_id", "worker.event_type", "worker.correlation_id", "worker.aggregate_type", "worker.aggregate_id", "worker.tenant_id",
	}
	server := []attribute.Key{semconv.ServerAddressKey, semconv.ServerPortKey}
	messaging := []attribute.Key{
		semconv.MessagingSystemKey, semconv.MessagingOperationNameKey, semconv.MessagingOperationTypeKey,
		semconv.MessagingDestinationNameKey, semconv.MessagingDestinationTemplateKey, semconv.MessagingMessageBodySizeKey,
		semconv.MessagingMessageIDKey, semconv.MessagingMessageConversationIDKey,
		"worker.event_id", "worker.event_type", "worker.correlation_id",
	}
	store := append([]attribute.Key{semconv.DBSystemNameKey, semconv.DBCollectionNameKey, semconv.DBOperationNameKey}, event...)
	failure := []attribute.Key{semconv.ErrorTypeKey}
	outcome := []attribute.Key{"worker.outcome"}
	handle := form{trace.Span_SPAN_KIND_INTERNAL, append([]attribute.Key{"worker.handler", "worker.attempt"}, event...), failure}
	routed := append([]attribute.Key{semconv.MessagingRabbitMQDestinationRoutingKeyKey}, server...)

	for name, test := range map[string]struct {
		open   func(*testing.T) *program
		forms  map[string]form
		values map[string]map[attribute.Key]string
	}{
		"on servers": {onServers, map[string]form{
			"append events": {
				trace.Span_SPAN_KIND_CLIENT, slices.Concat(store, server, []attribute.Key{semconv.DBNamespaceKey}),
				append([]attribute.Key{semconv.DBResponseStatusCodeKey, semconv.DBOperationBatchSizeKey}, failure...),
			},
			"publish healz.events":          {trace.Span_SPAN_KIND_PRODUCER, slices.Concat(messaging, routed), failure},
			"process healz.events.consumer": {trace.Span_SPAN_KIND_CONSUMER, slices.Concat(messaging, routed, outcome), failure},
			"handle welcome-patient":        handle,
		}, map[string]map[attribute.Key]string{
			"append events": {semconv.DBSystemNameKey: "postgresql", semconv.DBCollectionNameKey: "events"},
			"publish healz.events": {
				semconv.MessagingSystemKey: "rabbitmq", semconv.MessagingOperationTypeKey: "send",
				semconv.MessagingDestinationNameKey: "healz.events:PatientRegistered",
			},
			"process healz.events.consumer": {
				semconv.MessagingOperationTypeKey: "process", semconv.MessagingOperationNameKey: "process",
				semconv.MessagingDestinationNameKey:               "healz.events:PatientRegistered:healz.events.consumer",
				semconv.MessagingRabbitMQDestinationRoutingKeyKey: "PatientRegistered", semconv.ErrorTypeKey: "dead_lettered",
			},
			"handle welcome-patient": {semconv.ErrorTypeKey: "_OTHER"},
		}},
		"embedded": {embedded, map[string]form{
			"append events": {
				trace.Span_SPAN_KIND_CLIENT, store,
				append([]attribute.Key{semconv.DBOperationBatchSizeKey}, failure...),
			},
			"publish events":         {trace.Span_SPAN_KIND_PRODUCER, messaging, failure},
			"process events":         {trace.Span_SPAN_KIND_CONSUMER, append(outcome, messaging...), failure},
			"handle welcome-patient": handle,
		}, map[string]map[attribute.Key]string{
			"append events":  {semconv.DBSystemNameKey: "sqlite"},
			"publish events": {semconv.MessagingSystemKey: "in_process"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			documented, err := os.ReadFile("../../docs/operations.md")
			require.NoError(t, err)
			p := test.open(t)
			received := newTraceReceiver(t)
			p.env = append(p.env, "OTEL_EXPORTER_OTLP_ENDPOINT="+received.URL)
			w := p.start("--chaos", "--retry-attempts", "1")
			p.awaitFollowUp(p.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0], "WelcomeMessageRequested")
			p.append(registration(uuid.NewString(), `{"name":"Ana"}`, `,"metadata":{"fail_times":9}`))
			p.awaitLetters(1)
			w.stop()

			seen := map[string]map[string]bool{} // the texts of the attributes of all spans of a name
			for _, s := range received.Spans() {
				form, known := test.forms[s.GetName()]
				require.True(t, known, s.GetName())
				require.Equal(t, form.kind, s.GetKind(), s.GetName())
				var keys []attribute.Key
				for _, a := range s.GetAttributes() {
					key := attribute.Key(a.GetKey())
					keys = append(keys, key)
					require.True(t, slices.Contains(form.required, key) || slices.Contains(form.optional, key), "%s: %s", s.GetName(), key)
					if strings.HasPrefix(a.GetKey(), own) {
						require.Contains(t, string(documented), "`"+a.GetKey()+"`")
					}
				}
				require.Subset(t, keys, form.required, s.GetName())
				require.Equal(t, s.GetStatus().GetCode() == trace.Status_STATUS_CODE_ERROR, slices.Contains(keys, semconv.ErrorTypeKey), s.GetName())
				if seen[s.GetName()] == nil {
					seen[s.GetName()] = map[string]bool{}
				}
				for key, text := range otlp.Attributes(s.GetAttributes()) {
					seen[s.GetName()][key+"="+text] = true
				}
			}
			require.Len(t, seen, len(test.forms))
			for name, values := range test.values {
				for key, value := range values {
					require.Contains(t, seen[name], string(key)+"="+value, name)
				}
			}
		})
	}
}

// A collector that refuses or never answers keeps no event back. It is one line of the log, and the spans are counted.
func TestTracesThatCannotBeSent(t *testing.T) {
	t.Parallel()
	p := embedded(t)
	p.env = append(p.env, "OTEL_BSP_SCHEDULE_DELAY=1", "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1")
	w := p.start()
	_, text := w.get("/metrics")
	require.Contains(t, text, "worker_trace_spans_dropped_total 0\n")
	for range 5 {
		e := decodeLines[wire](t, p.run(registration(uuid.NewString(), `{"name":"Ana"}`, ""), "append", "--format", "json").out)[0]
		p.awaitFollowUp(e, "WelcomeMessageRequested")
	}
	require.Eventually(t, func() bool {
		_, text := w.get("/metrics")
		return !strings.Contains(text, "worker_trace_spans_dropped_total 0\n")
	}, patience, tick)
	w.stop()
	require.Equal(t, 1, strings.Count(w.log.String(), "cannot export traces"))
	require.Equal(t, 1, strings.Count(w.log.String(), "spans were not exported"))
}

// A command that cannot export its spans says so.
func TestAppendSaysThatItsSpansAreLost(t *testing.T) {
	t.Parallel()
	var listen net.ListenConfig
	hanging, err := listen.Listen(t.Context(), "tcp", "127.0.0.1:0") // it accepts nothing
	require.NoError(t, err)
	defer hanging.Close()
	for endpoint, reason := range map[string]string{
		"http://" + hanging.Addr().String(): "the collector did not take them in time", "http://127.0.0.1:1": "connection refused",
	} {
		p := embedded(t)
		p.env = append(p.env, "OTEL_EXPORTER_OTLP_ENDPOINT="+endpoint)
		r := p.run(registration(uuid.NewString(), `{"name":"Ana"}`, ""), "append")
		require.Zero(t, r.code, r.err)
		require.Contains(t, r.err, `msg="spans were not exported" dropped=1 error="`)
		require.Contains(t, r.err, reason)
		require.Equal(t, 1, strings.Count(r.err, "\n"), r.err)
	}
}

func TestMetricsAreServed(t *testing.T) {
	t.Parallel()
	w := embedded(t).start()
	w.awaitFollowUp(w.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0], "WelcomeMessageRequested")
	status, text := w.get("/metrics")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, text, `worker_handler_handled_total{event_type="PatientRegistered",handler="welcome-patient"} 1`)
	require.Contains(t, text, "go_goroutines")
}

func TestTheLogLevelIsChangedWhileItRuns(t *testing.T) {
	t.Parallel()
	p := embedded(t)
	w := p.start()
	change := func(s syscall.Signal, level string) {
		t.Helper()
		before := len(w.log.String())
		require.NoError(t, w.cmd.Process.Signal(s))
		require.Eventually(t, func() bool {
			return strings.Contains(w.log.String()[before:], `msg="the log level was changed" level=`+level)
		}, patience, tick)
	}
	handle := func() string {
		t.Helper()
		before := len(w.log.String())
		p.awaitFollowUp(p.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0], "WelcomeMessageRequested")
		return w.log.String()[before:]
	}
	require.NotContains(t, handle(), "level=DEBUG")
	change(posix.SIGUSR1, "DEBUG")
	require.Contains(t, handle(), "level=DEBUG")
	change(posix.SIGUSR1, "DEBUG")
	change(posix.SIGUSR2, "INFO")
	require.NotContains(t, handle(), "level=DEBUG")
}

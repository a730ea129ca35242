package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/healz/worker/internal/test/posix"
)

// traceReceiver receives traces.
type traceReceiver struct {
	*httptest.Server
	bodies logBuffer

	mu    sync.Mutex
	spans []*otlp.Span
}

func newTraceReceiver(t *testing.T) *traceReceiver {
	t.Helper()
	r := &traceReceiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		var sent collector.ExportTraceServiceRequest
		if err != nil || req.URL.Path != "/v1/traces" || proto.Unmarshal(body, &sent) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		r.bodies.add(string(body))
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, resource := range sent.GetResourceSpans() {
			for _, scope := range resource.GetScopeSpans() {
				r.spans = append(r.spans, scope.GetSpans()...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(r.Close)
	return r
}

// names are the names of all spans below one, from the top.
func (r *traceReceiver) names(parent *otlp.Span) []string {
	names := []string{parent.GetName()}
	for _, s := range r.spans {
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

	require.NotEmpty(t, received.spans)
	var roots []*otlp.Span
	for _, s := range received.spans {
		require.Equal(t, received.spans[0].GetTraceId(), s.GetTraceId(), s.GetName())
		if len(s.GetParentSpanId()) == 0 {
			roots = append(roots, s)
		}
	}
	require.Len(t, roots, 1)
	names := received.names(roots[0])
	require.Equal(t, []string{
		"append events", "publish healz.events", "receive healz.events.consumer", "handle welcome-patient", "append events",
	}, names[:5])

	silent := newTraceReceiver(t)
	quiet.env = append(slices.Clone(quiet.env), "OTEL_EXPORTER_OTLP_ENDPOINT="+silent.URL, "OTEL_TRACES_EXPORTER=none")
	w = quiet.start()
	e = quiet.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0]
	quiet.awaitFollowUp(e, "WelcomeMessageRequested")
	w.stop()
	require.Empty(t, silent.spans)
	require.NotContains(t, quiet.must("", "events", "--correlation", e.CorrelationID, "--format", "json"), "traceparent")
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

// An unavailable receiver delays neither events nor the end of a program.
func TestTracesThatCannotBeSent(t *testing.T) {
	t.Parallel()
	p := embedded(t)
	p.env = append(p.env, "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1")
	w := p.start()
	p.awaitFollowUp(p.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0], "WelcomeMessageRequested")
	w.stop()
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

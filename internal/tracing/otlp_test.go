package tracing_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/test/otlp"
	"github.com/healz/worker/internal/tracing"
)

const patience, tick = 30 * time.Second, time.Millisecond

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestTracesAreOffUnlessTheyAreAskedFor(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		environment map[string]string
		on          bool
		err         error
	}{
		"nothing set":   {nil, false, nil},
		"none":          {map[string]string{"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, false, nil},
		"disabled":      {map[string]string{"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, false, nil},
		"endpoint":      {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, true, nil},
		"of traces":     {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, true, nil},
		"exporter":      {map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, true, nil},
		"gRPC":          {map[string]string{"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, true, nil},
		"unknown":       {map[string]string{"OTEL_TRACES_EXPORTER": "zipkin"}, false, tracing.ErrSetting},
		"no protocol":   {map[string]string{"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, false, tracing.ErrSetting},
		"other signals": {map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:1"}, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			getenv := func(name string) string { return test.environment[name] }
			tracer, stop, err := tracing.Start(t.Context(), "v1", places(), getenv, slog.New(slog.DiscardHandler))
			require.ErrorIs(t, err, test.err)
			require.Equal(t, test.on, tracer != nil)
			stop(t.Context())
		})
	}
}

// start begins to export to a receiver. The SDK reads the environment, so its tests do not run beside others.
func start(t *testing.T, url string, log io.Writer, variables map[string]string) (*tracing.Tracer, func(context.Context)) {
	t.Helper()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
	for name, value := range variables {
		t.Setenv(name, value)
	}
	tracer, stop, err := tracing.Start(t.Context(), "v1", places(), os.Getenv, slog.New(slog.NewTextHandler(log, nil))) //nolint:forbidigo // as cmd/worker does
	require.NoError(t, err)
	return tracer, stop
}

// receive runs a receiver.
func receive(t *testing.T) (*otlp.Receiver, string) {
	t.Helper()
	receiver := &otlp.Receiver{}
	server := httptest.NewServer(receiver)
	t.Cleanup(server.Close)
	return receiver, server.URL
}

// span is one span.
func span(t *testing.T, tracer *tracing.Tracer) {
	t.Helper()
	_, _, end := tracer.Append(t.Context(), observe.Append, []events.Event{event(t, "")})
	end(nil)
}

func TestSpansReachAReceiver(t *testing.T) {
	receiver, url := receive(t)
	var log logBuffer
	tracer, stop := start(t, url, &log, map[string]string{
		"OTEL_EXPORTER_OTLP_HEADERS": "api-key=k", "OTEL_SERVICE_NAME": "clinic-worker",
		"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
	})
	_, marked, end := tracer.Append(t.Context(), observe.Append, []events.Event{event(t, "")})
	end(errors.New("away"))
	stop(t.Context())

	require.Equal(t, "k", receiver.Header().Get("Api-Key"))
	require.Len(t, receiver.Spans(), 1)
	got := receiver.Spans()[0]
	require.Equal(t, "clinic-worker", got.Resource["service.name"])
	require.Equal(t, "v1", got.Resource["service.version"])
	require.Equal(t, "test", got.Resource["deployment.environment.name"])
	require.NoError(t, uuid.Validate(got.Resource["service.instance.id"]))
	require.Equal(t, "append events", got.GetName())
	require.Contains(t, traceparentOf(t, marked[0]), hex.EncodeToString(got.GetTraceId()))
	require.NotContains(t, receiver.Bodies(), "Ana")
	require.Zero(t, tracer.Dropped())
	require.Empty(t, log.String())
}

func TestTheInstanceCanBeNamed(t *testing.T) {
	receiver, url := receive(t)
	tracer, stop := start(t, url, io.Discard, map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=first"})
	span(t, tracer)
	stop(t.Context())
	require.Equal(t, "first", receiver.Spans()[0].Resource["service.instance.id"])
}

// An outage of the collector is one line when it begins and one when it ends, and its spans are counted.
func TestAnOutageOfTheCollectorIsTwoLines(t *testing.T) {
	receiver, url := receive(t)
	var log logBuffer
	tracer, stop := start(t, url, &log, map[string]string{"OTEL_BSP_SCHEDULE_DELAY": "1"})
	receiver.Refuse(http.StatusBadRequest)
	for refused := int64(1); refused <= 20; refused++ {
		span(t, tracer)
		require.Eventually(t, func() bool { return tracer.Dropped() == refused }, patience, tick)
	}
	receiver.Refuse(0)
	span(t, tracer)
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "again") }, patience, tick)
	stop(t.Context())
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	require.Len(t, lines, 2, log.String())
	require.Contains(t, lines[0], `level=WARN msg="cannot export traces, drops their spans" error=`)
	require.Contains(t, lines[1], `level=INFO msg="traces are exported again" dropped=20`)
	require.Len(t, receiver.Spans(), 1)
}

// A collector that never answers does not delay the stop longer than it may take, and what it did not take is counted.
func TestAHangingCollectorIsLeftBehind(t *testing.T) {
	for _, protocol := range []string{"http/protobuf", "grpc"} {
		t.Run(protocol, func(t *testing.T) {
			var listen net.ListenConfig
			hanging, err := listen.Listen(t.Context(), "tcp", "127.0.0.1:0") // it accepts nothing
			require.NoError(t, err)
			defer hanging.Close()
			var log logBuffer
			tracer, stop := start(t, "http://"+hanging.Addr().String(), &log,
				map[string]string{"OTEL_BSP_MAX_QUEUE_SIZE": "5", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol})
			for range 8 {
				span(t, tracer)
			}
			require.EqualValues(t, 3, tracer.Dropped(), "the queue is full")
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			stop(ctx)
			require.EqualValues(t, 8, tracer.Dropped())
			require.Equal(t, 1, strings.Count(log.String(), "\n"), log.String())
			require.Contains(t, log.String(), `level=WARN msg="spans were not exported" dropped=8 error="the collector did not take them in time: `)
		})
	}
}

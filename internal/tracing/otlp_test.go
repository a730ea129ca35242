package tracing_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/tracing"
)

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
			tracer, stop, err := tracing.Start(t.Context(), "v1", "rabbitmq", "healz.events", getenv, slog.New(slog.DiscardHandler))
			require.ErrorIs(t, err, test.err)
			require.Equal(t, test.on, tracer != nil)
			require.NoError(t, stop(t.Context()))
		})
	}
}

// TestSpansReachAReceiver runs an OTLP receiver. The SDK reads the environment, so it does not run beside other tests.
func TestSpansReachAReceiver(t *testing.T) {
	requests := make(chan *http.Request, 10)
	bodies := make(chan []byte, 10)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		requests <- r
		bodies <- body
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	defer receiver.Close()
	environment := map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.URL, "OTEL_EXPORTER_OTLP_HEADERS": "api-key=k",
		"OTEL_SERVICE_NAME": "clinic-worker", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
	}
	for name, value := range environment {
		t.Setenv(name, value)
	}
	getenv := func(name string) string { return environment[name] }
	tracer, stop, err := tracing.Start(t.Context(), "v1", "rabbitmq", "healz.events", getenv, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	e := event(t, "")
	_, marked, end := tracer.Append(t.Context(), observe.Append, []events.Event{e})
	end(errors.New("away"))
	require.NoError(t, stop(t.Context()))

	request, body := <-requests, <-bodies
	require.Equal(t, "/v1/traces", request.URL.Path)
	require.Equal(t, "k", request.Header.Get("Api-Key"))
	var sent collector.ExportTraceServiceRequest
	require.NoError(t, proto.Unmarshal(body, &sent))
	resource := map[string]string{}
	for _, a := range sent.GetResourceSpans()[0].GetResource().GetAttributes() {
		resource[a.GetKey()] = a.GetValue().GetStringValue()
	}
	require.Equal(t, "clinic-worker", resource["service.name"])
	require.Equal(t, "v1", resource["service.version"])
	require.Equal(t, "test", resource["deployment.environment.name"])
	span := sent.GetResourceSpans()[0].GetScopeSpans()[0].GetSpans()[0]
	require.Equal(t, "append events", span.GetName())
	require.Contains(t, traceparentOf(t, marked[0]), hex.EncodeToString(span.GetTraceId()))
	require.False(t, bytes.Contains(body, []byte("Ana")))
}

package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// ErrSetting says that one of OpenTelemetry's variables asks for what there is not.
var ErrSetting = errors.New("OpenTelemetry")

// Start begins to send traces by OTLP as OpenTelemetry's standard variables say, which getenv and the SDK read. They are
// off, and the Tracer nil, unless OTEL_TRACES_EXPORTER is otlp or an OTLP endpoint is set. stop sends what is left, for
// as long as its context lives. Spans that cannot be sent are dropped and counted. The beginning and the end of that are
// logged, and at the stop how many there were.
func Start(
	ctx context.Context, version string, p Places, getenv func(string) string, logger *slog.Logger,
) (t *Tracer, stop func(context.Context), err error) {
	stop = func(context.Context) {}
	exporter, err := newExporter(ctx, getenv)
	if err != nil || exporter == nil {
		return nil, stop, err
	}
	// The process' command line is left out on purpose: it may hold a password.
	described, err := resource.New(ctx, resource.WithAttributes(semconv.ServiceName("worker"), semconv.ServiceVersion(version),
		semconv.ServiceInstanceID(uuid.NewString())), resource.WithTelemetrySDK(), resource.WithHost(), resource.WithFromEnv())
	if err != nil {
		return nil, stop, fmt.Errorf("%w: OTEL_RESOURCE_ATTRIBUTES: %w", ErrSetting, err)
	}
	size, err := strconv.Atoi(getenv("OTEL_BSP_MAX_QUEUE_SIZE"))
	if err != nil || size < 1 {
		size = sdktrace.DefaultMaxQueueSize
	}
	ending, end := context.WithCancel(context.WithoutCancel(ctx))
	d := &delivery{SpanExporter: exporter, limit: int64(size), ending: ending, logger: logger}
	batches := sdktrace.NewBatchSpanProcessor(d, sdktrace.WithMaxQueueSize(size))
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(admission{batches, d}), sdktrace.WithResource(described))
	t = New(provider, p)
	t.delivery = d
	return t, func(ctx context.Context) {
		defer end()
		defer context.AfterFunc(ctx, end)()
		d.stopping.Store(true)
		d.stopped(ctx, provider.Shutdown(context.WithoutCancel(ctx)))
	}, nil
}

// LogErrors lets OpenTelemetry report its errors to a log. It is for the whole process.
func LogErrors(ctx context.Context, logger *slog.Logger) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		logger.WarnContext(ctx, "OpenTelemetry reports an error", "error", err)
	}))
}

// newExporter is nil if traces are off.
func newExporter(ctx context.Context, getenv func(string) string) (*otlptrace.Exporter, error) {
	first := func(names ...string) string {
		for _, name := range names {
			if value := getenv(name); value != "" {
				return value
			}
		}
		return ""
	}
	endpoint := first("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
	switch kind := getenv("OTEL_TRACES_EXPORTER"); {
	case strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true"), kind == "none", kind == "" && endpoint == "":
		return nil, nil
	case kind != "" && kind != "otlp":
		return nil, fmt.Errorf("%w: OTEL_TRACES_EXPORTER must be otlp or none, not %q", ErrSetting, kind)
	}
	switch protocol := first("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"); protocol {
	case "", "http/protobuf":
		return otlptracehttp.New(ctx)
	case "grpc":
		return otlptracegrpc.New(ctx)
	default:
		return nil, fmt.Errorf("%w: OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf or grpc, not %q", ErrSetting, protocol)
	}
}

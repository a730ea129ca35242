package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

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
// as long as its context lives. What cannot be sent is dropped, and logged.
func Start(
	ctx context.Context, version, system, destination string, getenv func(string) string, logger *slog.Logger,
) (t *Tracer, stop func(context.Context) error, err error) {
	stop = func(context.Context) error { return nil }
	exporter, err := newExporter(ctx, getenv)
	if err != nil || exporter == nil {
		return nil, stop, err
	}
	// The process' command line is left out on purpose: it may hold a password.
	described, err := resource.New(ctx, resource.WithAttributes(semconv.ServiceName("worker"), semconv.ServiceVersion(version)),
		resource.WithTelemetrySDK(), resource.WithHost(), resource.WithFromEnv())
	if err != nil {
		return nil, stop, fmt.Errorf("%w: OTEL_RESOURCE_ATTRIBUTES: %w", ErrSetting, err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		logger.WarnContext(ctx, "cannot send traces", "error", err)
	}))
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(described))
	return New(provider, system, destination), provider.Shutdown, nil
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

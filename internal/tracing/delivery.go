package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// outageInterval is the shortest time between two lines of the log that say that traces cannot be exported.
const outageInterval = time.Minute

var errLate = errors.New("the collector did not take them in time")

// delivery exports spans in batches. It counts those that it drops, and logs when exports begin to fail and when they
// succeed again.
type delivery struct {
	sdktrace.SpanExporter

	limit            int64 // of the spans that are pending
	pending, dropped atomic.Int64
	ending           context.Context //nolint:containedctx // its end cancels the exports, which no call outlives
	stopping         atomic.Bool
	logger           *slog.Logger

	mu       sync.Mutex
	failing  bool
	began    time.Time // when the last outage in the log began
	reported int64     // how many of the dropped spans the log has
	last     error
}

// admission is the processor before the batches: it drops a span that has no place, where the SDK's queue would drop it
// without a count.
type admission struct {
	sdktrace.SpanProcessor

	delivery *delivery
}

// OnEnd implements [sdktrace.SpanProcessor].
func (a admission) OnEnd(s sdktrace.ReadOnlySpan) {
	switch {
	case !s.SpanContext().IsSampled():
	case a.delivery.pending.Add(1) > a.delivery.limit:
		a.delivery.pending.Add(-1)
		a.delivery.dropped.Add(1)
	default:
		a.SpanProcessor.OnEnd(s)
	}
}

// ExportSpans implements [sdktrace.SpanExporter]. It returns no error: the SDK would report each one.
func (d *delivery) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.ending, cancel)() //nolint:contextcheck // it ends the export, too
	err := d.SpanExporter.ExportSpans(ctx, spans)
	d.pending.Add(-int64(len(spans)))
	if err != nil && d.ending.Err() != nil {
		err = fmt.Errorf("%w: %w", errLate, err)
	}
	d.note(ctx, len(spans), err)
	return nil
}

// note notes the outcome of an export.
func (d *delivery) note(ctx context.Context, spans int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err != nil:
		d.dropped.Add(int64(spans))
		d.last = err
		if d.failing || d.stopping.Load() || !d.began.IsZero() && time.Since(d.began) < outageInterval {
			return
		}
		d.failing, d.began = true, time.Now()
		d.logger.WarnContext(ctx, "cannot export traces, drops their spans", "error", err)
	case d.failing:
		d.failing, d.reported = false, d.dropped.Load()
		d.logger.InfoContext(ctx, "traces are exported again", "dropped", d.reported)
	}
}

// stopped logs how many spans were dropped since the last line about them, and an error of the exporter's end.
func (d *delivery) stopped(ctx context.Context, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dropped := d.dropped.Add(d.pending.Swap(0))
	if dropped == d.reported && err == nil {
		return
	}
	d.logger.WarnContext(ctx, "spans were not exported", "dropped", dropped, "error", errors.Join(d.last, err))
}

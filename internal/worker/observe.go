package worker

import (
	"context"
	"log/slog"
	"time"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/metrics"
	"github.com/healz/worker/internal/tracing"
)

// Traced is a store whose appends are traced; the store itself if there is no tracer.
func Traced(b Backend, t *tracing.Tracer) Backend { return observe(b, nil, t) }

// observe measures and traces what is appended to a store, where there is something to measure or trace with.
func observe(b Backend, m *metrics.Metrics, t *tracing.Tracer) Backend {
	if m == nil && t == nil {
		return b
	}
	return observed{b, m, t}
}

type observed struct {
	Backend
	metrics *metrics.Metrics // may be nil
	tracer  *tracing.Tracer  // may be nil
}

// Append is AppendMany of one.
func (o observed) Append(ctx context.Context, e events.Event) error {
	return o.AppendMany(ctx, []events.Event{e})
}

// AppendMany appends the events with the traceparent of the append in their metadata.
func (o observed) AppendMany(ctx context.Context, batch []events.Event) error {
	return o.write(ctx, metrics.Append, batch, o.Backend.AppendMany)
}

// Record appends what follows with the traceparent of the append in its metadata.
func (o observed) Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error {
	return o.write(ctx, metrics.Record, followUps, func(ctx context.Context, followUps []events.Event) error {
		return o.Backend.Record(ctx, handler, e, followUps)
	})
}

func (o observed) write(
	ctx context.Context, operation string, batch []events.Event, write func(context.Context, []events.Event) error,
) error {
	end := func(error) {}
	if o.tracer != nil {
		ctx, batch, end = o.tracer.Append(ctx, batch)
	}
	began := time.Now()
	err := write(ctx, batch)
	if o.metrics != nil {
		o.metrics.Stored(operation, time.Since(began), err)
	}
	end(err)
	return err
}

// sources are where the metrics look at the parts of an opened worker.
func sources(w *Worker, backend Backend, letters *deadletter.Table, conn *amqp.Connection) metrics.Sources {
	s := metrics.Sources{
		Backlog: w.parts.Tail.Backlog, Letters: letters.Count, Pools: backend.Pools, Leads: w.relay.Leads,
		Parts: func(ctx context.Context) map[string]bool {
			up := map[string]bool{}
			for part, err := range w.check(ctx) {
				up[part] = err == nil
			}
			return up
		},
		Outcomes: func() map[string]int64 {
			counts := map[string]int64{}
			for outcome, n := range w.counts.Map() {
				counts[string(outcome)] = n
			}
			return counts
		},
	}
	if conn != nil {
		s.Queues, s.Connections = conn.Depths, conn.Up
	}
	return s
}

// tracedLog is a log whose lines name the span in hand, if there are spans.
func tracedLog(logger *slog.Logger, t *tracing.Tracer) *slog.Logger {
	if t == nil {
		return logger
	}
	return slog.New(tracing.LogHandler(logger.Handler()))
}

// counted counts what a sink takes, if there is something to count with.
func counted(s deadletter.Sink, m *metrics.Metrics) deadletter.Sink {
	if m == nil {
		return s
	}
	return m.Sink(s)
}

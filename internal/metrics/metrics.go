// Package metrics counts and measures what a worker does, for Prometheus. [Metrics] is an [observe.Observer], and polls
// the servers for what only they know.
//
// No label is an id of a tenant, an aggregate or a person. An event type is a label only if a handler is registered for
// it, as a foreign message can say anything there: all others are "other". Servers are polled in the background: a scrape
// never waits for a server, and what could not be polled lately is absent.
package metrics

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/observe"
)

// Label values for what is not one of the known.
const (
	otherType = "other"
	noHandler = "none" // of a dead letter that reached no handler, or whose handler is not registered
)

// buckets are the upper bounds, in seconds, of all durations: from a fast statement to the handlers' timeout.
func buckets() []float64 {
	return []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
}

// Metrics are the metrics of one worker, in a registry of their own. All methods are safe for concurrent use, but
// [Metrics.Handlers], which comes before the others.
type Metrics struct {
	observe.None

	registry *prometheus.Registry

	handled, failures, retries, duplicates, deadLettered, postponed *prometheus.CounterVec
	duration                                                        *prometheus.HistogramVec

	store     map[observe.Operation]storeMetrics
	published prometheus.Counter
	unsent    prometheus.Counter
	confirm   prometheus.Histogram
	lost      *prometheus.CounterVec
	polls     *polls

	byHandler map[series]handlerMetrics
}

// series is a handler and an event type, as labels.
type series struct{ handler, eventType string }

// handlerMetrics are those of a series.
type handlerMetrics struct {
	handled, failures, retries, duplicates, deadLettered, postponed prometheus.Counter
	duration                                                        prometheus.Observer
}

// New returns the metrics of a worker of the given version.
func New(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), byHandler: map[series]handlerMetrics{}}
	byHandler := []string{"handler", "event_type"}
	m.handled = m.counters("handler_handled_total", "Events that a handler has handled.", byHandler...)
	m.failures = m.counters("handler_failures_total", "Attempts of a handler that failed.", byHandler...)
	m.retries = m.counters("handler_retries_total", "Attempts of a handler after its first.", byHandler...)
	m.duplicates = m.counters("handler_duplicates_total",
		"Deliveries that a handler was spared, as it had handled the event before.", byHandler...)
	m.deadLettered = m.counters("handler_dead_letters_total",
		`Events that became dead letters of a handler; of handler "none" if they reached none.`, byHandler...)
	m.postponed = m.counters("handler_postponed_total", "Events that a handler is to try again later.", byHandler...)
	m.duration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "worker_handler_duration_seconds", Buckets: buckets(),
		Help: "Duration of an attempt of a handler, with the record of what follows.",
	}, byHandler)
	m.published = m.counters("relay_events_total", "Events that the relay has brought to the bus.").WithLabelValues()
	m.unsent = m.counters("relay_failures_total", "Batches that the relay could not bring to the bus.").WithLabelValues()
	m.confirm = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "worker_publish_confirm_duration_seconds", Buckets: buckets(),
		Help: "Time until RabbitMQ confirmed a published message.",
	})
	m.lost = m.counters("rabbitmq_connections_lost_total", "Connections to RabbitMQ that were lost.", "connection")
	for _, connection := range []string{"publish", "consume"} {
		m.lost.WithLabelValues(connection)
	}
	m.failedSeries(noHandler, otherType)
	m.store = m.storeMetrics()
	m.polls = newPolls(m.counters("look_errors_total",
		"Polls of a server for its metrics that failed; what they would have told is absent.", "at"))
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "worker_build_info", Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": version, "go_version": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(
		m.duration, m.confirm, m.polls, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// counters makes and registers a counter with labels.
func (m *Metrics) counters(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "worker_" + name, Help: help}, labels)
	m.registry.MustRegister(c)
	return c
}

// Handler serves the metrics. A part that cannot be collected does not keep back the others.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// Handlers makes the metrics of all handlers, given the event types of each; nil is all types. So each is there, as 0,
// before it is first counted.
func (m *Metrics) Handlers(eventTypes map[string][]string) {
	known := slices.Concat(slices.Collect(maps.Values(eventTypes))...)
	for handler, types := range eventTypes {
		if types == nil {
			types = append(slices.Clone(known), otherType)
		}
		for _, t := range types {
			m.failedSeries(noHandler, t)
			of := m.failedSeries(handler, t)
			of.handled = m.handled.WithLabelValues(handler, t)
			of.failures = m.failures.WithLabelValues(handler, t)
			of.retries = m.retries.WithLabelValues(handler, t)
			of.duplicates = m.duplicates.WithLabelValues(handler, t)
			of.duration = m.duration.WithLabelValues(handler, t)
			m.byHandler[series{handler, t}] = of
		}
		m.failedSeries(handler, otherType) // a message's header may name another type than its event
	}
}

// failedSeries makes the metrics of failed messages, unless the series has them.
func (m *Metrics) failedSeries(handler, eventType string) handlerMetrics {
	if of, has := m.byHandler[series{handler, eventType}]; has {
		return of
	}
	of := handlerMetrics{
		deadLettered: m.deadLettered.WithLabelValues(handler, eventType),
		postponed:    m.postponed.WithLabelValues(handler, eventType),
	}
	m.byHandler[series{handler, eventType}] = of
	return of
}

// of returns the metrics of a handler and an event type, which may be ones that are not registered.
func (m *Metrics) of(handler, eventType string) handlerMetrics {
	if _, registered := m.byHandler[series{handler, otherType}]; !registered {
		handler = noHandler // a replayed letter may be of a handler that is gone
	}
	if of, known := m.byHandler[series{handler, eventType}]; known {
		return of
	}
	return m.byHandler[series{handler, otherType}]
}

// Attempt implements [observe.Observer].
func (m *Metrics) Attempt(ctx context.Context, handler string, e events.Event, attempt int) (context.Context, func(error)) {
	began := time.Now()
	return ctx, func(err error) {
		if errors.Is(err, observe.ErrDuplicate) || errors.Is(err, observe.ErrInterrupted) {
			return
		}
		of := m.of(handler, e.Type)
		of.duration.Observe(time.Since(began).Seconds())
		if attempt > 1 {
			of.retries.Inc()
		}
		if err != nil {
			of.failures.Inc()
		} else {
			of.handled.Inc()
		}
	}
}

// Duplicate implements [observe.Observer].
func (m *Metrics) Duplicate(handler string, e events.Event) { m.of(handler, e.Type).duplicates.Inc() }

// Failed implements [observe.Observer].
func (m *Metrics) Failed(failed *message.Message, handler string, wait time.Duration) {
	of := m.of(cmp.Or(handler, noHandler), failed.Metadata.Get(bus.EventTypeKey))
	if wait > 0 {
		of.postponed.Inc()
	} else {
		of.deadLettered.Inc()
	}
}

// Confirmed implements [observe.Observer].
func (m *Metrics) Confirmed(took time.Duration) { m.confirm.Observe(took.Seconds()) }

// ConnectionLost implements [observe.Observer].
func (m *Metrics) ConnectionLost(connection string) { m.lost.WithLabelValues(connection).Inc() }

// Publish implements [observe.Observer].
func (m *Metrics) Publish(_ context.Context, batch []*message.Message) func(error) {
	return func(err error) {
		if err != nil {
			m.unsent.Inc()
		} else {
			m.published.Add(float64(len(batch)))
		}
	}
}

// storeMetrics are those of an operation of the store.
type storeMetrics struct {
	duration  prometheus.Observer
	conflicts prometheus.Counter
}

func (m *Metrics) storeMetrics() map[observe.Operation]storeMetrics {
	durations := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "worker_store_duration_seconds", Buckets: buckets(),
		Help: "Duration of an append, or of the record of a handled event with what follows from it.",
	}, []string{"operation"})
	m.registry.MustRegister(durations)
	conflicts := m.counters("store_conflicts_total", "Appends and records that met a version that was taken already.", "operation")
	operations := map[observe.Operation]storeMetrics{}
	for _, o := range []observe.Operation{observe.Append, observe.Record} {
		operations[o] = storeMetrics{durations.WithLabelValues(string(o)), conflicts.WithLabelValues(string(o))}
	}
	return operations
}

// Append implements [observe.Observer].
func (m *Metrics) Append(ctx context.Context, o observe.Operation, batch []events.Event) (context.Context, []events.Event, func(error)) {
	began := time.Now()
	return ctx, batch, func(err error) {
		of := m.store[o]
		of.duration.Observe(time.Since(began).Seconds())
		if errors.Is(err, events.ErrConflict) {
			of.conflicts.Inc()
		}
	}
}

// Package metrics counts and measures what a worker does, for Prometheus. It fills the hooks that the other packages
// define for it, so that none of them knows of Prometheus, and wraps the parts that need no hook.
//
// No label is an id of a tenant, an aggregate or a person. An event type is a label only if a handler is registered for
// it, as a foreign message can say anything there: all others are "other". What only a server can tell is looked at in
// the background: a scrape never waits for a server, and what could not be looked at lately is absent.
package metrics

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
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
// [Metrics.Watch], which comes before the others.
type Metrics struct {
	registry *prometheus.Registry

	handled, failures, retries, duplicates, deadLettered, postponed *prometheus.CounterVec
	duration                                                        *prometheus.HistogramVec

	store     map[string]storeMetrics // by operation
	published prometheus.Counter
	unsent    prometheus.Counter
	confirm   prometheus.Histogram
	lost      *prometheus.CounterVec
	looks     *looks

	settled map[settledKey]settledMetrics
}

// New returns the metrics of a worker of the given version.
func New(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), settled: map[settledKey]settledMetrics{}}
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
	m.settle(noHandler, otherType)
	m.store = m.storeMetrics()
	m.looks = newLooks(m.counters("look_errors_total",
		"Looks at a server for its metrics that failed; what they would have told is absent.", "at"))
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "worker_build_info", Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": version, "go_version": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(
		m.duration, m.confirm, m.looks, build,
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

// handlerMetrics are those of a handler and an event type.
type handlerMetrics struct {
	handled, failures, retries, duplicates prometheus.Counter
	duration                               prometheus.Observer
}

type settledKey struct{ handler, eventType string }

type settledMetrics struct{ deadLettered, postponed prometheus.Counter }

// handlerWatcher is the [handlers.Watcher] of a handler: its metrics by event type.
type handlerWatcher map[string]handlerMetrics

// Watch makes the watcher of a handler, see [handlers.Dispatcher.Watch].
func (m *Metrics) Watch(handler string, eventTypes []string, others bool) handlers.Watcher {
	if others {
		eventTypes = append(slices.Clone(eventTypes), otherType)
	}
	w := handlerWatcher{}
	for _, t := range eventTypes {
		w[t] = handlerMetrics{
			handled:    m.handled.WithLabelValues(handler, t),
			failures:   m.failures.WithLabelValues(handler, t),
			retries:    m.retries.WithLabelValues(handler, t),
			duplicates: m.duplicates.WithLabelValues(handler, t),
			duration:   m.duration.WithLabelValues(handler, t),
		}
		m.settle(handler, t)
		m.settle(noHandler, t)
	}
	m.settle(handler, otherType) // a message's header may name another type than its event
	return w
}

func (m *Metrics) settle(handler, eventType string) {
	m.settled[settledKey{handler, eventType}] = settledMetrics{
		deadLettered: m.deadLettered.WithLabelValues(handler, eventType),
		postponed:    m.postponed.WithLabelValues(handler, eventType),
	}
}

func (w handlerWatcher) of(eventType string) handlerMetrics {
	if metrics, known := w[eventType]; known {
		return metrics
	}
	return w[otherType]
}

// Tried implements [handlers.Watcher].
func (w handlerWatcher) Tried(eventType string, attempt int, took time.Duration, err error) {
	metrics := w.of(eventType)
	metrics.duration.Observe(took.Seconds())
	if attempt > 1 {
		metrics.retries.Inc()
	}
	if err != nil {
		metrics.failures.Inc()
		return
	}
	metrics.handled.Inc()
}

// Suppressed implements [handlers.Watcher].
func (w handlerWatcher) Suppressed(eventType string) { w.of(eventType).duplicates.Inc() }

// Confirmed implements amqp's Watcher.
func (m *Metrics) Confirmed(took time.Duration) { m.confirm.Observe(took.Seconds()) }

// ConnectionLost implements amqp's Watcher.
func (m *Metrics) ConnectionLost(connection string) { m.lost.WithLabelValues(connection).Inc() }

// Publisher counts what the relay publishes through next.
func (m *Metrics) Publisher(next bus.BatchPublisher) bus.BatchPublisher { return publisher{m, next} }

type publisher struct {
	metrics *Metrics
	next    bus.BatchPublisher
}

func (p publisher) PublishBatch(ctx context.Context, batch []*message.Message) error {
	err := p.next.PublishBatch(ctx, batch)
	if err != nil {
		p.metrics.unsent.Inc()
	} else {
		p.metrics.published.Add(float64(len(batch)))
	}
	return err
}

// Sink counts what next makes a dead letter or postpones.
func (m *Metrics) Sink(next deadletter.Sink) deadletter.Sink {
	if postponer, ok := next.(deadletter.Postponer); ok {
		return countedPostponer{sink{m, next}, postponer}
	}
	return sink{m, next}
}

type sink struct {
	metrics *Metrics
	next    deadletter.Sink
}

func (s sink) Put(ctx context.Context, m *message.Message, f deadletter.Failure) error {
	err := s.next.Put(ctx, m, f)
	if err == nil {
		s.of(m, f).deadLettered.Inc()
	}
	return err
}

// of finds the metrics of a failure, whose handler is one of this worker's or none.
func (s sink) of(m *message.Message, f deadletter.Failure) settledMetrics {
	handler := cmp.Or(f.Handler, noHandler)
	if _, registered := s.metrics.settled[settledKey{handler, otherType}]; !registered {
		handler = noHandler // a replayed letter may be of a handler that is gone
	}
	if found, known := s.metrics.settled[settledKey{handler, m.Metadata.Get(bus.EventTypeKey)}]; known {
		return found
	}
	return s.metrics.settled[settledKey{handler, otherType}]
}

type countedPostponer struct {
	sink
	next deadletter.Postponer
}

func (s countedPostponer) Postpone(ctx context.Context, m *message.Message, f deadletter.Failure) (time.Duration, error) {
	wait, err := s.next.Postpone(ctx, m, f)
	if err == nil && wait > 0 {
		s.of(m, f).postponed.Inc()
	}
	return wait, err
}

// storeMetrics are those of an operation of the store.
type storeMetrics struct {
	duration  prometheus.Observer
	conflicts prometheus.Counter
}

// The operations of the store that are measured.
const (
	Append = "append"
	Record = "record"
)

func (m *Metrics) storeMetrics() map[string]storeMetrics {
	durations := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "worker_store_duration_seconds", Buckets: buckets(),
		Help: "Duration of an append, or of the record of a handled event with what follows from it.",
	}, []string{"operation"})
	m.registry.MustRegister(durations)
	conflicts := m.counters("store_conflicts_total", "Appends and records that met a version that was taken already.", "operation")
	operations := map[string]storeMetrics{}
	for _, o := range []string{Append, Record} {
		operations[o] = storeMetrics{durations.WithLabelValues(o), conflicts.WithLabelValues(o)}
	}
	return operations
}

// Stored tells how long an [Append] or a [Record] took, and its error.
func (m *Metrics) Stored(operation string, took time.Duration, err error) {
	metrics := m.store[operation]
	metrics.duration.Observe(took.Seconds())
	if errors.Is(err, events.ErrConflict) {
		metrics.conflicts.Inc()
	}
}

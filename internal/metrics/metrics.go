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
	"github.com/prometheus/client_golang/prometheus/promauto"
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

// ageBuckets are those of the age of events, up to a day.
func ageBuckets() []float64 {
	return []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 6 * 3600, 24 * 3600}
}

// Metrics are the metrics of one worker, in a registry of their own. All methods are safe for concurrent use, but
// [Metrics.Handlers], which comes before the others.
type Metrics struct {
	observe.None

	// TraceOf is the id of the trace of a context, for exemplars; "" if there is none that is kept. nil is none ever.
	TraceOf func(context.Context) string

	registry *prometheus.Registry

	handled, failures, retries, duplicates, deadLettered, postponed *prometheus.CounterVec
	duration, age                                                   *prometheus.HistogramVec
	receiving                                                       inFlight
	// known are the handlers and event types that are labels.
	known map[series]bool

	storeDuration *prometheus.HistogramVec
	conflicts     *prometheus.CounterVec
	published     prometheus.Counter
	unsent        prometheus.Counter
	confirm       prometheus.Observer
	lost          *prometheus.CounterVec
	polls         *polls
}

// series is a handler and an event type, as labels.
type series struct{ handler, eventType string }

// New returns the metrics of a worker of the given version.
func New(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), known: map[series]bool{}}
	byHandler := []string{"handler", "event_type"}
	m.handled = m.counters("handler_handled_total", "Events that a handler has handled, each once.", byHandler...)
	m.failures = m.counters("handler_failures_total", "Attempts of a handler that failed.", byHandler...)
	m.retries = m.counters("handler_retries_total", "Attempts of a handler on an event after its first attempt on it.", byHandler...)
	m.duplicates = m.counters("handler_duplicates_total",
		"Deliveries on which a handler did not run, as it had handled the event before.", byHandler...)
	m.deadLettered = m.counters("handler_dead_letters_total",
		`Events that became dead letters of a handler; of handler "none" if they reached none.`, byHandler...)
	m.postponed = m.counters("handler_postponed_total", "Events that a handler is to try again later.", byHandler...)
	m.duration = m.durations("handler_duration_seconds", "Duration of an attempt of a handler, with the record of what follows.", byHandler...)
	m.age = m.histograms("handler_event_age_seconds",
		"Time from an event's created_at, by its producer's clock, until a handler has handled it.", ageBuckets(), byHandler...)
	m.know(noHandler, otherType, m.deadLettered, m.postponed)

	m.published = m.counters("relay_events_total", "Events that the relay has brought to the bus.").WithLabelValues()
	m.unsent = m.counters("relay_failures_total", "Batches that the relay could not bring to the bus.").WithLabelValues()
	m.confirm = m.durations("publish_confirm_duration_seconds", "Time until RabbitMQ confirmed a published message.").WithLabelValues()
	m.lost = m.counters("rabbitmq_connections_lost_total", "Connections to RabbitMQ that were lost.", "connection")
	for _, connection := range []string{"publish", "consume"} {
		m.lost.WithLabelValues(connection)
	}
	m.storeDuration = m.durations("store_duration_seconds",
		"Duration of an append, or of the record of a handled event with what follows from it.", "operation")
	m.conflicts = m.counters("store_conflicts_total", "Appends and records that met a version that was taken already.", "operation")
	for _, o := range []observe.Operation{observe.Append, observe.Record} {
		m.storeDuration.WithLabelValues(string(o))
		m.conflicts.WithLabelValues(string(o))
	}
	m.polls = &polls{receiving: &m.receiving, seen: map[string]polled{}, errors: m.counters("look_errors_total",
		"Polls of a server for its metrics that failed; what they would have told is absent.", "at")}
	m.registry.MustRegister(
		m.polls, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "worker_build_info", Help: "Always 1; the labels say what runs.",
			ConstLabels: prometheus.Labels{"version": version, "go_version": runtime.Version()},
		}, func() float64 { return 1 }),
	)
	return m
}

// counters makes and registers a counter with labels.
func (m *Metrics) counters(name, help string, labels ...string) *prometheus.CounterVec {
	return promauto.With(m.registry).NewCounterVec(prometheus.CounterOpts{Name: "worker_" + name, Help: help}, labels)
}

// durations makes and registers a histogram of durations with labels.
func (m *Metrics) durations(name, help string, labels ...string) *prometheus.HistogramVec {
	return m.histograms(name, help, buckets(), labels...)
}

func (m *Metrics) histograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	o := prometheus.HistogramOpts{Name: "worker_" + name, Help: help, Buckets: buckets}
	return promauto.With(m.registry).NewHistogramVec(o, labels)
}

// Handler serves the metrics, as OpenMetrics with exemplars to those who accept that. A part that cannot be collected does not keep back the others.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, EnableOpenMetrics: true})
}

// Values are the metrics by their names, each summed over its labels; of a histogram it is the count. What cannot be
// collected is missing.
func (m *Metrics) Values() map[string]float64 {
	families, _ := m.registry.Gather() // with an error there are the others
	values := make(map[string]float64, len(families))
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			values[family.GetName()] += metric.GetCounter().GetValue() + metric.GetGauge().GetValue() +
				float64(metric.GetHistogram().GetSampleCount())
		}
	}
	return values
}

// Traces adds the count of the spans that were dropped, for a worker that exports traces.
func (m *Metrics) Traces(dropped func() int64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "worker_trace_spans_dropped_total",
		Help: "Spans that were not exported, as the queue was full or the export of their batch failed.",
	}, func() float64 { return float64(dropped()) }))
}

// Handlers makes the metrics of all handlers, given the event types of each; nil is all types. So each is there, as 0,
// before it is first counted.
func (m *Metrics) Handlers(eventTypes map[string][]string) {
	all := slices.Concat(slices.Collect(maps.Values(eventTypes))...)
	for handler, types := range eventTypes {
		if types == nil {
			types = append(slices.Clone(all), otherType)
		}
		for _, t := range types {
			m.know(noHandler, t, m.deadLettered, m.postponed)
			m.know(handler, t, m.deadLettered, m.postponed, m.handled, m.failures, m.retries, m.duplicates)
			m.duration.WithLabelValues(handler, t)
			m.age.WithLabelValues(handler, t)
		}
		m.know(handler, otherType, m.deadLettered, m.postponed) // a message's header may name another type than its event
	}
}

// know makes a handler and an event type labels, of these counters at once and of the others when they are counted.
func (m *Metrics) know(handler, eventType string, counters ...*prometheus.CounterVec) {
	m.known[series{handler, eventType}] = true
	for _, c := range counters {
		c.WithLabelValues(handler, eventType)
	}
}

// labels are those of a handler and an event type, which may be ones that are not registered.
func (m *Metrics) labels(handler, eventType string) []string {
	if !m.known[series{handler, otherType}] {
		handler = noHandler // a replayed letter may be of a handler that is gone
	}
	if !m.known[series{handler, eventType}] {
		eventType = otherType
	}
	return []string{handler, eventType}
}

// Attempt implements [observe.Observer].
func (m *Metrics) Attempt(ctx context.Context, handler string, e events.Event, attempt int) (context.Context, func(error)) {
	began := time.Now()
	return ctx, func(err error) {
		if errors.Is(err, observe.ErrDuplicate) || errors.Is(err, observe.ErrInterrupted) {
			return
		}
		labels := m.labels(handler, e.Type)
		m.observe(ctx, m.duration.WithLabelValues(labels...), time.Since(began))
		if attempt > 1 {
			m.retries.WithLabelValues(labels...).Inc()
		}
		if err != nil {
			m.failures.WithLabelValues(labels...).Inc()
		} else {
			m.handled.WithLabelValues(labels...).Inc()
			m.observe(ctx, m.age.WithLabelValues(labels...), max(0, time.Since(e.CreatedAt)))
		}
	}
}

// observe observes a duration, with the trace of ctx as its exemplar.
func (m *Metrics) observe(ctx context.Context, o prometheus.Observer, d time.Duration) {
	trace := ""
	if m.TraceOf != nil {
		trace = m.TraceOf(ctx)
	}
	if e, ok := o.(prometheus.ExemplarObserver); ok && trace != "" {
		e.ObserveWithExemplar(d.Seconds(), prometheus.Labels{"trace_id": trace})
		return
	}
	o.Observe(d.Seconds())
}

// Receive implements [observe.Observer].
func (m *Metrics) Receive(ctx context.Context, _ *message.Message) (context.Context, func(observe.Outcome)) {
	end := m.receiving.begin()
	return ctx, func(observe.Outcome) { end() }
}

// Duplicate implements [observe.Observer].
func (m *Metrics) Duplicate(handler string, e events.Event) {
	m.duplicates.WithLabelValues(m.labels(handler, e.Type)...).Inc()
}

// Failed implements [observe.Observer].
func (m *Metrics) Failed(failed *message.Message, handler string, wait time.Duration) {
	counter := m.deadLettered
	if wait > 0 {
		counter = m.postponed
	}
	counter.WithLabelValues(m.labels(cmp.Or(handler, noHandler), failed.Metadata.Get(bus.EventTypeKey))...).Inc()
}

// Confirmed implements [observe.Observer].
func (m *Metrics) Confirmed(took time.Duration) { m.confirm.Observe(took.Seconds()) }

// ConnectionLost implements [observe.Observer].
func (m *Metrics) ConnectionLost(connection string) { m.lost.WithLabelValues(connection).Inc() }

// Publish implements [observe.Observer].
func (m *Metrics) Publish(_ context.Context, batch []*message.Message) func(error) {
	return func(err error) {
		published := len(batch)
		if err != nil {
			m.unsent.Inc()
			published = confirmed(batch)
		}
		m.published.Add(float64(published))
	}
}

// confirmed counts the messages that the bus has confirmed.
func confirmed(batch []*message.Message) (n int) {
	for _, m := range batch {
		select {
		case <-m.Acked():
			n++
		default:
		}
	}
	return n
}

// Append implements [observe.Observer].
func (m *Metrics) Append(ctx context.Context, o observe.Operation, batch []events.Event) (context.Context, []events.Event, func(error)) {
	began := time.Now()
	return ctx, batch, func(err error) {
		m.storeDuration.WithLabelValues(string(o)).Observe(time.Since(began).Seconds())
		if errors.Is(err, events.ErrConflict) {
			m.conflicts.WithLabelValues(string(o)).Inc()
		}
	}
}

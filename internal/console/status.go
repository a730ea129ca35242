package console

import (
	"math"
	"sync"
	"time"

	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/worker"
)

// Status is the state of a worker. Unknown values are NaN.
type Status struct {
	Ready bool
	// Parts are the components of the worker.
	Parts map[string]worker.Part
	// InProcess is set if the bus is in the process of the worker.
	InProcess bool
	// Totals count since the start of the worker.
	Totals Totals
	// Lag is the number of events that are not published yet. LagSeconds is the age of the oldest of them.
	Lag, LagSeconds float64
	// Queued is the backlog of the queues of the broker.
	Queued float64
	// Letters is the number of waiting dead letters.
	Letters float64
}

// Totals are the counters of the pipeline.
type Totals struct {
	// Appended counts the events of all writers, the others count those of this worker.
	Appended, Relayed, Received, Handled, Failed, DeadLettered float64
}

// StatusOf returns the status from the health and the metrics of a worker, without the total of appended events.
// The values of a part that is down are unknown: metrics keep the last ones for a while.
func StatusOf(h worker.Health, metrics map[string]float64, inProcess bool) Status {
	value := func(name string) float64 {
		if v, known := metrics["worker_"+name]; known {
			return v
		}
		return math.NaN()
	}
	dead := float64(h.Events[observe.DeadLettered])
	handled := float64(h.Events[observe.Handled] + h.Events[observe.Unhandled])
	s := Status{
		Ready: h.Ready, Parts: h.Parts, InProcess: inProcess, Lag: value("relay_lag_events"), LagSeconds: value("relay_lag_seconds"),
		Queued: value("queue_messages"), Letters: value("dead_letters"),
		Totals: Totals{
			Appended: math.NaN(), Relayed: value("relay_events_total"),
			Received: handled + dead + float64(h.Events[observe.Duplicate]+h.Events[observe.Postponed]), Handled: handled,
			Failed: value("handler_failures_total"), DeadLettered: dead,
		},
	}
	if p, known := h.Parts["store"]; known && !p.OK() {
		s.Lag, s.LagSeconds, s.Letters = math.NaN(), math.NaN(), math.NaN()
	}
	if p, known := h.Parts["bus"]; known && !p.OK() {
		s.Queued = math.NaN()
	}
	return s
}

type rates Totals

func unknownRates() rates {
	n := math.NaN()
	return rates{n, n, n, n, n, n}
}

const (
	// sampleInterval is the minimum time between two samples. rateSpan is the time over which a rate is measured.
	sampleInterval = 900 * time.Millisecond
	rateSpan       = 10 * time.Second
)

// recorder keeps the samples of the last seconds, for rates. Requests take the samples, so that an unused console costs
// nothing. The zero value is ready; it is safe for concurrent use.
type recorder struct {
	mu      sync.Mutex
	samples []sample
}

type sample struct {
	at     time.Time
	totals Totals
}

// record adds a sample, unless the last one is too new, and returns the rates since the oldest sample.
func (r *recorder) record(now time.Time, t Totals) rates {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.samples) > 0 && now.Sub(r.samples[0].at) > rateSpan {
		r.samples = r.samples[1:]
	}
	if n := len(r.samples); n == 0 || now.Sub(r.samples[n-1].at) >= sampleInterval {
		r.samples = append(r.samples, sample{now, t})
	}
	first := r.samples[0]
	seconds := now.Sub(first.at).Seconds()
	if seconds < sampleInterval.Seconds() {
		return unknownRates()
	}
	each := func(now, then float64) float64 { return max(0, now-then) / seconds }
	return rates{
		each(t.Appended, first.totals.Appended), each(t.Relayed, first.totals.Relayed),
		each(t.Received, first.totals.Received), each(t.Handled, first.totals.Handled),
		each(t.Failed, first.totals.Failed), each(t.DeadLettered, first.totals.DeadLettered),
	}
}

package console

import (
	"math"
	"sync"
	"time"

	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/worker"
)

// Status is the state of a worker at one moment. What is not known is NaN.
type Status struct {
	Ready bool
	// Parts says for each part of the worker "ok", or what is wrong.
	Parts map[string]string
	// Totals are since the start of the worker.
	Totals Totals
	// Lag is how many events of the store are not on the bus yet, and LagSeconds the age of the first of them.
	Lag, LagSeconds float64
	// Queued is how many messages wait in the broker's queues.
	Queued float64
	// Letters is how many dead letters there are.
	Letters float64
}

// Totals count what has passed each station.
type Totals struct {
	// Appended are by whomever; the others are of this worker.
	Appended, Relayed, Received, Handled, Failed, DeadLettered float64
}

// StatusOf is what a worker's health and metrics tell of its status; the totals lack what was appended.
func StatusOf(h worker.Health, metrics map[string]float64) Status {
	value := func(name string) float64 {
		if v, known := metrics["worker_"+name]; known {
			return v
		}
		return math.NaN()
	}
	dead := float64(h.Events[observe.DeadLettered])
	handled := float64(h.Events[observe.Handled] + h.Events[observe.Unhandled])
	return Status{
		Ready: h.Ready, Parts: h.Parts, Lag: value("relay_lag_events"), LagSeconds: value("relay_lag_seconds"),
		Queued: value("queue_messages"), Letters: value("dead_letters"),
		Totals: Totals{
			Appended: math.NaN(), Relayed: value("relay_events_total"),
			Received: handled + dead + float64(h.Events[observe.Postponed]), Handled: handled,
			Failed: value("handler_failures_total"), DeadLettered: dead,
		},
	}
}

// rates are the [Totals] by second.
type rates Totals

func unknownRates() rates {
	n := math.NaN()
	return rates{n, n, n, n, n, n}
}

const (
	// sampleGap is the least time between two samples, and rateSpan that over which a rate is taken.
	sampleGap = 900 * time.Millisecond
	rateSpan  = 10 * time.Second
)

// recorder keeps the samples of the last seconds, for rates. It is sampled by those who look, so that it costs nothing
// when nobody does. The zero value is ready; it is safe for concurrent use.
type recorder struct {
	mu      sync.Mutex
	samples []sample
}

type sample struct {
	at     time.Time
	totals Totals
}

// record takes a sample, if the last is not too new, and returns the rates since the oldest of the span.
func (r *recorder) record(now time.Time, t Totals) rates {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.samples) > 0 && now.Sub(r.samples[0].at) > rateSpan {
		r.samples = r.samples[1:]
	}
	if n := len(r.samples); n == 0 || now.Sub(r.samples[n-1].at) >= sampleGap {
		r.samples = append(r.samples, sample{now, t})
	}
	first := r.samples[0]
	seconds := now.Sub(first.at).Seconds()
	if seconds < sampleGap.Seconds() {
		return unknownRates()
	}
	each := func(now, then float64) float64 { return max(0, now-then) / seconds }
	return rates{
		each(t.Appended, first.totals.Appended), each(t.Relayed, first.totals.Relayed),
		each(t.Received, first.totals.Received), each(t.Handled, first.totals.Handled),
		each(t.Failed, first.totals.Failed), each(t.DeadLettered, first.totals.DeadLettered),
	}
}

package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/relay"
)

// checkTimeout is the longest wait for the answer of the store.
const checkTimeout = 2 * time.Second

var errNoAnswer = fmt.Errorf("the store has not answered within %s", checkTimeout)

// Health is the state of a worker.
type Health struct {
	Ready bool `json:"ready"`
	// Parts says for each of consumer, store, bus, relay, queue and dead letters "ok", or what is wrong.
	Parts map[string]string `json:"parts"`
	// Events counts the messages since the start, by outcome.
	Events map[observe.Outcome]int64 `json:"events"`
}

// Parts that may be degraded while the worker works: dead letters are written to the table instead of a broker's queue, and the
// events of the queue are shared with a consumer that is no worker.
const (
	deadLettersPart = "dead_letters"
	queuePart       = "queue"
)

// Health checks each part. The worker is ready when it can consume, relay (or another worker does) and reach its
// store, which also means that no message has waited for the store for long.
func (w *Worker) Health(ctx context.Context) Health {
	h := Health{Ready: true, Parts: map[string]string{}, Events: w.counts.Map()}
	for part, err := range w.check(ctx) {
		h.Parts[part] = "ok"
		switch {
		case err != nil && (part == deadLettersPart || part == queuePart):
			h.Parts[part] = "degraded: " + err.Error()
		case err != nil:
			h.Ready, h.Parts[part] = false, err.Error()
		default:
			if state := w.state(part); state != "" {
				h.Parts[part] = "ok (" + state + ")"
			}
		}
	}
	return h
}

// standbyInProcess is the state of a consumer whose bus gets no events, as another worker relays.
const standbyInProcess = "standby: the worker that relays handles the events; set RABBITMQ_URL to share the load"

// state says more about a part that works.
func (w *Worker) state(part string) string {
	switch part {
	case "relay":
		state, _ := w.relay.Status()
		return string(state)
	case "consumer":
		if relaying, _ := w.relay.Status(); w.parts.Embedded && relaying == relay.Standby {
			return standbyInProcess
		}
		state, _ := w.parts.Bus.Consuming()
		return state
	default:
		return ""
	}
}

// check returns the error of each part, nil if it works.
func (w *Worker) check(ctx context.Context) map[string]error {
	state, relayErr := w.relay.Status()
	if state == relay.Starting && relayErr == nil {
		relayErr = errors.New("starting")
	}
	w.mu.Lock()
	consumer := w.consumer
	w.mu.Unlock()
	if consumer == nil {
		_, consumer = w.parts.Bus.Consuming()
	}
	parts := map[string]error{
		"consumer": consumer, "store": cmp.Or(w.pingStore(ctx), w.outages.Err()), "bus": w.parts.Bus.Ready(), "relay": relayErr,
	}
	if sink, ok := w.parts.Sink.(interface{ Degraded() error }); ok {
		parts[deadLettersPart] = sink.Degraded()
	}
	if b, ok := w.parts.Bus.(interface{ Split() error }); ok {
		parts[queuePart] = b.Split()
	}
	return parts
}

// ping is a ping of the store that has no answer yet.
type ping struct {
	done chan struct{}
	err  error
}

// pingStore pings the store, one ping at a time however many callers wait for it. It returns before a ping that takes too
// long has ended: with a frozen server even the cancellation takes time. Closing the store waits for the ping.
func (w *Worker) pingStore(ctx context.Context) error {
	w.mu.Lock()
	p := w.ping
	if p == nil {
		p = &ping{done: make(chan struct{})}
		w.ping = p
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
			defer cancel()
			p.err = w.parts.Inbox.Ping(ctx)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.ping = nil
			close(p.done)
		}()
	}
	w.mu.Unlock()
	select {
	case <-p.done:
		return p.err
	case <-time.After(checkTimeout):
		return errNoAnswer
	case <-ctx.Done():
		return ctx.Err()
	}
}

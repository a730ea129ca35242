package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/relay"
	"github.com/healz/worker/internal/store"
)

// checkTimeout is the longest wait for the answer of the store.
const checkTimeout = 2 * time.Second

var (
	errStarting      = errors.New("starting")
	errWaitsForStore = errors.New("it waits for the store")
	errWaitsForBus   = errors.New("it waits for the bus")
)

var errNoAnswer = fmt.Errorf("the store has not answered within %s", checkTimeout)

// Health is the state of a worker.
type Health struct {
	Ready bool
	// Parts are the states of consumer, store, bus, relay, queue and dead letters.
	Parts map[string]Part
	// Events counts the messages since the start, by outcome.
	Events map[observe.Outcome]int64
}

// Part is the state of a part of a worker.
type Part struct {
	// State is "ok", perhaps with more in brackets, or "starting", "degraded", "down" or "unknown". It names no server and no user.
	State string
	// Problem says why the part is not ok, and may name servers and users.
	Problem string
	// Since is when the worker saw first that the part is not ok.
	Since time.Time
}

// OK returns whether the part works without restriction.
func (p Part) OK() bool { return p.State == stateOK || strings.HasPrefix(p.State, stateOK+" (") }

// Unknown returns whether the state cannot be known at present.
func (p Part) Unknown() bool { return p.State == stateUnknown }

// Public is the state for everyone, with the time since when a part is not ok.
func (p Part) Public() string {
	if p.Since.IsZero() {
		return p.State
	}
	return p.State + " since " + p.Since.UTC().Format(time.RFC3339)
}

// String is the state with the problem.
func (p Part) String() string {
	if p.Problem == "" {
		return p.Public()
	}
	return p.Public() + ": " + p.Problem
}

// States of parts.
const (
	stateOK       = "ok"
	stateStarting = "starting"
	stateDegraded = "degraded"
	stateDown     = "down"
	stateUnknown  = "unknown"
)

// StartingPart is the part of a worker that is not open yet.
func StartingPart() Part { return Part{State: stateStarting} }

// Parts that may be degraded while the worker works: dead letters are written to the table instead of a broker's queue, and the
// events of the queue are shared with a consumer that is no worker.
const (
	deadLettersPart = "dead_letters"
	queuePart       = "queue"
)

// Health checks each part. The worker is ready when it can consume, relay (or another worker does) and reach its
// store, which also means that no message has waited for the store for long.
func (w *Worker) Health(ctx context.Context) Health {
	h := Health{Ready: true, Parts: map[string]Part{}, Events: w.counts.Map()}
	problems := w.check(ctx)
	w.mu.Lock()
	since := maps.Clone(w.since)
	w.mu.Unlock()
	for name, err := range problems {
		p := Part{State: stateOK}
		switch {
		case err == nil && problems["bus"] != nil && (name == deadLettersPart || name == queuePart):
			p = Part{State: stateUnknown, Problem: errWaitsForBus.Error()}
		case err == nil:
			if state := w.state(name); state != "" {
				p.State += " (" + state + ")"
			}
		case name == deadLettersPart || name == queuePart:
			p = Part{State: stateDegraded, Problem: err.Error(), Since: since[name]}
		case errors.Is(err, errStarting):
			p.State, h.Ready = stateStarting, false
		default:
			p, h.Ready = Part{State: stateDown, Problem: err.Error(), Since: since[name]}, false
		}
		h.Parts[name] = p
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
		relayErr = errStarting
	}
	w.mu.Lock()
	consumer := w.consumer
	w.mu.Unlock()
	if consumer == nil {
		_, consumer = w.parts.Bus.Consuming()
	}
	storeErr, busErr := cmp.Or(w.pingStore(ctx), w.outages.Err()), w.parts.Bus.Ready()
	if storeErr != nil && errors.Is(relayErr, store.ErrUnavailable) { // the cause is told once
		relayErr = errWaitsForStore
	}
	if busErr != nil && errors.Is(consumer, amqp.ErrUnavailable) {
		consumer = errWaitsForBus
	}
	parts := map[string]error{"consumer": consumer, "store": storeErr, "bus": busErr, "relay": relayErr}
	if sink, ok := w.parts.Sink.(interface{ Degraded() error }); ok {
		parts[deadLettersPart] = sink.Degraded()
	}
	if b, ok := w.parts.Bus.(interface{ Split() error }); ok {
		parts[queuePart] = b.Split()
	}
	w.noteSince(parts, time.Now())
	return parts
}

// noteSince notes since when parts are not ok.
func (w *Worker) noteSince(parts map[string]error, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, err := range parts {
		if _, known := w.since[name]; err == nil {
			delete(w.since, name)
		} else if !known {
			w.since[name] = now
		}
	}
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

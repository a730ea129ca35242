package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/relay"
)

// checkTimeout bounds the wait for the store's answer.
const checkTimeout = 2 * time.Second

var errNoAnswer = fmt.Errorf("the store has not answered within %s", checkTimeout)

// Health is what the worker says of itself.
type Health struct {
	Ready bool `json:"ready"`
	// Parts says for each of consumer, store, bus and relay "ok", or what is wrong.
	Parts map[string]string `json:"parts"`
	// Events counts the messages since the start, by outcome.
	Events map[observe.Outcome]int64 `json:"events"`
}

// Health looks at each part. The worker is ready when it can consume, relay (or another worker does) and reach its store.
func (w *Worker) Health(ctx context.Context) Health {
	h := Health{Ready: true, Parts: map[string]string{}, Events: w.counts.Map()}
	for part, err := range w.check(ctx) {
		h.Parts[part] = "ok"
		if err != nil {
			h.Ready, h.Parts[part] = false, err.Error()
		} else if part == "relay" {
			state, _ := w.relay.Status()
			h.Parts[part] = fmt.Sprintf("ok (%s)", state)
		}
	}
	return h
}

// check says of each part what keeps it from its work.
func (w *Worker) check(ctx context.Context) map[string]error {
	state, relayErr := w.relay.Status()
	if state == relay.Starting && relayErr == nil {
		relayErr = errors.New("starting")
	}
	w.mu.Lock()
	consumer := w.consumer
	w.mu.Unlock()
	return map[string]error{
		"consumer": consumer, "store": w.lookAtStore(ctx), "bus": w.parts.Bus.Ready(), "relay": relayErr,
	}
}

// look is a ping of the store that is under way.
type look struct {
	done chan struct{}
	err  error
}

// lookAtStore pings the store, once at a time however many ask. It does not wait for a ping that takes too long: of a
// server that is frozen even the end of the attempt takes its time. Closing the store waits for it.
func (w *Worker) lookAtStore(ctx context.Context) error {
	w.mu.Lock()
	l := w.look
	if l == nil {
		l = &look{done: make(chan struct{})}
		w.look = l
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
			defer cancel()
			l.err = w.parts.Inbox.Ping(ctx)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.look = nil
			close(l.done)
		}()
	}
	w.mu.Unlock()
	timer := time.NewTimer(checkTimeout)
	defer timer.Stop()
	select {
	case <-l.done:
		return l.err
	case <-timer.C:
		return errNoAnswer
	case <-ctx.Done():
		return ctx.Err()
	}
}

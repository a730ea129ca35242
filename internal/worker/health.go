package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/healz/worker/internal/middleware"
	"github.com/healz/worker/internal/relay"
)

// checkTimeout bounds one look at the store.
const checkTimeout = 2 * time.Second

// Health is what the worker says of itself.
type Health struct {
	Ready bool `json:"ready"`
	// Parts says for each of consumer, store, bus and relay "ok", or what is wrong.
	Parts map[string]string `json:"parts"`
	// Events counts the messages since the start, by outcome.
	Events map[middleware.Outcome]int64 `json:"events"`
}

// Health looks at each part. The worker is ready when it can consume, relay (or another worker does) and reach its store.
func (w *Worker) Health(ctx context.Context) Health {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	state, relayErr := w.relay.Status()
	if state == relay.Starting && relayErr == nil {
		relayErr = errors.New("starting")
	}
	w.mu.Lock()
	consumer := w.consumer
	w.mu.Unlock()
	h := Health{Ready: true, Parts: map[string]string{}, Events: w.counts.Map()}
	for part, err := range map[string]error{
		"consumer": consumer, "store": w.parts.Inbox.Ping(ctx), "bus": w.parts.Bus.Ready(), "relay": relayErr,
	} {
		h.Parts[part] = "ok"
		if err != nil {
			h.Ready, h.Parts[part] = false, err.Error()
		}
	}
	if relayErr == nil {
		h.Parts["relay"] = fmt.Sprintf("ok (%s)", state)
	}
	return h
}

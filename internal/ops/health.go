// Package ops operates a worker, and serves its console, health and metrics over HTTP.
package ops

import (
	"context"
	"encoding/json"
	"net/http"
	"sync/atomic"

	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/worker"
)

// Reporter reports the health of a worker.
type Reporter interface {
	Health(ctx context.Context) worker.Health
}

// Health is the health of a worker that may still be starting. The zero value means that it is starting. It is safe for
// concurrent use.
type Health struct{ reporter atomic.Pointer[Reporter] }

// Report sets the reporter.
func (h *Health) Report(r Reporter) { h.reporter.Store(&r) }

func (h *Health) of(ctx context.Context) worker.Health {
	if r := h.reporter.Load(); r != nil {
		return (*r).Health(ctx)
	}
	return worker.Health{Parts: map[string]worker.Part{"worker": worker.StartingPart()}}
}

// handler serves /healthz (liveness), /readyz and /metrics. /readyz answers 200 if the worker is ready and 503 if not; its
// body is the state of each part as JSON. Why a part is not ok names servers and users: only those may see it who may read
// the console without a login.
func handler(h *Health, metrics http.Handler, detailed func(*http.Request) bool) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		respond(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, req *http.Request) {
		health := h.of(req.Context())
		status := http.StatusOK
		if !health.Ready {
			status = http.StatusServiceUnavailable
		}
		parts := make(map[string]string, len(health.Parts))
		for name, p := range health.Parts {
			if parts[name] = p.Public(); detailed(req) {
				parts[name] = p.String()
			}
		}
		respond(w, status, readiness{health.Ready, parts, health.Events})
	})
	return mux
}

// readiness is a [worker.Health] on the wire.
type readiness struct {
	Ready  bool                      `json:"ready"`
	Parts  map[string]string         `json:"parts"`
	Events map[observe.Outcome]int64 `json:"events"`
}

func respond(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client has disconnected
}

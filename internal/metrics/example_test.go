package metrics_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/metrics"
)

// Metrics are told of the handlers first, and then of each attempt; Handler serves Prometheus.
func Example() {
	m := metrics.New("v1.2.3")
	m.Handlers(map[string][]string{"welcome-patient": {"PatientRegistered"}})
	_, end := m.Attempt(context.Background(), "welcome-patient", events.Event{Type: "PatientRegistered"}, 1)
	end(nil)

	scraped := httptest.NewRecorder()
	m.Handler().ServeHTTP(scraped, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for line := range strings.Lines(scraped.Body.String()) {
		if strings.HasPrefix(line, "worker_handler_handled_total") {
			fmt.Print(line)
		}
	}
	// Output: worker_handler_handled_total{event_type="PatientRegistered",handler="welcome-patient"} 1
}

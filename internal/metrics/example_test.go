package metrics_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/healz/worker/internal/metrics"
)

// A dispatcher gets the watcher of each handler from Watch, and tells it of each attempt; Handler is what Prometheus asks.
func Example() {
	m := metrics.New("v1.2.3")
	welcome := m.Watch("welcome-patient", []string{"PatientRegistered"}, false)
	welcome.Tried("PatientRegistered", 1, 3*time.Millisecond, nil)

	scraped := httptest.NewRecorder()
	m.Handler().ServeHTTP(scraped, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for line := range strings.Lines(scraped.Body.String()) {
		if strings.HasPrefix(line, "worker_handler_handled_total") {
			fmt.Print(line)
		}
	}
	// Output: worker_handler_handled_total{event_type="PatientRegistered",handler="welcome-patient"} 1
}

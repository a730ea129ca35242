package doctor_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/doctor"
)

// The doctor says of a worker what that says of itself.
func TestWorkerThatAnswers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		body   string
		status doctor.Status
		says   string
	}{
		"ready":       {`{"ready":true,"parts":{"bus":"ok","consumer":"ok (standby: …)"}}`, doctor.OK, " is ready"},
		"unknown":     {`{"ready":false,"parts":{"bus":"down","queue":"unknown: it waits for the bus"}}`, doctor.Wrong, "bus: down"},
		"degraded":    {`{"ready":true,"parts":{"bus":"ok","dead_letters":"degraded since …"}}`, doctor.Warning, "dead_letters degraded since …"},
		"not ready":   {`{"ready":false,"parts":{"bus":"ok","store":"away"}}`, doctor.Wrong, "store: away"},
		"starting":    {`{"ready":false,"parts":{"worker":"starting"}}`, doctor.Wrong, "worker: starting"},
		"other JSON":  {`{"status":"up"}`, doctor.Unknown, "it is no worker"},
		"a page":      {`<html>`, doctor.Unknown, "no worker answers"},
		"nobody":      {"", doctor.Unknown, "no worker answers"},
		"no address":  {"", doctor.Unknown, "no worker answers"},
		"frozen":      {"", doctor.Warning, "does not answer within 5s"},
		"both faults": {`{"ready":false,"parts":{"store":"away","dead_letters":"degraded: x"}}`, doctor.Warning, "dead_letters degraded: x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
				require.Equal(t, "/readyz", request.URL.Path)
				if strings.HasPrefix(test.body, `{"ready":false`) {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
				if name == "frozen" {
					<-request.Context().Done()
				}
				_, _ = fmt.Fprint(w, test.body)
			}))
			t.Cleanup(server.Close)
			address := strings.TrimPrefix(server.URL, "http://")
			switch name {
			case "nobody":
				server.Close()
			case "no address":
				address = "%"
			}
			found := examined(slices.Collect(doctor.Examine(t.Context(), []doctor.Check{doctor.WorkerCheck(address)}, doctor.Timeout)))
			found.requireFinding(t, "worker", test.status, test.says)
		})
	}
}

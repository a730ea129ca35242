package ops

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/console"
	"github.com/healz/worker/internal/metrics"
	"github.com/healz/worker/internal/worker"
)

type reporter worker.Health

func (r reporter) Health(context.Context) worker.Health { return worker.Health(r) }

// /readyz tells everyone which part is down. Only who may read the console without a login sees why.
func TestReadinessNamesNoServer(t *testing.T) {
	t.Parallel()
	since := time.Date(2026, 11, 30, 21, 0, 0, 0, time.UTC)
	health := worker.Health{Parts: map[string]worker.Part{
		"store": {State: "down", Problem: "failed to connect to user=healz", Since: since}, "bus": {State: "ok"},
	}}
	const public, detailed = "down since 2026-11-30T21:00:00Z", "down since 2026-11-30T21:00:00Z: failed to connect to user=healz"
	loopback, any := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080}, &net.TCPAddr{IP: net.IPv4zero, Port: 8080}
	token := "a-token-of-16-characters"
	for name, test := range map[string]struct {
		access    console.Access
		listening net.Addr
		host      string
		want      string
	}{
		"loopback":               {console.Access{}, loopback, "localhost:8080", detailed},
		"a name that is rebound": {console.Access{}, loopback, "evil.example", public},
		"all addresses":          {console.Access{}, any, "localhost", public},
		"a console with a login": {console.Access{Token: token}, loopback, "localhost", public},
		"a handler of others":    {console.Access{}, nil, "localhost", public},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := New(Config{Access: test.access, Listening: test.listening, Metrics: metrics.New(""), Logger: slog.New(slog.DiscardHandler)})
			ask := func() (int, string) {
				w := httptest.NewRecorder()
				r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", nil)
				r.Host = test.host
				s.ServeHTTP(w, r)
				var said struct{ Parts map[string]string }
				require.NoError(t, json.Unmarshal(w.Body.Bytes(), &said))
				return w.Code, said.Parts["worker"] + said.Parts["store"]
			}
			code, state := ask()
			require.Equal(t, http.StatusServiceUnavailable, code)
			require.Equal(t, "starting", state)
			s.health.Report(reporter(health))
			code, state = ask()
			require.Equal(t, http.StatusServiceUnavailable, code)
			require.Equal(t, test.want, state)
		})
	}
}

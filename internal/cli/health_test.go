package cli

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/examples/clinic"
)

func TestHealth(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		host   string // on which the worker listens
		status int    // 0: it does not answer
		code   int
		says   string
	}{
		"alive":                 {"127.0.0.1", http.StatusOK, exitOK, "is alive"},
		"alive, all addresses":  {"0.0.0.0", http.StatusOK, exitOK, "is alive"},
		"alive, no host":        {"", http.StatusOK, exitOK, "is alive"},
		"of another program":    {"127.0.0.1", http.StatusNotFound, exitFailed, "/healthz answers with status 404"},
		"frozen":                {"127.0.0.1", 0, exitFailed, "deadline exceeded"},
		"nobody listens":        {"127.0.0.1:1", 0, exitFailed, "refused"},
		"an address of no port": {"localhost:", 0, exitFailed, "no worker is alive"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := test.host
			if !strings.Contains(test.host, ":") {
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
					require.Equal(t, "/healthz", request.URL.Path)
					if test.status == 0 {
						<-request.Context().Done()
						return
					}
					w.WriteHeader(test.status)
				}))
				t.Cleanup(server.Close)
				_, port, err := net.SplitHostPort(server.Listener.Addr().String())
				require.NoError(t, err)
				address = net.JoinHostPort(test.host, port)
			}
			var out, errOut strings.Builder
			code := execute(t.Context(), newRoot(clinic.Register), []string{"health", "--http-addr", address}, nil, &out, &errOut)
			require.Equal(t, test.code, code, errOut.String())
			require.Contains(t, out.String()+errOut.String(), test.says)
			require.Equal(t, 1, strings.Count(out.String()+errOut.String(), "\n"), "one line")
		})
	}
}

// A secret that cannot be read ends other commands, and makes no living worker look dead.
func TestHealthReadsNoSecrets(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(server.Close)
	p := newProgram(t, "DATABASE_URL=@/nowhere/database-url", "HTTP_ADDR="+server.Listener.Addr().String())
	require.Contains(t, p.must("", "health"), "is alive")
	r := p.run("", "events")
	require.Equal(t, exitUsage, r.code)
	require.Contains(t, r.err, "environment variable DATABASE_URL: ")
	require.Contains(t, r.err, "open /nowhere/database-url: no such file or directory")
}

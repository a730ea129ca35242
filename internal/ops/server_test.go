package ops_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/ops"
)

func TestServerIsBounded(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	server := httptest.NewUnstartedServer(nil)
	server.Config = ops.Server(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		panic("a page broke")
	}), slog.New(slog.NewJSONHandler(&log, nil)))
	require.Positive(t, server.Config.ReadHeaderTimeout)
	require.Positive(t, server.Config.ReadTimeout)
	require.Positive(t, server.Config.WriteTimeout)
	require.Positive(t, server.Config.IdleTimeout)
	server.Start()
	t.Cleanup(server.Close)

	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
	require.NoError(t, err)
	request.Header.Set("X-Much", strings.Repeat("x", 40<<10))
	response, err := server.Client().Do(request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, response.StatusCode)

	request.Header.Del("X-Much")
	_, err = server.Client().Do(request) //nolint:bodyclose // there is no response
	require.Error(t, err)
	server.Close()
	require.Contains(t, log.String(), `"level":"WARN","msg":"http: panic serving`)
}

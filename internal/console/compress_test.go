package console

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

func TestFormTokensAreMasked(t *testing.T) {
	t.Parallel()
	const token = "a token of a session"
	one, other := masked(token), masked(token)
	require.NotEqual(t, one, other)
	require.NotContains(t, one, token)
	require.Equal(t, token, unmasked(one))
	require.Equal(t, token, unmasked(other))
	require.Empty(t, masked(""))
	for _, wrong := range []string{"", "x", "!", token, one[1:], one + "AA"} {
		require.NotEqual(t, token, unmasked(wrong))
	}
}

func TestResponsesAreCompressedIfThatIsAccepted(t *testing.T) {
	t.Parallel()
	page := strings.Repeat("<p>a page</p>", 1000)
	for accepted, want := range map[string]bool{"": false, "br": false, "gzip": true, "deflate, GZIP;q=0.5": true, "gzip; q=0": false} {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.Header.Set("Accept-Encoding", accepted)
		respond(w, r, http.StatusTeapot, []byte(page))
		require.Equal(t, http.StatusTeapot, w.Code)
		require.Equal(t, want, w.Header().Get("Content-Encoding") == "gzip", accepted)
		require.Equal(t, fmt.Sprint(w.Body.Len()), w.Header().Get("Content-Length"))
		body := io.Reader(w.Body)
		if want {
			var err error
			body, err = gzip.NewReader(w.Body)
			require.NoError(t, err)
		}
		read, err := io.ReadAll(body)
		require.NoError(t, err)
		require.Equal(t, page, string(read))
	}
}

func TestAssetsAreKeptByTheirHash(t *testing.T) {
	t.Parallel()
	assets, err := readAssets(fstest.MapFS{"a.css": {Data: []byte("a {}")}, "b.css": {Data: []byte("b {}")}})
	require.NoError(t, err)
	require.NotEqual(t, assets["a.css"].version, assets["b.css"].version)
	c := &Console{assets: assets}
	for query, kept := range map[string]bool{"?v=" + assets["a.css"].version: true, "?v=" + assets["b.css"].version: false, "": false} {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/assets/a.css"+query, nil)
		r.SetPathValue("name", "a.css")
		require.NoError(t, c.asset(w, r))
		require.Equal(t, "a {}", w.Body.String())
		require.Equal(t, "text/css; charset=utf-8", w.Header().Get("Content-Type"))
		require.Equal(t, kept, strings.Contains(w.Header().Get("Cache-Control"), "immutable"), query)
	}
}

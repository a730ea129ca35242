package cli

import (
	"html"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

func TestConsoleIsServedWhereItIsSafe(t *testing.T) {
	t.Parallel()
	const token = "a-token-of-more-than-16-characters"
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte(token+"\n"), 0o600))
	for name, test := range map[string]struct {
		args   []string
		status int
		says   string
	}{
		"loopback":                {nil, http.StatusOK, "Overview"},
		"all addresses":           {[]string{"--http-addr", "0.0.0.0:0"}, http.StatusNotFound, "without a token"},
		"all addresses, writable": {[]string{"--http-addr", "[::]:0", "--console-write"}, http.StatusNotFound, "without a token"},
		"all addresses, by token": {[]string{"--http-addr", "0.0.0.0:0", "--console-token", "@" + file}, http.StatusOK, "Sign in"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := embedded(t)
			w := p.start(test.args...)
			var status int
			var body string
			require.Eventually(t, func() bool {
				status, body = w.get("/")
				return status != http.StatusServiceUnavailable
			}, patience, tick)
			require.Equal(t, test.status, status)
			require.Contains(t, body, test.says)
			status, _ = w.get("/healthz")
			require.Equal(t, http.StatusOK, status)
			w.stop()
			require.NotContains(t, w.log.String(), token)
		})
	}
	for _, args := range [][]string{
		{"--console-token", "shorter-than-16"},
		{"--console-write-token", "shorter-than-16"},
		{"--console-token", "@" + file + "-missing"},
		{"--console-token", token, "--console-write-token", token},
	} {
		r := embedded(t).run("", append([]string{"run", "--http-addr", "127.0.0.1:0"}, args...)...)
		require.Equal(t, exitUsage, r.code, r.err)
		require.NotContains(t, r.err, args[1]+" ")
		require.NotContains(t, r.err, "shorter-than-16")
		require.NotContains(t, r.err, token)
	}
}

func TestConsoleReplaysDeadLetters(t *testing.T) {
	t.Parallel()
	platforms(t, func(p *program) {
		w := p.start("--chaos", "--retry-attempts", "1", "--console-write")
		e := p.append(registration(uuid.NewString(), `{"name":"Ana"}`, `,"metadata":{"fail_times":1}`))[0]
		letter := p.awaitLetters(1)[0]

		status, page := w.get("/dead-letters/letter/" + url.PathEscape(letter.ID))
		require.Equal(p.t, http.StatusOK, status)
		require.Contains(p.t, page, "chaos: failure 1 of 1")
		_, page = w.get("/dead-letters/replay?id=" + url.QueryEscape(letter.ID))
		form := url.Values{}
		for _, name := range []string{"form_token", "filter", "count"} {
			found := regexp.MustCompile(`name="` + name + `" value="([^"]+)"`).FindStringSubmatch(page)
			require.Len(p.t, found, 2, page)
			form.Set(name, html.UnescapeString(found[1]))
		}
		replay := w.post("/dead-letters/replay", form)
		require.Regexp(p.t, "/replays/", replay)
		require.Eventually(p.t, func() bool {
			_, page = w.get(replay)
			return strings.Contains(page, "<b>1</b> handled")
		}, patience, tick)
		p.awaitFollowUp(e, "WelcomeMessageRequested")
		w.stop()
		require.NotContains(p.t, w.log.String(), "Ana")
	})
}

// post submits a form, and returns the path of the redirect.
func (r *running) post(path string, form url.Values) string {
	r.t.Helper()
	response, err := http.PostForm(r.url+path, form)
	require.NoError(r.t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(r.t, err)
	require.Equal(r.t, http.StatusOK, response.StatusCode, string(body))
	return response.Request.URL.Path
}

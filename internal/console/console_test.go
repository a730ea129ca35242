package console_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"html"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/console"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store/sqlite"
	"github.com/healz/worker/internal/worker"
)

const (
	readToken  = "read-token-of-16+"
	writeToken = "write-token-of-16+"
	secret     = "Anastasia Nobody"
)

// site is a console on a separate store, in which an appointment failed.
type site struct {
	*httptest.Server
	t     *testing.T
	log   *logBuffer
	store *sqlite.Store
	table *deadletter.Table
	// Scheduled and its effect Failing have the same correlation id; the latter has a dead letter.
	Scheduled, Failing events.Event
	Letter             string
}

type logBuffer struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.String()
}

func newSite(t *testing.T, access console.Access) *site {
	t.Helper()
	return newSiteWith(t, console.Config{Access: access})
}

// newSiteWith is newSite with a config.
func newSiteWith(t *testing.T, config console.Config) *site {
	t.Helper()
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "events.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	require.NoError(t, s.Migrate(t.Context()))
	w := &site{t: t, log: &logBuffer{}, store: s, table: deadletter.NewTable(s.SQL())}
	w.fill()
	config.Store, config.Letters, config.Audit, config.Logger = s, w.table, audit.NewLog(s.SQL()), w.logger()
	config.Status = func(context.Context) console.Status { return console.StatusOf(worker.Health{Ready: true}, nil, true) }
	config.Appender = s
	config.Aggregates = []func() events.Stateful{func() events.Stateful { return clinic.NewAppointment() }}
	w.Server = w.serve(config)
	return w
}

func (s *site) logger() *slog.Logger { return slog.New(slog.NewJSONHandler(s.log, nil)) }

// serve starts a console. A second one on the same store is like the console of another worker.
func (s *site) serve(config console.Config) *httptest.Server {
	s.t.Helper()
	c, err := console.New(s.t.Context(), config)
	require.NoError(s.t, err)
	server := httptest.NewServer(c)
	s.t.Cleanup(server.Close)
	s.t.Cleanup(c.Close)
	return server
}

// fill appends an event and its effect, which is a dead letter. Their data contains the secret.
func (s *site) fill() {
	s.t.Helper()
	origin := events.Origin{TenantID: uuid.New()}
	appointment := clinic.NewAppointment()
	require.NoError(s.t, events.Begin(appointment, uuid.New(), origin))
	require.NoError(s.t, appointment.Schedule(uuid.New(), time.Date(2031, 4, 5, 9, 30, 0, 0, time.UTC)))
	require.NoError(s.t, appointment.Cancel(secret))
	raised := appointment.Uncommitted()
	s.Scheduled = raised[0]
	follow, err := events.Follow(s.Scheduled, clinic.WelcomeMessageRequested{Name: secret})
	require.NoError(s.t, err)
	s.Failing = follow[0]
	s.Failing.Type = "<script>alert(1)</script>"
	s.Failing.Metadata = json.RawMessage(`{"note":"` + secret + `"}`)
	require.NoError(s.t, s.store.AppendMany(s.t.Context(), append(raised, s.Failing)))
	s.Letter = "letter-1"
	s.ingest(deadletter.Letter{
		ID: s.Letter, Body: bodyOf(s.t, s.Failing), Source: "lane", Headers: map[string]any{"note": secret},
		Failure: deadletter.Failure{Reason: "<b>no</b> address", Handler: "send-message", Attempts: 3},
	})
}

func bodyOf(t *testing.T, e events.Event) []byte {
	t.Helper()
	body, err := json.Marshal(e)
	require.NoError(t, err)
	return body
}

// ingest adds dead letters. Without a time of failure it is now.
func (s *site) ingest(letters ...deadletter.Letter) {
	s.t.Helper()
	arrivals := make([]deadletter.Arrival, len(letters))
	for i, l := range letters {
		arrivals[i].Letter = deadletter.Complete(l)
	}
	require.NoError(s.t, s.table.Ingest(s.t.Context(), arrivals))
}

// pages are the addresses of all kinds of pages.
func (s *site) pages() []string {
	aggregate := "/aggregates/" + s.Scheduled.AggregateType + "/" + s.Scheduled.AggregateID.String()
	return []string{
		"/", "/events", "/events?type=AppointmentScheduled", "/events?from=2020-01-01T00:00&until=2020-01-02T00:00", "/events?tenant=x",
		"/events/" + s.Failing.ID.String(), "/events/" + uuid.NewString(), aggregate, "/traces/" + s.Failing.CorrelationID.String(),
		"/dead-letters", "/dead-letters?handler=send-message", "/dead-letters/letter/" + s.Letter, "/dead-letters/letter/none", "/replays/none",
		"/nowhere",
	}
}

// writes are the addresses that change or reveal something.
func (s *site) writes() []string {
	return []string{
		"/events/" + s.Failing.ID.String() + "/reveal",
		"/aggregates/" + s.Scheduled.AggregateType + "/" + s.Scheduled.AggregateID.String() + "/reveal",
		"/dead-letters/letter/" + s.Letter + "/reveal", "/dead-letters/replay", "/dead-letters/try", "/dead-letters/archive", "/dead-letters/discard",
		"/dead-letters/restore", "/replays/none/stop", "/append",
	}
}

// visitor is a browser without a screen.
type visitor struct {
	*http.Client
	s *site
}

func (s *site) visitor() visitor {
	s.t.Helper()
	jar, err := cookiejar.New(nil)
	require.NoError(s.t, err)
	return visitor{&http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, s}
}

// do returns the response without elements that isolate names, which are in each page.
func (v visitor) do(r *http.Request) (*http.Response, string) {
	v.s.t.Helper()
	response, body := v.asItIs(r)
	return response, strings.NewReplacer("<bdi>", "", "</bdi>", "").Replace(body)
}

func (v visitor) asItIs(r *http.Request) (*http.Response, string) {
	v.s.t.Helper()
	response, err := v.Do(r)
	require.NoError(v.s.t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(v.s.t, err)
	return response, string(body)
}

func (v visitor) get(path string, change ...func(*http.Request)) (*http.Response, string) {
	v.s.t.Helper()
	r, err := http.NewRequest(http.MethodGet, v.s.URL+path, nil)
	require.NoError(v.s.t, err)
	for _, c := range change {
		c(r)
	}
	return v.do(r)
}

func (v visitor) post(path string, form url.Values, change ...func(*http.Request)) (*http.Response, string) {
	v.s.t.Helper()
	r, err := http.NewRequest(http.MethodPost, v.s.URL+path, strings.NewReader(form.Encode()))
	require.NoError(v.s.t, err)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", v.s.URL)
	for _, c := range change {
		c(r)
	}
	return v.do(r)
}

// formToken is the token in the forms of a page.
func (v visitor) formToken(path string) string {
	v.s.t.Helper()
	_, body := v.get(path)
	found := regexp.MustCompile(`name="form_token" value="([^"]+)"`).FindStringSubmatch(body)
	require.Len(v.s.t, found, 2, body)
	return found[1]
}

// logIn returns a visitor who has logged in.
func (s *site) logIn(token string) visitor {
	s.t.Helper()
	v := s.visitor()
	response, _ := v.post("/login", url.Values{"who": {"Kim"}, "token": {token}, "form_token": {v.formToken("/login")}})
	require.Equal(s.t, http.StatusSeeOther, response.StatusCode)
	require.Equal(s.t, "/", response.Header.Get("Location"))
	return v
}

func TestEachPageIsGuarded(t *testing.T) {
	t.Parallel()
	for name, access := range map[string]console.Access{"open": {Write: true}, "by token": {Token: readToken}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, access)
			v := s.visitor()
			for _, path := range append(s.pages(), "/login", "/assets/console.css", "/assets/console.js") {
				response, body := v.get(path)
				for header, want := range map[string]string{
					"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Cache-Control": "no-store",
					"Referrer-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
				} {
					require.Equal(t, want, response.Header.Get(header), "%s of %s", header, path)
				}
				policy := response.Header.Get("Content-Security-Policy")
				require.Contains(t, policy, "default-src 'none'")
				require.Contains(t, policy, "frame-ancestors 'none'")
				require.NotContains(t, policy, "unsafe")
				require.NotRegexp(t, `(?i)<script>|<style|\sstyle=|\son[a-z]+=|javascript:|https?://`, strings.ReplaceAll(body, s.URL, ""), path)
			}
		})
	}
}

func TestPagesKeepDataToThemselves(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{Write: true})
	v := s.visitor()
	for _, path := range s.pages() {
		response, body := v.get(path)
		require.Less(t, response.StatusCode, 500, path)
		require.NotContains(t, body, secret, path)
		require.NotContains(t, body, "<b>no</b>", path)
	}
	require.NotContains(t, s.log.String(), "revealed")

	aggregate := s.Scheduled.AggregateID.String()
	for path, logged := range map[string]string{s.writes()[0]: s.Failing.ID.String(), s.writes()[1]: s.Scheduled.ID.String(), s.writes()[2]: s.Letter} {
		response, body := v.post(path, url.Values{"form_token": {v.formToken("/")}})
		require.Equal(t, http.StatusOK, response.StatusCode, path)
		require.Contains(t, body, secret, path)
		log := s.log.String()
		require.Contains(t, log, "data was revealed")
		require.Contains(t, log, logged)
		require.Contains(t, log, `"who":"local user","client":"127.0.0.1"`)
	}
	require.Contains(t, s.log.String(), aggregate)
	require.NotContains(t, s.log.String(), secret)
}

func TestAggregateShowsItsStates(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{Write: true})
	v := s.visitor()
	_, body := v.post(s.writes()[1], url.Values{"form_token": {v.formToken("/")}})
	states := regexp.MustCompile(`(?s)state after it</h3><pre[^>]*>(.*?)</pre>`).FindAllStringSubmatch(body, -1)
	require.Len(t, states, 2)
	require.Contains(t, states[0][1], `&#34;cancelled&#34;: false`)
	require.Contains(t, states[1][1], `&#34;cancelled&#34;: true`)
	require.Contains(t, states[1][1], `2031-04-05T09:30:00Z`)
}

func TestOpenConsoleAnswersToLocalNamesAlone(t *testing.T) {
	t.Parallel()
	open, byToken := newSite(t, console.Access{}), newSite(t, console.Access{Token: readToken})
	for host, local := range map[string]bool{
		"localhost": true, "localhost:8080": true, "LOCALHOST:1": true, "127.0.0.1:8080": true, "127.9.9.9": true, "[::1]:8080": true, "[::1]": true,
		"rebound.example": false, "rebound.example:8080": false, "localhost.rebound.example": false, "10.0.0.1:8080": false, "0.0.0.0:8080": false,
	} {
		named := func(r *http.Request) { r.Host = host }
		response, body := open.visitor().get("/events", named)
		require.Equal(t, local, response.StatusCode == http.StatusOK, host)
		require.Equal(t, local, strings.Contains(body, "AppointmentScheduled"), host)
		response, _ = byToken.visitor().get("/login", named)
		require.Equal(t, http.StatusOK, response.StatusCode, host)
	}
}

func TestLogin(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{Token: readToken, WriteToken: writeToken})
	v := s.visitor()
	for _, path := range s.pages() {
		response, body := v.get(path)
		require.Equal(t, http.StatusSeeOther, response.StatusCode, path)
		require.Regexp(t, `^/login(\?next=%2F\S+)?$`, response.Header.Get("Location"))
		require.NotContains(t, body, "<h1")
	}
	response, _ := v.get("/live/overview")
	require.Equal(t, http.StatusUnauthorized, response.StatusCode)
	form := func(who, token string) url.Values {
		return url.Values{"who": {who}, "token": {token}, "form_token": {v.formToken("/login")}}
	}
	response, _ = v.post("/login", form("Kim", "no token of this site"))
	require.Equal(t, http.StatusUnauthorized, response.StatusCode)
	require.Empty(t, response.Cookies())
	response, _ = v.post("/login", form("Kim", ""))
	require.Equal(t, http.StatusUnauthorized, response.StatusCode)
	response, _ = v.post("/login", form(" \n", readToken))
	require.Equal(t, http.StatusUnprocessableEntity, response.StatusCode)

	for token, role := range map[string]string{readToken: "reader", writeToken: "writer"} {
		response, _ := v.post("/login", form("Kim", token))
		require.Equal(t, http.StatusSeeOther, response.StatusCode)
		require.Len(t, response.Cookies(), 1)
		cookie := response.Cookies()[0]
		require.True(t, cookie.HttpOnly)
		require.False(t, cookie.Secure)
		require.Equal(t, http.SameSiteLaxMode, cookie.SameSite)
		require.NotContains(t, cookie.Value, token)
		_, body := v.get("/")
		require.Contains(t, body, "Kim · "+role)
		require.NotContains(t, body, token)

		out := v.formToken("/")
		response, _ = v.post("/logout", url.Values{"form_token": {out}})
		require.Equal(t, http.StatusSeeOther, response.StatusCode)
		response, _ = v.get("/")
		require.Equal(t, "/login", response.Header.Get("Location"))
		response, _ = s.visitor().get("/", func(r *http.Request) { r.AddCookie(cookie) })
		require.Equal(t, "/login", response.Header.Get("Location"), "who has signed out cannot come back with the cookie")
	}
	response, _ = v.post("/login", form("Kim", readToken), func(r *http.Request) { r.Header.Set("X-Forwarded-Proto", "https") })
	require.True(t, response.Cookies()[0].Secure)
	for _, token := range []string{readToken, writeToken, "no token of this site"} {
		require.NotContains(t, s.log.String(), token)
	}
	require.Contains(t, s.log.String(), "a login failed")
}

// A link to a page leads there after the login, and never to another site.
func TestLoginLeadsOn(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{Token: readToken})
	for next, want := range map[string]string{
		"/events?type=a&tenant=": "/events?type=a&tenant=", "": "/", "//evil.example": "/", "https://evil.example": "/", "/\t/evil.example": "/",
	} {
		v := s.visitor()
		_, body := v.get("/login?" + url.Values{"next": {next}}.Encode())
		require.Contains(t, body, `name="next" value="`+html.EscapeString(want)+`"`)
		form := url.Values{"who": {"Kim"}, "token": {readToken}, "form_token": {v.formToken("/login")}, "next": {next}}
		response, _ := v.post("/login", form)
		require.Equal(t, want, response.Header.Get("Location"))
		response, _ = v.get("/login?" + url.Values{"next": {next}}.Encode())
		require.Equal(t, want, response.Header.Get("Location"))
	}
}

func TestForgedSessions(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{Token: readToken, WriteToken: writeToken})
	v := s.logIn(readToken)
	base, err := url.Parse(s.URL)
	require.NoError(t, err)
	genuine := v.Jar.Cookies(base)[0]
	other := newSite(t, console.Access{Token: readToken}).logIn(readToken)
	otherBase, err := url.Parse(other.s.URL)
	require.NoError(t, err)
	for name, value := range map[string]string{
		"nothing": "", "less": genuine.Value[1:], "more": genuine.Value + "A", "another one": strings.Repeat("A", len(genuine.Value)),
		"of another process": other.Jar.Cookies(otherBase)[0].Value,
	} {
		response, _ := s.visitor().get("/events", func(r *http.Request) { r.AddCookie(&http.Cookie{Name: genuine.Name, Value: value}) })
		require.Equal(t, http.StatusSeeOther, response.StatusCode, name)
	}
	response, _ := s.visitor().get("/events", func(r *http.Request) { r.AddCookie(genuine) })
	require.Equal(t, http.StatusOK, response.StatusCode)
}

func TestLoginIsThrottled(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{Token: readToken})
	v := s.visitor()
	token := v.formToken("/login")
	try := func(given string) int {
		response, _ := v.post("/login", url.Values{"who": {"Kim"}, "token": {given}, "form_token": {token}})
		if response.StatusCode == http.StatusTooManyRequests {
			require.NotEmpty(t, response.Header.Get("Retry-After"))
		}
		return response.StatusCode
	}
	for range 5 {
		require.Equal(t, http.StatusUnauthorized, try("no token of this site"))
	}
	require.Equal(t, http.StatusTooManyRequests, try("no token of this site"))
	require.Equal(t, http.StatusTooManyRequests, try(readToken))
}

func TestOtherSitesChangeNothing(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*site{
		"open": newSite(t, console.Access{Write: true}), "by token": newSite(t, console.Access{WriteToken: writeToken}),
	} {
		v := s.visitor()
		if name == "by token" {
			v = s.logIn(writeToken)
		}
		token := v.formToken("/")
		for _, path := range append(s.writes(), "/logout", "/theme") {
			for attack, change := range map[string]func(*http.Request){
				"another origin":       func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") },
				"the null origin":      func(r *http.Request) { r.Header.Set("Origin", "null") },
				"says the browser":     func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
				"of the same registry": func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") },
			} {
				response, _ := v.post(path, url.Values{"form_token": {token}}, change)
				require.Equal(t, http.StatusForbidden, response.StatusCode, "%s: %s: %s", name, path, attack)
			}
			for _, wrong := range []string{"", "x", token + "x"} {
				response, _ := v.post(path, url.Values{"form_token": {wrong}})
				require.Equal(t, http.StatusForbidden, response.StatusCode, "%s: %s with the token %q", name, path, wrong)
			}
			response, _ := v.get(path)
			require.Equal(t, path == "/append", response.StatusCode == http.StatusOK, "GET %s: only that is a form", path)
		}
		require.NotContains(t, s.log.String(), "revealed")
		require.NotContains(t, s.log.String(), "a replay")
	}
	s := newSite(t, console.Access{WriteToken: writeToken})
	one, other := s.logIn(writeToken), s.logIn(writeToken)
	response, _ := one.post(s.writes()[0], url.Values{"form_token": {other.formToken("/")}})
	require.Equal(t, http.StatusForbidden, response.StatusCode)
}

func TestReadersOnlyRead(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*site{
		"open": newSite(t, console.Access{}), "by token": newSite(t, console.Access{Token: readToken, WriteToken: writeToken}),
	} {
		v := s.visitor()
		if name == "by token" {
			v = s.logIn(readToken)
		}
		for _, path := range s.pages() {
			_, body := v.get(path)
			require.NotRegexp(t, `action="[^"]*/(reveal|replay|stop)"`, body, path)
		}
		for _, path := range s.writes() {
			response, body := v.post(path, url.Values{"form_token": {v.formToken("/")}})
			require.Equal(t, http.StatusForbidden, response.StatusCode, path)
			require.NotContains(t, body, secret)
		}
	}
	s := newSite(t, console.Access{Token: readToken, Write: true})
	response, _ := s.logIn(readToken).get("/dead-letters")
	require.Equal(t, http.StatusOK, response.StatusCode)
}

func TestThemeIsRemembered(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{})
	v := s.visitor()
	token := v.formToken("/")
	for back, want := range map[string]string{
		"/events?type=a": "/events?type=a", "//evil.example": "/", "https://evil.example": "/", `/\evil.example`: "/", "": "/", "/a\r\nb": "/",
		"/\t/evil.example": "/", "///evil.example": "/evil.example", "//user@evil.example/a": "/",
	} {
		response, _ := v.post("/theme", url.Values{"form_token": {token}, "theme": {"dark"}, "back": {back}})
		require.Equal(t, want, response.Header.Get("Location"), back)
	}
	_, body := v.get("/")
	require.Contains(t, body, `data-theme="dark"`)
	v.post("/theme", url.Values{"form_token": {token}, "theme": {`"><script>`}})
	_, body = v.get("/")
	require.NotContains(t, body, "data-theme")
}

func TestSearchPages(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{})
	tenant := uuid.New()
	for range 3 {
		var batch []events.Event
		for range 40 {
			e, err := events.New(events.Origin{TenantID: tenant}, "Patient", uuid.New(), 1, clinic.PatientRegistered{Name: secret})
			require.NoError(t, err)
			batch = append(batch, e)
		}
		require.NoError(t, s.store.AppendMany(t.Context(), batch))
	}
	v := s.visitor()
	seen := map[string]bool{}
	next := "/events?tenant=" + tenant.String()
	for pages := 1; next != ""; pages++ {
		response, body := v.get(next)
		require.Equal(t, http.StatusOK, response.StatusCode)
		for _, found := range regexp.MustCompile(`href="/events/([0-9a-f-]{36})"`).FindAllStringSubmatch(body, -1) {
			require.False(t, seen[found[1]], "an event is on two pages")
			seen[found[1]] = true
		}
		next = ""
		if found := regexp.MustCompile(`rel="next" href="([^"]+)"`).FindStringSubmatch(body); found != nil {
			next = strings.ReplaceAll(found[1], "&amp;", "&")
		}
		require.LessOrEqual(t, pages, 3)
	}
	require.Len(t, seen, 120)

	for query, problem := range map[string]string{
		"tenant=x": "Tenant must be a UUID", "from=yesterday": "From must be a time", "after=x": "is not a cursor", "aggregate=x": "must be a UUID",
	} {
		response, body := v.get("/events?" + query)
		require.Equal(t, http.StatusBadRequest, response.StatusCode)
		require.Contains(t, body, problem)
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, console.Config{Types: []string{"PatientRegistered"}, Handlers: []string{"welcome-patient", "send-message"}})
	letter, err := s.table.Find(t.Context(), s.Letter)
	require.NoError(t, err)
	aggregate := s.Scheduled.AggregateID.String()
	ulid := "01M8Q4W459K5KVTT4PTQGVVJ4R"
	s.ingest(deadletter.Letter{ID: ulid, Body: []byte("no JSON"), Failure: deadletter.Failure{Handler: "billing/charge", Reason: "no JSON"}})
	foreign := s.Scheduled // of another store, with two letters
	foreign.ID, foreign.AggregateID, foreign.CorrelationID, foreign.TenantID = uuid.New(), uuid.New(), uuid.New(), uuid.New()
	for _, handler := range []string{"one", "two"} {
		s.ingest(deadletter.Letter{Body: bodyOf(t, foreign), Failure: deadletter.Failure{Handler: handler, Reason: "x"}})
	}
	_, err = s.table.PutAside(t.Context(), deadletter.Filter{IDs: []string{ulid}}, deadletter.Archived, audit.Actor{By: "Kim", Reason: "x"})
	require.NoError(t, err)
	for text, target := range map[string]string{
		strings.ToUpper(s.Failing.ID.String()):      "/events/" + s.Failing.ID.String(),
		"Appointment/" + aggregate:                  "/aggregates/Appointment/" + aggregate,
		"appointment/" + strings.ToUpper(aggregate): "/aggregates/Appointment/" + aggregate,
		"…" + s.Failing.ID.String()[28:]:            "/events/" + s.Failing.ID.String(),
		s.Failing.ID.String()[28:]:                  "/events/" + s.Failing.ID.String(),
		"..." + aggregate[26:]:                      "/aggregates/Appointment/" + aggregate,
		"…" + s.Failing.CorrelationID.String()[28:]: "/traces/" + s.Failing.CorrelationID.String(),
		"…" + s.Scheduled.TenantID.String()[28:]:    "/events?tenant=" + s.Scheduled.TenantID.String(),
		s.Letter:                                     "/dead-letters/letter/" + s.Letter,
		strings.ToLower(ulid):                        "/dead-letters/letter/" + ulid,
		letter.Group:                                 "/dead-letters?group=" + letter.Group,
		"…" + ulid[18:]:                              "/dead-letters/letter/" + ulid,
		"Appointment …" + aggregate[28:]:             "/aggregates/Appointment/" + aggregate,
		"Appointment/…" + aggregate[28:]:             "/aggregates/Appointment/" + aggregate,
		foreign.CorrelationID.String():               "/traces/" + foreign.CorrelationID.String(),
		foreign.AggregateID.String():                 "/dead-letters?aggregate=" + foreign.AggregateID.String() + "&state=any",
		foreign.TenantID.String():                    "/dead-letters?state=any&tenant=" + foreign.TenantID.String(),
		foreign.ID.String():                          "/traces/" + foreign.ID.String(),
		strings.ToUpper(letter.Group):                "/dead-letters?group=" + letter.Group,
		"Send-Message":                               "/dead-letters?handler=send-message",
		"billing/charge":                             "/dead-letters?handler=billing%2Fcharge",
		"patientregistered":                          "/events?type=PatientRegistered",
		"APPOINTMENTSCHEDULED":                       "/events?type=AppointmentScheduled",
		s.Failing.ID.String():                        "/events/" + s.Failing.ID.String(),
		s.Failing.CorrelationID.String():             "/traces/" + s.Failing.CorrelationID.String(),
		s.Scheduled.AggregateID.String():             "/aggregates/Appointment/" + s.Scheduled.AggregateID.String(),
		s.Scheduled.TenantID.String():                "/events?tenant=" + s.Scheduled.TenantID.String(),
		"AppointmentScheduled":                       "/events?type=AppointmentScheduled",
		"  " + s.Failing.ID.String() + "\t":          "/events/" + s.Failing.ID.String(),
		"import-" + s.Failing.CorrelationID.String(): "/traces/" + s.Failing.CorrelationID.String(),
	} {
		response, _ := s.visitor().get("/find?q=" + url.QueryEscape(text))
		require.Equal(t, http.StatusSeeOther, response.StatusCode, text)
		require.Equal(t, target, response.Header.Get("Location"), text)
	}
	for text, similar := range map[string]string{
		uuid.NewString(): "", "Patient/" + aggregate: "", "…000000000001": "", "xyz": "", "<b>": "", "": "",
		"patient":   `href="/events?type=PatientRegistered">PatientRegistered</a>`,
		"Scheduled": `href="/events?type=AppointmentScheduled">AppointmentScheduled</a>`,
	} {
		response, body := s.visitor().get("/find?q=" + url.QueryEscape(text))
		require.Equal(t, http.StatusNotFound, response.StatusCode, text)
		require.Contains(t, body, "Nothing found")
		require.Contains(t, body, similar)
		require.Equal(t, similar != "", strings.Contains(body, "Similar names"), text)
	}
	_, body := s.visitor().get("/")
	require.Contains(t, body, `<option value="welcome-patient"></option>`)
}

func TestOverviewIsLive(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{})
	response, err := http.Get(s.URL + "/live/overview")
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, "text/event-stream", response.Header.Get("Content-Type"))
	lines := bufio.NewScanner(response.Body)
	await := func(text string) {
		for lines.Scan() {
			if strings.Contains(lines.Text(), text) {
				return
			}
		}
		require.Fail(t, "the stream ended before it said "+text)
	}
	await("event: part")
	await("AppointmentScheduled")
	e, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, clinic.PatientRegistered{Name: secret})
	require.NoError(t, err)
	require.NoError(t, s.store.Append(t.Context(), e))
	await(e.ID.String())
}

func TestReplayIsAJob(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{Write: true})
	v := s.visitor()
	form := v.confirmation("replay", "id="+s.Letter)
	form.Set("max_failures", "1")
	form.Set("rate", "5")
	response, _ := v.post("/dead-letters/replay", form)
	require.Equal(t, http.StatusSeeOther, response.StatusCode)
	page := response.Header.Get("Location")
	require.Regexp(t, `^/replays/\w+$`, page)
	says := func(texts ...string) {
		require.Eventually(t, func() bool {
			_, body := v.get(page)
			return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(body, text) })
		}, patience, 50*time.Millisecond, "%s", texts)
	}
	says("waiting for a worker", "no worker leads the relay of this store", "dead letter "+s.Letter, "<b>1</b> chosen")
	response, _ = v.post(page+"/stop", url.Values{"form_token": {v.formToken("/")}})
	require.Equal(t, page, response.Header.Get("Location"))
	says("stopped")

	all := []string{"all=yes"}
	for _, option := range []string{"max_failures=-1", "rate=0", "rate=x", "rate=NaN", "rate=Inf", "rate=1e-300"} {
		form := v.confirmation("replay", "all=yes")
		name, value, _ := strings.Cut(option, "=")
		form.Set(name, value)
		response, _ := v.post("/dead-letters/replay", form)
		require.Equal(t, http.StatusBadRequest, response.StatusCode, form)
	}
	for _, form := range []url.Values{
		{"filter": {"tenant=x"}},
		{"filter": {"%"}},
		{"filter": {""}},
		{"filter": {"handlr=send-message"}},
		{"filter": {"handler="}},
		{"filter": {"id="}},
		{"filter": {"tenant=+"}},
		{"filter": {"tenant=" + uuid.Nil.String()}},
		{"filter": {"handler=%00"}},
		{"filter": all, "reason": {"\xff"}},
	} {
		form.Set("form_token", v.formToken("/"))
		response, _ := v.post("/dead-letters/replay", form)
		require.Equal(t, http.StatusBadRequest, response.StatusCode, form)
	}
}

// Queries that are invalid, or that would match more than intended, are refused.
func TestAddressesThatAreWrong(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{})
	for path, want := range map[string]int{
		"/events?type=%00": http.StatusBadRequest, "/events?type=%ff": http.StatusBadRequest, "/aggregates/a%00b/" + uuid.NewString(): http.StatusBadRequest,
		"/events?tenant=" + uuid.Nil.String(): http.StatusBadRequest, "/traces/" + uuid.Nil.String(): http.StatusNotFound,
		"/events?after=x": http.StatusBadRequest, "/assets/": http.StatusNotFound, "/assets/none.css": http.StatusNotFound,
	} {
		response, body := s.visitor().get(path)
		require.Equal(t, want, response.StatusCode, path)
		require.NotContains(t, body, s.Letter+"/reveal")
		require.NotContains(t, body, s.Failing.ID.String())
	}
	require.Empty(t, s.log.String())
}

// A stream is not limited by the timeouts of its server, and ends when its viewer signs out.
func TestStreamLivesAsLongAsItsSession(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{WriteToken: writeToken})
	strict := httptest.NewUnstartedServer(s.Config.Handler)
	strict.Config.ReadTimeout, strict.Config.WriteTimeout = time.Second/2, time.Second/2
	strict.Start()
	t.Cleanup(strict.Close)
	v := s.logIn(writeToken)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strict.URL+"/live/overview", nil)
	require.NoError(t, err)
	response, err := v.Do(r)
	require.NoError(t, err)
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for parts := 0; parts < 3 && lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "event: part") {
			parts++
			e, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, clinic.PatientRegistered{Name: secret})
			require.NoError(t, err)
			require.NoError(t, s.store.Append(t.Context(), e))
		}
	}
	require.NoError(t, lines.Err())
	v.post("/logout", url.Values{"form_token": {v.formToken("/")}})
	_, _ = io.Copy(io.Discard, response.Body) // how it ends does not matter
	require.NoError(t, ctx.Err())
}

// A slow form is cut off.
func TestFormsMustComeInTime(t *testing.T) {
	t.Parallel()
	strict := httptest.NewUnstartedServer(newSite(t, console.Access{Write: true}).Config.Handler)
	strict.Config.ReadTimeout = time.Second / 2
	strict.Start()
	t.Cleanup(strict.Close)
	for _, request := range []string{"GET /", "POST /dead-letters/replay"} {
		conn, err := net.Dial("tcp", strict.Listener.Addr().String())
		require.NoError(t, err)
		defer conn.Close()
		_, err = io.WriteString(conn, request+" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"+
			"Content-Type: application/x-www-form-urlencoded\r\n\r\na")
		require.NoError(t, err)
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
		_, err = io.ReadAll(conn)
		require.NoError(t, err, "it closes the connection")
	}
}

func TestFormsAreBounded(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{Write: true})
	v := s.visitor()
	form := url.Values{"form_token": {v.formToken("/")}, "filter": {"all=yes"}, "reason": {strings.Repeat("x", 1<<20)}}
	response, _ := v.post("/dead-letters/replay", form)
	require.Equal(t, http.StatusForbidden, response.StatusCode)
	form.Set("reason", "")
	response, _ = v.post("/dead-letters/replay?form_token="+form.Get("form_token"), url.Values{"filter": {"all=yes"}})
	require.Equal(t, http.StatusForbidden, response.StatusCode, "a token in an address is none")
}

func TestArchive(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{WriteToken: writeToken})
	v := s.logIn(writeToken)
	form := v.confirmation("archive", "id="+s.Letter)
	response, body := v.post("/dead-letters/archive", form)
	require.Equal(t, http.StatusUnprocessableEntity, response.StatusCode)
	require.Contains(t, body, "Enter a reason")
	_, body = v.get("/dead-letters")
	require.Contains(t, body, "send-message")

	form.Set("reason", "the patient has moved")
	response, _ = v.post("/dead-letters/archive", form)
	require.Equal(t, "/dead-letters#actions", response.Header.Get("Location"))
	_, body = v.get("/dead-letters?archive=7")
	require.Regexp(t, `<td>archive</td><td>Kim <span class="dim">console, 127\.0\.0\.1</span></td><td class="num">1</td>`, body)
	require.NotContains(t, body, "7 letters", "an address cannot claim what was done")
	require.Contains(t, body, "No dead letters.")
	archived, err := s.table.Find(t.Context(), s.Letter)
	require.NoError(t, err)
	require.Equal(t, deadletter.Archived, archived.State)
	require.WithinDuration(t, time.Now(), archived.Decided.At, patience)
	archived.Decided.At = time.Time{}
	require.Equal(t, deadletter.Decision{By: "Kim", Reason: "the patient has moved"}, archived.Decided)
	require.Contains(t, s.log.String(), `"action":"archive","who":"Kim"`)
	require.NotContains(t, s.log.String(), "moved", "a reason may be about a patient")
}

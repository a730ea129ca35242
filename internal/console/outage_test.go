package console_test

import (
	"fmt"
	"html"
	"net/http"
	"net/url"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/console"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/test/testservers"
)

// An operator watches the console while Postgres stops and the worker is frozen: it never says anything false.
func TestOutagesInBrowser(t *testing.T) {
	t.Parallel()
	server, err := testservers.StartPostgres(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop()) })
	d := newDemo(t)
	tenant := uuid.NewString()
	worker := d.command(t, "run", "--http-addr", "127.0.0.1:0", "--database-url", server.URL())
	output := d.scan(t, worker, (*exec.Cmd).StderrPipe)
	for output.Scan() && !strings.Contains(output.Text(), "worker is running") {
		d.guide += output.Text() + "\n"
	}
	d.url = d.find(t, `address=(\S+)`)
	go func() {
		for output.Scan() { // so that the worker can write its log
		}
	}()
	appending := d.command(t, "append", "--database-url", server.URL())
	appending.Stdin = strings.NewReader(`{"event_type":"PatientRegistered","aggregate_type":"Patient","aggregate_id":"` + uuid.NewString() + `","tenant_id":"` + tenant + `","event_data":{}}`)
	said, err := appending.CombinedOutput()
	require.NoError(t, err, string(said))

	b := d.open(t, desktop())
	b.expected = []string{"503", "504"} // of pages during the outage
	b.visit("/")
	b.waitFor("#badge", `^1$`)
	b.waitFor(`[data-part="failing"]`, "patient has no name")
	pages := d.open(t, desktop())
	pages.expected = b.expected
	pages.visit("/events")

	require.NoError(t, server.Kill())
	b.point(`[data-part="failing"] h3 a`) // the pointer rests on a link of a list
	b.waitFor("main .state", "^Not ready$")
	b.waitFor("#badge", `^\?$`)
	b.waitFor(".parts", `store down since [\d:]+ UTC`)
	b.waitFor(".wide", `Dead letters\s*–\s*cannot be read`)
	require.Regexp(t, `Store\s*lag –\s*down, see below`, b.text(".wide"))
	b.waitFor(`[data-part="failing"] .held:not([hidden])`, `not updated while you use this list: as of [\d:]+ UTC`)
	b.point("h1")
	b.waitFor(`[data-part="failing"]`, `The dead letters cannot be read: this is from [\d:]+ UTC, .* ago\.`)
	require.Contains(t, b.text(`[data-part="failing"]`), "patient has no name", "what was read last")
	b.waitFor(`[data-part="latest"]`, `The events cannot be read: this is from [\d:]+ UTC`)
	require.Contains(t, b.text(`[data-part="latest"]`), "PatientRegistered")
	b.shoot("overview-outage")
	pages.visit("/events")
	require.Contains(t, pages.text("main"), "The store is unavailable: nothing can be read or changed now.")
	require.Contains(t, pages.text("main"), "failed to connect", "the cause")
	require.NotContains(t, pages.text("main"), "No events")

	require.NoError(t, server.Start())
	b.waitFor("main .state", "^Ready$")
	b.waitFor("#badge", `^1$`)
	require.Eventually(t, func() bool { return !strings.Contains(b.text("main"), "cannot be read") }, patience, 100*time.Millisecond)
	pages.waitFor("tbody", "PatientRegistered") // the page has tried again by itself

	require.NoError(t, worker.Process.Signal(syscall.SIGSTOP))
	b.waitFor("#stale:not([hidden])", `no longer updated since [\d:]+ UTC`)
	require.Equal(t, `"(last known)"`, run(b, chromedp.Evaluate[string](`getComputedStyle(document.querySelector("main .state"), "::after").content`)))
	require.NoError(t, worker.Process.Signal(syscall.SIGCONT))
	require.Eventually(t, func() bool { return b.text("#stale:not([hidden])") == "" }, patience, 100*time.Millisecond)
}

// point moves the pointer to an element.
func (b *tab) point(selector string) {
	b.t.Helper()
	at := run(b, chromedp.Evaluate[[]float64](fmt.Sprintf(`(() => {
		const box = document.querySelector(%q).getBoundingClientRect();
		return [box.x + box.width / 2, box.y + box.height / 2];
	})()`, selector)))
	run(b, chromedp.MouseEvent("mouseMoved", at[0], at[1]))
}

// Names come from other programs: they are isolated, and what is invisible or reverses text shows.
func TestNamesAreShownAsText(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{})
	s.ingest(deadletter.Letter{ID: "odd", Body: []byte("no JSON"), Failure: deadletter.Failure{Handler: "send\u202email", Reason: "it\u200bfails"}},
		deadletter.Letter{ID: "blank", Body: bodyOf(t, events.Event{
			ID: uuid.New(), Type: " ", AggregateType: "Patient", AggregateID: uuid.New(), AggregateVersion: 1, TenantID: uuid.New(), CreatedAt: time.Now(), Data: []byte("{}"),
		}), Failure: deadletter.Failure{Handler: "welcome-patient", Reason: "no type"}})
	_, body := s.visitor().get("/dead-letters")
	require.NotContains(t, body, "\u202e")
	require.Contains(t, body, "send·mail")
	require.Contains(t, body, "it·fails")
	require.Contains(t, body, `<a class="strong" href="/dead-letters/letter/blank">(blank)</a>`)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/dead-letters", nil)
	require.NoError(t, err)
	_, body = s.visitor().asItIs(request)
	require.Contains(t, body, "<bdi>send·mail</bdi>")
	require.Contains(t, body, "<bdi>(blank)</bdi>")
}

// The links of a list that is filtered keep its filter.
func TestLinksOfFilteredListsKeepTheFilter(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{})
	v := s.visitor()
	query := url.Values{"handler": {"send-message"}, "after": {s.Letter}}
	_, body := v.get("/dead-letters?" + query.Encode())
	require.Contains(t, body, `href="/dead-letters?handler=send-message">Newest</a>`)
	after := nextCursor(t, v, "/events?type=AppointmentScheduled&from=2020-01-01T00:00")
	_, body = v.get("/events?type=AppointmentScheduled&from=2020-01-01T00:00&after=" + after)
	require.Contains(t, html.UnescapeString(body), `href="/events?from=2020-01-01T00%3A00&type=AppointmentScheduled">Newest</a>`)
}

// nextCursor appends events until a list has two pages, and returns the cursor of the second.
func nextCursor(t *testing.T, v visitor, list string) string {
	t.Helper()
	for range 51 {
		e := v.s.Scheduled
		e.ID, e.AggregateID, e.AggregateVersion = uuid.New(), uuid.New(), 1
		require.NoError(t, v.s.store.Append(t.Context(), e))
	}
	_, body := v.get(list)
	found := regexp.MustCompile(`rel="next" href="/events\?after=([^"&]+)&amp;`).FindStringSubmatch(body)
	require.Len(t, found, 2)
	return found[1]
}

// A button acts on as many letters as it says.
func TestConfirmation(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{WriteToken: writeToken, Token: readToken})
	v := s.logIn(writeToken)
	fail := func(ids ...string) {
		t.Helper()
		for _, id := range ids {
			s.ingest(deadletter.Letter{ID: id, Body: []byte("no JSON"), Failure: deadletter.Failure{Handler: "send-message", Reason: "no JSON"}})
		}
	}
	fail("a", "b")
	_, body := v.get("/dead-letters/archive?handler=send-message")
	require.Contains(t, body, "<h1>Archive 3 dead letters?</h1>")
	require.Contains(t, body, "Archive the dead letters of handler send-message.")
	require.Contains(t, body, "Archive 3 letters</button>")

	form := v.confirmation("archive", "handler=send-message")
	form.Set("reason", "checked")
	fail("c") // after the question
	response, _ := v.post("/dead-letters/archive", form)
	require.Equal(t, "/dead-letters?archived=3", response.Header.Get("Location"))
	stays, err := s.table.Find(t.Context(), "c")
	require.NoError(t, err)
	require.Equal(t, deadletter.Waiting, stays.State, "it was not counted")

	fail("d")
	form = v.confirmation("archive", "handler=send-message")
	form.Set("reason", "checked")
	_, err = s.table.PutAside(t.Context(), deadletter.Filter{IDs: []string{"d"}}, deadletter.Archived, deadletter.Decision{By: "Ana", Reason: "x"})
	require.NoError(t, err)
	response, _ = v.post("/dead-letters/archive", form)
	require.Equal(t, "/dead-letters/archive?handler=send-message&was=2", response.Header.Get("Location"))
	_, body = v.get(response.Header.Get("Location"))
	require.Contains(t, body, "Nothing was done: 2 letters matched when you were asked, and 1 match now.")
	require.Contains(t, body, "Archive 1 letter</button>")

	for _, unasked := range []url.Values{{}, {"count": {"1"}}, {"count": {"x"}}} {
		unasked.Set("form_token", form.Get("form_token"))
		unasked.Set("filter", "all=yes")
		unasked.Set("reason", "checked")
		for _, action := range []string{"replay", "archive"} {
			response, _ = v.post("/dead-letters/"+action, unasked)
			require.Equal(t, "/dead-letters/"+action+"?all=yes", response.Header.Get("Location"), "it asks first")
		}
	}
	_, body = v.get("/dead-letters/replay?id=d")
	require.Contains(t, body, "This dead letter does not wait: it is archived.")
	require.NotContains(t, body, `name="count"`)
	response, _ = v.get("/dead-letters/replay?handlr=x")
	require.Equal(t, http.StatusBadRequest, response.StatusCode)
	response, _ = s.logIn(readToken).get("/dead-letters/replay?all=yes")
	require.Equal(t, http.StatusForbidden, response.StatusCode)
	require.Equal(t, 1, strings.Count(s.log.String(), `"action":"archive"`))
}

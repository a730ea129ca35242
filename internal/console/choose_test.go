package console_test

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/console"
	"github.com/healz/worker/internal/deadletter"
)

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
	require.Contains(t, body, "Archive: the dead letters of handler send-message.")
	require.Contains(t, body, "Archive 3 letters</button>")

	form := v.confirmation("archive", "handler=send-message")
	form.Set("reason", "checked")
	fail("c") // after the question
	response, _ := v.post("/dead-letters/archive", form)
	require.Equal(t, "/dead-letters#actions", response.Header.Get("Location"))
	stays, err := s.table.Find(t.Context(), "c")
	require.NoError(t, err)
	require.Equal(t, deadletter.Waiting, stays.State, "it was not counted")

	fail("d")
	form = v.confirmation("archive", "handler=send-message")
	form.Set("reason", "checked")
	_, err = s.table.PutAside(t.Context(), deadletter.Filter{IDs: []string{"d"}}, deadletter.Archived, audit.Actor{By: "Ana", Reason: "x"})
	require.NoError(t, err)
	response, _ = v.post("/dead-letters/archive", form)
	require.Equal(t, "/dead-letters/archive?handler=send-message&was=2", response.Header.Get("Location"))
	_, body = v.get(response.Header.Get("Location"))
	require.Contains(t, body, "Nothing was done: 2 letters matched when you were asked, and now 1 matches.")
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

// A list is filtered by all that letters have, in each state, and the letters that are checked are acted on.
func TestFilterAndChooseLetters(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{Write: true})
	v := s.visitor()
	e := s.Scheduled
	began := time.Now().Add(-48 * time.Hour)
	s.ingest(deadletter.Letter{ID: "old", Body: bodyOf(t, e), Failure: deadletter.Failure{
		Handler: "charge", Reason: "50% of the_bill", FirstFailed: began, LastFailed: began,
	}}, deadletter.Letter{ID: "new", Body: bodyOf(t, e), Failure: deadletter.Failure{Handler: "remind", Reason: "no phone"}})
	listed := func(query string) []string {
		t.Helper()
		response, body := v.get("/dead-letters?" + query)
		require.Equal(t, http.StatusOK, response.StatusCode)
		var ids []string
		for _, found := range regexp.MustCompile(`<a class="strong" href="/dead-letters/letter/([^"]+)"`).FindAllStringSubmatch(body, -1) {
			ids = append(ids, found[1])
		}
		return ids
	}
	for query, want := range map[string][]string{
		"aggregate=" + e.AggregateID.String(): {"new", "old"},
		"contains=%25+of":                     {"old"},
		"contains=the_":                       {"old"},
		"contains=THE":                        nil,
		"until=" + began.Add(time.Hour).UTC().Format("2006-01-02T15:04"): {"old"},
		"handler=remind&from=" + began.UTC().Format("2006-01-02T15:04"):  {"new"},
		"handler=remind&until=" + began.UTC().Format("2006-01-02T15:04"): nil,
		"type=" + e.Type + "&tenant=" + e.TenantID.String():              {"new", "old"},
		"state=any&aggregate=" + e.AggregateID.String():                  {"new", "old"},
		"state=archived": nil,
	} {
		require.Equal(t, want, listed(query), query)
	}
	for from, to := range map[string]string{
		"/dead-letters/try?handler=charge":                        "/dead-letters?handler=charge",
		"/events/" + e.ID.String() + "/reveal":                    "/events/" + e.ID.String(),
		"/dead-letters/letter/" + s.Letter + "/reveal":            "/dead-letters/letter/" + s.Letter,
		"/aggregates/a%2Fb/" + e.AggregateID.String() + "/reveal": "/aggregates/a%2Fb/" + e.AggregateID.String(),
	} {
		response, _ := v.get(from)
		require.Equal(t, to, response.Header.Get("Location"), "an address that a form was sent to can be shared")
	}
	_, body := v.get("/dead-letters")
	require.Regexp(t, `As of <time datetime="[^"]+" title="[^"]+">\d\d:\d\d:\d\d</time> UTC`, body)
	response, body := v.get("/dead-letters?state=lost")
	require.Equal(t, http.StatusBadRequest, response.StatusCode)
	require.Contains(t, body, "State must be one of the list.")

	form := v.confirmation("discard", "id=old&id=new&id=")
	form.Set("reason", "test data")
	response, _ = v.post("/dead-letters/discard", form)
	require.Equal(t, "/dead-letters#actions", response.Header.Get("Location"))
	require.Equal(t, []string{"new", "old"}, listed("state=discarded"))
	_, body = v.get("/dead-letters?handler=charge")
	require.Contains(t, body, `<a href="/dead-letters?handler=charge&amp;state=any">1 letter in another state matches</a>`)

	form = v.confirmation("restore", "id=old&state=discarded")
	response, _ = v.post("/dead-letters/restore", form)
	require.Equal(t, "/dead-letters#actions", response.Header.Get("Location"))
	require.Equal(t, []string{s.Letter, "old"}, listed("state=waiting"))
	restored, err := s.table.Find(t.Context(), "old")
	require.NoError(t, err)
	require.Len(t, restored.History, 1)
	require.Equal(t, "test data", restored.History[0].Reason)
	require.Equal(t, "local user", restored.Decided.By)
	for path, problem := range map[string]string{
		"restore?handler=charge&state=waiting": "Only letters that are archived or discarded", "restore?handler=charge&state=any": "Only letters that are archived or discarded",
		"replay?handler=charge&state=any": "Only letters that wait", "archive?handler=charge&state=handled": "Only letters that wait",
		"discard?id=": "does not select any letters", "replay?state=waiting": "does not select any letters",
		"replay?counted_until=2030-01-01T00:00:00Z": "does not select any letters",
	} {
		response, body = v.get("/dead-letters/" + path)
		require.Equal(t, http.StatusBadRequest, response.StatusCode, path)
		require.Contains(t, body, problem, path)
	}

	// What the filter form sends if only the state is chosen.
	_, err = s.table.PutAside(t.Context(), deadletter.Filter{}, deadletter.Archived, audit.Actor{By: "Ana", Reason: "x"})
	require.NoError(t, err)
	_, body = v.get("/dead-letters?handler=&type=&state=archived")
	require.Contains(t, body, `href="/dead-letters/restore?all=yes&amp;state=archived">Restore…</a>`)
	form = v.confirmation("restore", "all=yes&state=archived")
	response, _ = v.post("/dead-letters/restore", form)
	require.Equal(t, "/dead-letters#actions", response.Header.Get("Location"))
	_, body = v.get("/dead-letters?handler=&state=waiting")
	require.Contains(t, body, `href="/dead-letters/replay?all=yes&amp;state=waiting">Replay…</a>`)
	_, body = v.get("/dead-letters/replay?all=yes&state=waiting")
	require.Contains(t, body, "Replay 2 dead letters?")

	// The user's own bound stays when the number has changed.
	bound := "until=" + began.Add(time.Hour).UTC().Format("2006-01-02T15:04")
	form = v.confirmation("archive", bound)
	form.Set("reason", "x")
	form.Set("count", "9")
	response, _ = v.post("/dead-letters/archive", form)
	require.Equal(t, "/dead-letters/archive?"+strings.ReplaceAll(bound, ":", "%3A")+"&was=9", response.Header.Get("Location"))
	_, body = v.get(response.Header.Get("Location"))
	require.Contains(t, body, "Archive 1 dead letter?")
}

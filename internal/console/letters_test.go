package console_test

import (
	"context"
	"errors"
	"fmt"
	"html"
	"iter"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/console"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
)

// publisher is a bus on which each letter is handled or fails again immediately.
type publisher struct {
	table *deadletter.Table
	fails atomic.Bool
	sent  atomic.Int64
}

func (p *publisher) PublishLetters(ctx context.Context, letters []deadletter.Release) ([]deadletter.Sending, error) {
	for _, l := range letters {
		p.sent.Add(1)
		if !p.fails.Load() {
			if err := p.table.Settled(ctx, l.ID, l.ReplayID, []string{l.Handler}, true); err != nil {
				return nil, err
			}
			continue
		}
		again := deadletter.Letter{
			Body: l.Body, Source: l.Source, Headers: map[string]any{},
			Failure: deadletter.Failure{Handler: l.Handler, Reason: "still no address", Attempts: 3},
		}
		for key, value := range l.ReplayHeaders() {
			again.Headers[key] = value
		}
		if err := p.table.Ingest(ctx, []deadletter.Arrival{{Letter: deadletter.Complete(again)}}); err != nil {
			return nil, err
		}
	}
	return make([]deadletter.Sending, len(letters)), nil
}

// startReplayer starts the part of a worker that publishes released letters.
func (s *site) startReplayer() *publisher {
	s.t.Helper()
	p := &publisher{table: s.table}
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		deadletter.NewReplayer(s.table, p, s.logger()).Run(ctx, nil)
	}()
	s.t.Cleanup(func() {
		cancel()
		<-done
	})
	return p
}

// confirmation returns the form of the page that asks whether to do an action with the letters of a filter.
func (v visitor) confirmation(action, filter string) url.Values {
	v.s.t.Helper()
	_, body := v.get("/dead-letters/" + action + "?" + filter)
	form := url.Values{}
	for _, name := range []string{"form_token", "filter", "count"} {
		found := regexp.MustCompile(`name="` + name + `" value="([^"]+)"`).FindStringSubmatch(body)
		require.Len(v.s.t, found, 2, body)
		form.Set(name, html.UnescapeString(found[1]))
	}
	return form
}

// replay confirms a replay, and returns the address of its page.
func (v visitor) replay(filter string) string {
	v.s.t.Helper()
	response, body := v.post("/dead-letters/replay", v.confirmation("replay", filter))
	require.Equal(v.s.t, http.StatusSeeOther, response.StatusCode, body)
	return response.Header.Get("Location")
}

// await reloads a page until it contains all texts, and returns it.
func (v visitor) await(path string, texts ...string) string {
	v.s.t.Helper()
	var body string
	require.Eventually(v.s.t, func() bool {
		_, body = v.get(path)
		for _, text := range texts {
			if !strings.Contains(body, text) {
				return false
			}
		}
		return true
	}, patience, 50*time.Millisecond, "%s never says %s", path, texts)
	return body
}

// filterOf is the filter of the button that replays all letters of a page.
func filterOf(t *testing.T, body string) string {
	t.Helper()
	found := regexp.MustCompile(`class="button primary" href="/dead-letters/replay\?([^"]+)"`).FindStringSubmatch(body)
	require.Len(t, found, 2, body)
	return html.UnescapeString(found[1])
}

func TestManyDeadLetters(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{Write: true})
	tenant := uuid.New()
	began := time.Now().Add(-time.Hour)
	const many, ofTenant = 10_500, 120
	var batch []deadletter.Letter
	for i := range many {
		origin := events.Origin{TenantID: uuid.NameSpaceOID}
		if i >= many-ofTenant {
			origin.TenantID = tenant
		}
		e, err := events.New(origin, "Patient", uuid.New(), 1, clinic.PatientRegistered{Name: secret})
		require.NoError(t, err)
		at := began.Add(time.Duration(i/100) * time.Millisecond) // a hundred have failed at the same time
		batch = append(batch, deadletter.Letter{
			ID: fmt.Sprintf("many-%05d", i), Body: bodyOf(t, e), Source: "lane",
			Failure: deadletter.Failure{Reason: "no address", Handler: "welcome-patient", Attempts: 3, FirstFailed: at, LastFailed: at},
		})
		if len(batch) == 500 {
			s.ingest(batch...)
			batch = nil
		}
	}
	v := s.visitor()
	_, body := v.get("/")
	require.Contains(t, body, count(many)+"</span>", "the group's size")
	require.Regexp(t, `id="badge"[^>]*>`+count(many+1)+"<", body)

	_, body = v.get("/dead-letters")
	require.Contains(t, body, "<p class=\"dim\">"+count(many+1)+" letters</p>")
	require.Contains(t, body, `href="/dead-letters/letter/`+s.Letter+`"`, "the newest shows")
	require.Contains(t, body, fmt.Sprintf(`href="/dead-letters/letter/many-%05d"`, many-1))
	require.Equal(t, "all=yes", filterOf(t, body))

	ofOne := "/dead-letters?tenant=" + tenant.String()
	seen := map[string]bool{}
	pages := 0
	for next := ofOne; next != ""; pages++ {
		_, body = v.get(next)
		require.Contains(t, body, `<p class="dim">120 letters</p>`, "each page says how many")
		require.Equal(t, "tenant="+tenant.String(), filterOf(t, body))
		for _, found := range regexp.MustCompile(`<a class="strong" href="/dead-letters/letter/([^"]+)"`).FindAllStringSubmatch(body, -1) {
			require.False(t, seen[found[1]], "a letter is on two pages")
			seen[found[1]] = true
		}
		next = ""
		if found := regexp.MustCompile(`rel="next" href="([^"]+)"`).FindStringSubmatch(body); found != nil {
			next = html.UnescapeString(found[1])
		}
	}
	require.Equal(t, 3, pages)
	require.Len(t, seen, ofTenant)

	sender := s.startReplayer()
	v.await(v.replay(filterOf(t, body)), "</span>done", "<b>120</b> chosen", "<b>120</b> handled")
	require.EqualValues(t, ofTenant, sender.sent.Load())
	_, body = v.get("/dead-letters")
	require.Contains(t, body, `<p class="dim">`+count(many+1-ofTenant)+" letters</p>")
	_, body = v.get(ofOne)
	require.Contains(t, body, "No dead letter that is waiting matches this filter")
	for letter := range seen {
		l, err := s.table.Find(t.Context(), letter)
		require.NoError(t, err)
		require.Equal(t, deadletter.Settled, l.State, "what was shown was replayed")
	}
	job := v.replay("all=yes")
	v.await(job, "<b>"+count(many+1-ofTenant)+"</b> chosen")
	v.post(job+"/stop", url.Values{"form_token": {v.formToken("/")}})
	v.await(job, "</span>stopped")
}

// count is how the console writes a number above a thousand.
func count(n int) string { return fmt.Sprintf("%d\u202f%03d", n/1000, n%1000) }

func TestPagesOfLettersInEachState(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, console.Config{Access: console.Access{Write: true}, Try: passAll})
	v := s.visitor()
	s.ingest(deadletter.Letter{
		ID: "letter-2", Body: bodyOf(t, s.Scheduled), Failure: deadletter.Failure{Handler: "send-message", Reason: "no bill"},
	})
	const page = "/dead-letters/letter/letter-2"
	shows := func(state string, acts bool, texts ...string) {
		t.Helper()
		response, body := v.get(page)
		require.Equal(t, http.StatusOK, response.StatusCode)
		require.Contains(t, body, "</span>"+state+"</p>")
		require.Contains(t, body, "no bill")
		for _, text := range texts {
			require.Contains(t, body, text)
		}
		for action, element := range map[string]string{
			"replay": `href="/dead-letters/replay?id=letter-2"`, "archive": `href="/dead-letters/archive?id=letter-2"`, "try": `action="/dead-letters/try"`,
		} {
			require.Equal(t, acts, strings.Contains(body, element), "%s a letter that is %s", action, state)
		}
		require.Contains(t, body, `/reveal"`)
		for _, other := range []string{"/events/" + s.Scheduled.ID.String(), "/traces/" + s.Scheduled.CorrelationID.String()} {
			_, body = v.get(other)
			require.Contains(t, body, page)
			require.Equal(t, acts, strings.Contains(body, `/replay?id=letter-2"`), "%s of a letter that is %s", other, state)
		}
	}
	shows("waiting", true)
	putAside := func(as deadletter.State) {
		t.Helper()
		n, err := s.table.PutAside(t.Context(), deadletter.Filter{IDs: []string{"letter-2"}}, as, audit.Actor{By: "Ana", Reason: "has moved"})
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
	restore := func(from deadletter.State) {
		t.Helper()
		n, err := s.table.Restore(t.Context(), deadletter.Filter{States: []deadletter.State{from}}, audit.Actor{By: "Ben"})
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
	putAside(deadletter.Archived)
	shows("archived", false, "by Ana", "has moved")
	restore(deadletter.Archived)
	shows("waiting", true, "by Ben", "restored")
	putAside(deadletter.Discarded)
	shows("discarded", false, "by Ana", "has moved")
	restore(deadletter.Discarded)

	edited, err := s.table.Edit(t.Context(), "letter-2", func(body []byte, _ func([]byte) error) ([]byte, error) {
		return deadletter.Patch(body, []byte(`{"metadata": {"a": "b"}}`))
	}, audit.Actor{By: "Cleo", Reason: "a typo"})
	require.NoError(t, err)
	shows("replaying", false, "a typo")
	response, body := v.get("/dead-letters/letter/" + edited.OriginalID)
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Contains(t, body, "</span>edited</p>")
	require.Contains(t, body, "by Cleo")
	require.NotContains(t, body, `/dead-letters/replay?`)

	s.startReplayer()
	v.await(page, "</span>handled</p>")
	require.NoError(t, s.table.Settled(t.Context(), "letter-2", edited.ReplayID, []string{"send-message"}, true))
	response, body = v.get(page)
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Contains(t, body, "by replay "+edited.ReplayID)
	require.NotContains(t, body, `/dead-letters/replay?`)

	response, body = v.get("/dead-letters/letter/" + s.Scheduled.ID.String())
	require.Equal(t, http.StatusConflict, response.StatusCode, "the letter and its original are of this event")
	require.Contains(t, body, "name one by its own id")
	n, err := s.table.PurgeDecided(t.Context(), time.Now().Add(time.Hour), 10, nil)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	response, body = v.get(page)
	require.Equal(t, http.StatusNotFound, response.StatusCode)
	require.Contains(t, body, "was purged")
}

func TestPageOfALetterThatFailedAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{Write: true})
	v := s.visitor()
	sender := s.startReplayer()
	sender.fails.Store(true)
	page := "/dead-letters/letter/" + s.Letter
	body := v.await(v.replay("id="+s.Letter), "</span>done", "<b>1</b> failed again", "still no address")
	require.Contains(t, body, `href="`+page+`"`)
	body = v.await(page, "</span>waiting</p>", "still no address")
	require.Contains(t, body, "&lt;b&gt;no&lt;/b&gt; address", "its history has the failure before")
	require.Contains(t, body, `/dead-letters/replay?id=`)
	_, body = v.get("/dead-letters")
	require.Contains(t, body, "replayed 1×")
	require.Contains(t, body, "1 failed again after a replay")

	sender.fails.Store(false)
	v.await(v.replay("id="+s.Letter), "</span>done", "<b>1</b> handled")
	v.await(page, "</span>handled</p>")
}

// What two consoles replay at the same time is sent once.
func TestTwoReplaysAtOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{Write: true})
	const letters = 301
	var list []deadletter.Letter
	for range letters - 1 {
		e, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, clinic.PatientRegistered{Name: secret})
		require.NoError(t, err)
		list = append(list, deadletter.Letter{Body: bodyOf(t, e), Failure: deadletter.Failure{Handler: "welcome-patient", Reason: "no address"}})
	}
	s.ingest(list...)
	other := s.serve(console.Config{
		Store: s.store, Letters: deadletter.NewTable(s.store.SQL()), Access: console.Access{Write: true}, Logger: s.logger(),
		Status: func(context.Context) console.Status { return console.Status{} },
	})
	visitors := []visitor{s.visitor(), (&site{t: t, Server: other}).visitor()}
	var jobs []string
	slow := visitors[0].confirmation("replay", "all=yes")
	slow.Set("rate", "50")
	late := visitors[1].confirmation("replay", "all=yes")
	for i, form := range []url.Values{slow, late} {
		response, body := visitors[i].post("/dead-letters/replay", form)
		require.Equal(t, http.StatusSeeOther, response.StatusCode, body)
		jobs = append(jobs, response.Header.Get("Location"))
	}
	require.Eventually(t, func() bool { // the other one has released letters meanwhile, so that the number may have changed
		if strings.HasPrefix(jobs[1], "/replays/") {
			return true
		}
		require.Equal(t, "/dead-letters/replay?all=yes&was="+late.Get("count"), jobs[1])
		_, body := visitors[1].get(jobs[1])
		require.Contains(t, body, "Nothing was done: ")
		late = visitors[1].confirmation("replay", "all=yes")
		response, _ := visitors[1].post("/dead-letters/replay", late)
		jobs[1] = response.Header.Get("Location")
		return false
	}, patience, time.Millisecond)
	for i, v := range visitors {
		v.await(jobs[i], "chosen")
	}
	sender := s.startReplayer()
	handled := 0
	for i, v := range visitors {
		body := v.await(jobs[i], "</span>done")
		figure := func(name string) (n int) {
			if found := regexp.MustCompile(`<b>(\d+)</b> ` + name).FindStringSubmatch(body); found != nil {
				_, err := fmt.Sscan(found[1], &n)
				require.NoError(t, err)
			}
			return n
		}
		handled += figure("handled")
		require.Zero(t, figure("failed again"))
		require.Equal(t, figure("chosen"), figure("handled")+figure("not sent"), body)
		require.Equal(t, figure("sent"), figure("handled"))
	}
	require.Equal(t, letters, handled)
	require.EqualValues(t, letters, sender.sent.Load())
}

func TestLettersInTheQueue(t *testing.T) {
	t.Parallel()
	const unread = "RabbitMQ&#39;s failed queue cannot be read: dead letters in it are not in this list."
	for name, test := range map[string]struct {
		queued func(ctx context.Context) (int, error)
		want   string
	}{
		"none": {func(context.Context) (int, error) { return 0, nil }, ""},
		"one":  {func(context.Context) (int, error) { return 1, nil }, "1 dead letter is in RabbitMQ&#39;s failed queue, not ingested yet and not in this list."},
		"some": {
			func(context.Context) (int, error) { return 12, nil },
			"12 dead letters are in RabbitMQ&#39;s failed queue, not ingested yet and not in this list.",
		},
		"no broker":            {func(context.Context) (int, error) { return 3, errors.New("no connection") }, unread},
		"a broker that hangs":  {func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() }, unread},
		"a worker without one": {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			config := console.Config{}
			if test.queued != nil {
				config.Queued = func(ctx context.Context) (int, error) {
					asked.Add(1)
					return test.queued(ctx)
				}
			}
			s := newSiteWith(t, config)
			began := time.Now()
			for range 10 {
				for _, path := range []string{"/", "/dead-letters", "/dead-letters?handler=send-message"} {
					response, body := s.visitor().get(path)
					require.Equal(t, http.StatusOK, response.StatusCode)
					body = strings.ReplaceAll(body, "'", "&#39;")
					require.Contains(t, body, test.want)
					require.Equal(t, test.want != "" && test.want != unread, strings.Contains(body, "worker dlq ingest"))
				}
			}
			require.LessOrEqual(t, float64(asked.Load()), 1+time.Since(began).Seconds()/5, "it is asked rarely")
		})
	}
}

// passAll is a dry run in which each of many letters would pass.
func passAll(_ context.Context, f deadletter.Filter, _ audit.Actor) iter.Seq2[handlers.Outcome, error] {
	return func(yield func(handlers.Outcome, error) bool) {
		n := f.Limit
		if len(f.IDs) > 0 {
			n = len(f.IDs)
		}
		for i := range n {
			l := deadletter.Letter{ID: fmt.Sprint(i), Type: "PatientRegistered"}
			if !yield(handlers.Outcome{Letter: l, Verdict: handlers.WouldPass}, nil) {
				return
			}
		}
	}
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, console.Config{Access: console.Access{Write: true}, Try: passAll})
	v := s.visitor()
	_, body := v.post("/dead-letters/try", url.Values{"form_token": {v.formToken("/")}, "filter": {"id=" + s.Letter}})
	require.Contains(t, body, "<title>Dry run · worker</title>")
	require.Contains(t, body, "1 of 1 would pass")
	require.Contains(t, body, "Dry run of dead letter "+s.Letter+".")
	require.Contains(t, body, `href="/dead-letters/replay?id=`+s.Letter+`">Replay…</a>`)
	_, body = v.post("/dead-letters/try", url.Values{"form_token": {v.formToken("/")}, "filter": {"all=yes"}})
	require.Contains(t, body, "Dry run of all dead letters: only the oldest 50.")
	require.Contains(t, body, "50 of 50 would pass")
	require.Contains(t, body, `href="/dead-letters/replay?all=yes">Replay…</a>`)
	require.Equal(t, 2, strings.Count(s.log.String(), `"action":"dry run","who":"local user"`))
}

// A list whose last letter was purged begins anew, and one with a wrong filter shows nothing to replay.
func TestListsThatCannotBeContinued(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{Write: true})
	response, _ := s.visitor().get("/dead-letters?handler=send-message&after=purged")
	require.Equal(t, http.StatusSeeOther, response.StatusCode)
	require.Equal(t, "/dead-letters?handler=send-message", response.Header.Get("Location"))
	response, body := s.visitor().get("/dead-letters?handler=send-message&after=" + s.Letter)
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Contains(t, body, "No older letters.")
	response, body = s.visitor().get("/dead-letters?tenant=x")
	require.Equal(t, http.StatusBadRequest, response.StatusCode)
	require.Contains(t, body, "Tenant must be a UUID")
	require.NotContains(t, body, "/dead-letters/replay")
}

package console

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
)

const (
	// countTimeout bounds how long a page waits for a number that it can do without.
	countTimeout = time.Second
	// queueGap is the least time between two looks at the broker's queue, each of which may need a connection of its own.
	queueGap = 5 * time.Second
)

// counter takes a count at most once in gap, for all pages. Pages never fail because of it: what is not known in time is
// 0, and while one request counts, the others get the last number. It is safe for concurrent use.
type counter struct {
	// count may be nil: there is nothing to count.
	count func(ctx context.Context) (int, error)
	gap   time.Duration

	counting sync.Mutex // held while count runs

	mu   sync.Mutex
	last int
	at   time.Time
}

func (c *counter) latest(ctx context.Context) int {
	if c.count == nil {
		return 0
	}
	if c.due() && c.counting.TryLock() {
		defer c.counting.Unlock()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), countTimeout) // the number is for the others, too
		defer cancel()
		n, err := c.count(ctx)
		if err != nil {
			n = 0
		}
		c.mu.Lock()
		c.last, c.at = n, time.Now()
		c.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

func (c *counter) due() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.at) >= c.gap
}

// forget has the next page count again.
func (c *counter) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = time.Time{}
}

// total is how many letters are in the groups.
func total(groups []deadletter.Group) int {
	n := 0
	for _, g := range groups {
		n += g.Count
	}
	return n
}

// failed tells which of the events have dead letters that wait, if that can be read.
func (c *Console) failed(ctx context.Context, list []events.Event) map[uuid.UUID]bool {
	ids := make([]uuid.UUID, len(list))
	for i, e := range list {
		ids[i] = e.ID
	}
	failed, err := c.letters.Failed(ctx, ids)
	if err != nil {
		return nil // the page is of use without the marks
	}
	return failed
}

// lettersPage is the body of the list of dead letters.
type lettersPage struct {
	Query url.Values
	// Groups are those of the letters that the filter chooses, and Count is how many letters that are.
	Groups []deadletter.Group
	Count  int
	// List is a page of them, the newest first. First tells that no page is before it, and Next is the address of the
	// one behind it, "" if there is none.
	List  []deadletter.Letter
	First bool
	Next  string
	// Queued is how many dead letters are in the broker's queue and not in the table yet.
	Queued   int
	Problems []string
	// Archived says what became of a request to archive letters.
	Archived string
	// Replays are those begun here, the latest first.
	Replays []jobPage
	May     abilities
}

// Filter is what the page's forms choose.
func (p lettersPage) Filter() string {
	if len(p.Query) == 0 {
		return url.Values{chooseAll: {"yes"}}.Encode()
	}
	return p.Query.Encode()
}

// Group is the group that the filter chooses, if it chooses one.
func (p lettersPage) Group() *deadletter.Group {
	if p.Query.Get("group") == "" || len(p.Groups) != 1 {
		return nil
	}
	return &p.Groups[0]
}

func letterFilters() []string { return []string{"group", "handler", "type", "tenant", "correlation"} }

func (c *Console) deadLetters(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	query := r.URL.Query()
	p := lettersPage{Query: url.Values{}, First: query.Get("after") == "", Replays: c.jobs.latest(), May: c.abilities(r)}
	if n, err := strconv.Atoi(query.Get("archived")); err == nil {
		p.Archived = plural(n, "letter is", "letters are") + " in the archive. The command worker dlq restore brings back what is in it."
	}
	for _, name := range letterFilters() {
		if value := strings.TrimSpace(query.Get(name)); value != "" {
			p.Query.Set(name, value)
		}
	}
	filter, problems := letterFilter(p.Query)
	if len(problems) > 0 {
		p.Problems = problems
		c.render(w, r, http.StatusBadRequest, "letters", "Dead letters", p)
		return
	}
	found, err := c.letters.Newest(ctx, filter, query.Get("after"), pageSize+1)
	if errors.Is(err, deadletter.ErrNotFound) { // the letter that ended the page before was purged
		http.Redirect(w, r, "/dead-letters?"+p.Query.Encode(), http.StatusSeeOther)
		return
	}
	if err == nil {
		p.Groups, err = c.letters.Groups(ctx, filter)
	}
	if err != nil {
		c.fail(w, r, err)
		return
	}
	p.Count = total(p.Groups)
	p.List = found[:min(len(found), pageSize)]
	if len(found) > pageSize {
		next := url.Values{"after": {p.List[pageSize-1].ID}}
		for name, values := range p.Query {
			next[name] = values
		}
		p.Next = "/dead-letters?" + next.Encode()
	}
	p.Queued = c.queued.latest(ctx)
	c.render(w, r, http.StatusOK, "letters", "Dead letters", p)
}

// letterFilter reads a filter from a form, and says what in it is wrong: then the filter is not to be used.
func letterFilter(form url.Values) (deadletter.Filter, []string) {
	read := formReader{Values: form}
	f := deadletter.Filter{
		Group: form.Get("group"), Handler: form.Get("handler"), Type: form.Get("type"),
		Tenant: read.id("tenant", "tenant"), Correlation: read.id("correlation", "correlation"),
	}
	if letter := form.Get("id"); letter != "" {
		f.IDs = []string{letter}
	}
	return f, read.problems
}

// letterPage is the body of a dead letter's page.
type letterPage struct {
	Letter   deadletter.Letter
	Stored   bool
	Causes   []events.Event
	Revealed bool
	// Body is shown when it is revealed.
	Body string
	// May are the abilities of the viewer with this letter: none if it does not wait.
	May abilities
}

func (c *Console) deadLetter(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	var p letterPage
	var err error
	p.Letter, err = c.letters.Find(ctx, r.PathValue("id"))
	if errors.Is(err, deadletter.ErrNotFound) {
		c.refuse(w, r, http.StatusNotFound, "There is no such dead letter, or no longer: it was purged.")
		return
	}
	if errors.Is(err, deadletter.ErrAmbiguous) {
		c.refuse(w, r, http.StatusNotFound, "There is no dead letter with this id, but "+err.Error()+".")
		return
	}
	if err != nil {
		c.fail(w, r, err)
		return
	}
	if p.Letter.State == deadletter.Waiting {
		p.May = c.abilities(r)
	}
	if e := p.Letter.Event; e.ID != uuid.Nil {
		_, err := c.store.ByID(ctx, e.ID)
		p.Stored = err == nil
		if p.Causes, err = c.causes(ctx, e); err != nil {
			c.fail(w, r, err)
			return
		}
	}
	if r.Method == http.MethodPost {
		attrs := []any{"letter_id", p.Letter.ID}
		if p.Letter.Event.ID != uuid.Nil {
			attrs = append(attrs, "event_id", p.Letter.Event.ID.String())
		}
		c.revealed(r, "dead letter", attrs...)
		p.Revealed, p.Body = true, pretty(p.Letter.Body)
	}
	c.render(w, r, http.StatusOK, "letter", "Dead letter", p)
}

package console

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
)

const (
	// countTimeout bounds the time that a page waits for an optional count.
	countTimeout = time.Second
	// queueInterval is the minimum time between two polls of the failed queue. Each opens a connection.
	queueInterval = 5 * time.Second
)

// unknownCount is a count that cannot be read.
const unknownCount = -1

// counter caches a count for all pages. Pages never fail because of it: a count that fails or takes too long is
// [unknownCount], and while one request counts, the others get the last count. It is safe for concurrent use.
type counter struct {
	count    func(ctx context.Context) (int, error) // nil: always 0
	interval time.Duration                          // the minimum time between two counts

	mu       sync.Mutex
	last     int
	at       time.Time
	counting bool
}

func (c *counter) latest(ctx context.Context) int {
	c.mu.Lock()
	if c.count == nil {
		defer c.mu.Unlock()
		return 0
	}
	if c.counting || time.Since(c.at) < c.interval {
		defer c.mu.Unlock()
		return c.last
	}
	c.counting = true
	c.mu.Unlock()
	n := unknownCount
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.last, c.at, c.counting = n, time.Now(), false
	}()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), countTimeout) // the count is for other requests, too
	defer cancel()
	if counted, err := c.count(ctx); err == nil {
		n = counted
	}
	return n
}

func (c *counter) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = time.Time{}
}

func total(groups []deadletter.Group) int {
	n := 0
	for _, g := range groups {
		n += g.Count
	}
	return n
}

// failed returns which events have waiting dead letters, nil if that cannot be read.
func (c *Console) failed(ctx context.Context, list []events.Event) map[uuid.UUID]bool {
	ids := make([]uuid.UUID, len(list))
	for i, e := range list {
		ids[i] = e.ID
	}
	failed, err := c.letters.Failed(ctx, ids)
	if err != nil {
		return nil // the page is useful without the marks
	}
	return failed
}

type lettersPage struct {
	Query url.Values
	// Groups and Count are of all letters that match the filter.
	Groups []deadletter.Group
	Count  int
	// List is a page of the letters, the newest first. First is set on the first page. Next is the address of the next page,
	// "" on the last one.
	List  []deadletter.Letter
	First bool
	Next  string
	// Queued is the number of dead letters in the failed queue that are not ingested yet.
	Queued   int
	Problems []string
	// Actions are the latest actions that have changed letters.
	Actions        []audit.Entry
	ActionsProblem string
	// Elsewhere is the number of letters in other states that match, if none does in the state of the filter.
	Elsewhere int
	// Replays are the latest replays of this console, the latest first.
	Replays []jobPage
}

// Filter is the filter for the forms of the page.
func (p lettersPage) Filter() string {
	form := maps.Clone(p.Query)
	if filter, _ := letterFilter(form); filter.IsZero() { // whatever the state
		form.Set(chooseAll, "yes")
	}
	return form.Encode()
}

// Group is the group of the filter, if there is one.
func (p lettersPage) Group() *deadletter.Group {
	if p.Query.Get("group") == "" || len(p.Groups) != 1 {
		return nil
	}
	return &p.Groups[0]
}

func letterFilters() []string {
	return []string{"group", "handler", "type", "tenant", "aggregate", "correlation", "contains", "from", "until", "state"}
}

// anyState is the value of the field state that matches all states.
const anyState = "any"

// States are the options of the field state.
func (lettersPage) States() []string {
	list := []string{}
	for _, s := range deadletter.AllStates() {
		list = append(list, string(s))
	}
	return append(list, anyState)
}

// Filtered returns whether a field of the form is set.
func (p lettersPage) Filtered() bool { return len(p.Query) > 0 }

// State is the state of the letters in the list.
func (p lettersPage) State() string { return cmp.Or(p.Query.Get("state"), string(deadletter.Waiting)) }

// Acts are the actions for letters of the list.
func (p lettersPage) Acts() []string {
	switch p.State() {
	case string(deadletter.Waiting):
		return []string{actReplay, actArchive, actDiscard}
	case string(deadletter.Archived), string(deadletter.Discarded):
		return []string{actRestore}
	default:
		return nil
	}
}

// Elsewhere is the address of the list with the letters in all states.
func (p lettersPage) ElsewherePath() string {
	query := maps.Clone(p.Query)
	query.Set("state", anyState)
	return link("/dead-letters", query.Encode())
}

func (c *Console) deadLetters(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	p := lettersPage{Query: url.Values{}, First: query.Get("after") == "", Replays: c.jobs.latest()}
	for _, name := range letterFilters() {
		if value := strings.TrimSpace(query.Get(name)); value != "" {
			p.Query.Set(name, value)
		}
	}
	filter, problems := letterFilter(p.Query)
	if len(problems) > 0 {
		p.Problems = problems
		return c.render(w, r, http.StatusBadRequest, "letters", "Dead letters", p)
	}
	found, err := c.letters.Newest(r.Context(), filter, query.Get("after"), pageSize+1)
	if errors.Is(err, deadletter.ErrNotFound) { // the last letter of the previous page was purged
		return redirect(w, r, "/dead-letters?"+p.Query.Encode())
	}
	if err == nil {
		p.Groups, err = c.letters.Groups(r.Context(), filter)
	}
	if err != nil {
		return err
	}
	if p.Count = total(p.Groups); p.Count == 0 && p.Filtered() {
		filter.States = deadletter.AllStates()
		others, err := c.letters.Groups(r.Context(), filter)
		if err != nil {
			return err
		}
		p.Elsewhere = total(others)
	}
	p.List = found[:min(len(found), pageSize)]
	if len(found) > pageSize {
		next := url.Values{"after": {p.List[pageSize-1].ID}}
		for name, values := range p.Query {
			next[name] = values
		}
		p.Next = "/dead-letters?" + next.Encode()
	}
	p.Queued = c.queued.latest(r.Context())
	if p.Actions, err = c.onLetters(r.Context()); err != nil {
		p.ActionsProblem = "The latest actions cannot be read: " + err.Error() + "."
	}
	return c.render(w, r, http.StatusOK, "letters", "Dead letters", p)
}

// letterFilter parses a form. With problems, the filter must not be used.
func letterFilter(form url.Values) (deadletter.Filter, []string) {
	read := formReader{Values: form}
	f := deadletter.Filter{
		Group: form.Get("group"), Handler: form.Get("handler"), Type: form.Get("type"), Contains: form.Get("contains"),
		Tenant: read.id("tenant", "Tenant"), Aggregate: read.id("aggregate", "Aggregate"), Correlation: read.id("correlation", "Correlation"),
		Since: read.at("from", "From"), Until: read.at("until", "Until"),
	}
	for _, letter := range form["id"] {
		if letter != "" {
			f.IDs = append(f.IDs, letter)
		}
	}
	switch state := deadletter.State(form.Get("state")); {
	case state == anyState:
		f.States = deadletter.AllStates()
	case slices.Contains(deadletter.AllStates(), state):
		f.States = []deadletter.State{state}
	case state != "":
		read.problems = append(read.problems, "State must be one of the list.")
	}
	return f, read.problems
}

type letterPage struct {
	Letter   deadletter.Letter
	Stored   bool
	Causes   []events.Event
	Revealed bool
	// Body is set if it is revealed.
	Body string
}

func (c *Console) deadLetter(w http.ResponseWriter, r *http.Request) error {
	var p letterPage
	var err error
	p.Letter, err = c.letters.Find(r.Context(), r.PathValue("id"))
	if errors.Is(err, deadletter.ErrNotFound) {
		return refusal{http.StatusNotFound, "This dead letter does not exist, or was purged."}
	}
	if errors.Is(err, deadletter.ErrAmbiguous) {
		return refusal{http.StatusConflict, "This is the id of an event: " + err.Error() + "."}
	}
	if err != nil {
		return err
	}
	if e := p.Letter.Event; e.ID != uuid.Nil {
		_, err := c.store.ByID(r.Context(), e.ID)
		p.Stored = err == nil
		if p.Causes, err = c.causes(r.Context(), e); err != nil {
			return err
		}
	}
	if r.Method == http.MethodPost {
		if err := c.reveal(r, audit.Subject{}.With("letter_id", p.Letter.ID).WithID("event_id", p.Letter.Event.ID), 1); err != nil {
			return err
		}
		p.Revealed, p.Body = true, pretty(p.Letter.Body)
	}
	return c.render(w, r, http.StatusOK, "letter", "Dead letter", p)
}

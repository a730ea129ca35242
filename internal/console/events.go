package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

const (
	// pageSize is how many events a page shows.
	pageSize = 50
	// searchPatience is how long a page is looked for that has an event.
	searchPatience = 2 * time.Second
)

// eventsPage is the body of the search.
type eventsPage struct {
	Query  url.Values
	Events []events.Event
	// Failed are the ids of those among them that have dead letters.
	Failed map[uuid.UUID]bool
	// Next is the address of the next page, "" if there is none.
	Next string
	// First tells that no page is before this one.
	First    bool
	Problems []string
}

// Filtered tells whether anything is asked for.
func (p eventsPage) Filtered() bool {
	for _, name := range filterNames() {
		if p.Query.Get(name) != "" {
			return true
		}
	}
	return false
}

func filterNames() []string {
	return []string{"tenant", "type", "aggregate", "correlation", "cause", "from", "until"}
}

func (c *Console) events(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	query := r.URL.Query()
	p := eventsPage{Query: query, First: query.Get("after") == ""}
	search, problems := searchOf(query)
	if len(problems) > 0 {
		p.Problems = problems
		c.render(w, r, http.StatusBadRequest, "events", "Events", p)
		return
	}
	found, err := c.search(ctx, search, store.Cursor(query.Get("after")))
	if err != nil {
		c.fail(w, r, err)
		return
	}
	p.Events = found.Events
	p.Failed = c.failed(ctx, p.Events)
	if found.Next != "" {
		query.Set("after", string(found.Next))
		p.Next = "/events?" + query.Encode()
		query.Del("after")
	}
	c.render(w, r, http.StatusOK, "events", "Events", p)
}

// search reads a page, and goes on for a while where there is nothing on it yet.
func (c *Console) search(ctx context.Context, s store.Search, after store.Cursor) (store.Page, error) {
	for began := time.Now(); ; {
		page, err := c.store.Search(ctx, s, store.Query{Limit: pageSize, After: after})
		if err != nil || len(page.Events) > 0 || page.Next == "" || time.Since(began) > searchPatience {
			return page, err
		}
		after = page.Next
	}
}

// searchOf reads a search from a form, and says what in it is wrong.
func searchOf(query url.Values) (store.Search, []string) {
	f := formReader{Values: query}
	s := store.Search{
		TenantID: f.id("tenant", "Tenant"), AggregateID: f.id("aggregate", "Aggregate"), CorrelationID: f.id("correlation", "Correlation"),
		CausationID: f.id("cause", "Cause"), Type: strings.TrimSpace(query.Get("type")),
		From: f.at("from", "From"), Until: f.at("until", "Until"),
	}
	return s, f.problems
}

// find goes to what somebody has typed in: an id of whatever, or a type of events.
func (c *Console) find(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	text := strings.TrimSpace(r.URL.Query().Get("q"))
	id, err := events.ParseCorrelationID(text)
	if err != nil || id == uuid.Nil {
		http.Redirect(w, r, "/events?"+url.Values{"type": {text}}.Encode(), http.StatusSeeOther)
		return
	}
	target, err := c.whereabouts(ctx, id)
	if err != nil {
		c.fail(w, r, err)
		return
	}
	http.Redirect(w, r, target, http.StatusSeeOther)
}

// whereabouts is the page about the thing that has the id.
func (c *Console) whereabouts(ctx context.Context, id uuid.UUID) (string, error) {
	if _, err := c.store.ByID(ctx, id); !errors.Is(err, store.ErrNoEvent) {
		return "/events/" + id.String(), err
	}
	for _, of := range []struct {
		search store.Search
		page   func(found events.Event) string
	}{
		{store.Search{CorrelationID: id}, func(events.Event) string { return "/traces/" + id.String() }},
		{store.Search{AggregateID: id}, func(e events.Event) string { return aggregatePath(e.AggregateType, id) }},
		{store.Search{TenantID: id}, func(events.Event) string { return "/events?tenant=" + id.String() }},
		{store.Search{CausationID: id}, func(events.Event) string { return "/events?cause=" + id.String() }},
	} {
		found, err := c.store.Search(ctx, of.search, store.Query{Limit: 1})
		if err != nil {
			return "", err
		}
		if len(found.Events) > 0 {
			return of.page(found.Events[0]), nil
		}
	}
	return "", store.ErrNoEvent
}

// eventPage is the body of an event's page.
type eventPage struct {
	Event events.Event
	// Causes are the events that brought it about, the first of all first, as far as they are in the store.
	Causes []events.Event
	// Effects are the events that it brought about, the newest first, and MoreEffects tells that there are others.
	Effects     []events.Event
	MoreEffects bool
	Handled     []store.Handling
	// Letters are its dead letters, in whatever state, and Failed tells that one waits.
	Letters  []deadletter.Letter
	Failed   bool
	Revealed bool
	// Problems are what could not be read.
	Problems []string
	// Data and Metadata are shown when they are revealed.
	Data, Metadata string
	Bytes          int
}

// Cause is the last of the causes.
func (p eventPage) Cause() events.Event { return p.Causes[len(p.Causes)-1] }

func (c *Console) event(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	id, ok := c.uuidIn(w, r, "id")
	if !ok {
		return
	}
	p, err := c.lookUp(ctx, id)
	if err != nil {
		c.fail(w, r, err)
		return
	}
	if r.Method == http.MethodPost {
		c.revealed(r, "event", "event_id", id.String())
		p.Revealed, p.Data, p.Metadata = true, pretty(p.Event.Data), pretty(p.Event.Metadata)
	}
	c.render(w, r, http.StatusOK, "event", p.Event.Type, p)
}

func (c *Console) lookUp(ctx context.Context, id uuid.UUID) (eventPage, error) {
	found, err := c.store.ByID(ctx, id)
	if err != nil {
		return eventPage{}, err
	}
	e := found.Event
	p := eventPage{Event: e, Bytes: len(e.Data) + len(e.Metadata)}
	if p.Causes, err = c.causes(ctx, e); err != nil {
		return p, err
	}
	effects, err := c.store.Search(ctx, store.Search{CausationID: id}, store.Query{Limit: pageSize})
	if err != nil {
		return p, err
	}
	p.Effects, p.MoreEffects = effects.Events, effects.Next != ""
	handled, err := c.store.HandledOf(ctx, []uuid.UUID{id})
	if err != nil {
		return p, err
	}
	p.Handled = handled[id]
	for l, err := range c.letters.List(ctx, deadletter.Filter{IDs: []string{id.String()}, States: deadletter.AllStates(), Limit: pageSize}) {
		if err != nil {
			p.Problems = []string{"The dead letters cannot be read: " + err.Error()}
			break
		}
		p.Letters = append(p.Letters, l)
		p.Failed = p.Failed || l.State == deadletter.Waiting
	}
	return p, nil
}

// maxCauses is how many causes above an event are shown.
const maxCauses = 12

// causes are those of an event, up to the first of all or as far as they are in the store.
func (c *Console) causes(ctx context.Context, e events.Event) ([]events.Event, error) {
	var list []events.Event
	for len(list) < maxCauses && e.CausationID.Valid {
		cause, err := c.store.ByID(ctx, e.CausationID.UUID)
		if errors.Is(err, store.ErrNoEvent) {
			break
		}
		if err != nil {
			return nil, err
		}
		e = cause.Event
		e.Data, e.Metadata = nil, nil
		list = append(list, e)
	}
	slices.Reverse(list)
	return list, nil
}

// revealed logs that somebody has seen the data of something, and nothing of it.
func (c *Console) revealed(r *http.Request, what string, attrs ...any) {
	v := viewerOf(r.Context())
	attrs = append([]any{"of", what, "who", v.Who, "client", v.Client.String()}, attrs...)
	c.logger.InfoContext(r.Context(), "console: event data was revealed", attrs...)
}

// aggregatePage is the body of an aggregate's history.
type aggregatePage struct {
	Type   string
	ID     uuid.UUID
	Steps  []step
	Failed map[uuid.UUID]bool
	// After is the cursor behind which the steps begin, and Next the address of the page behind them.
	After, Next string
	Stateful    bool
	Revealed    bool
	// Problem says why there is no state.
	Problem string
}

// step is an event of an aggregate, and the state after it.
type step struct {
	Event       events.Event
	Data, State string
}

func (c *Console) aggregate(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	id, ok := c.uuidIn(w, r, "id")
	if !ok {
		return
	}
	p := aggregatePage{Type: r.PathValue("type"), ID: id, Revealed: r.Method == http.MethodPost}
	p.After = r.FormValue("after")
	page, err := c.store.ByAggregate(ctx, p.Type, id, store.Query{Limit: pageSize, After: store.Cursor(p.After)})
	if err == nil && len(page.Events) == 0 {
		err = store.ErrNoEvent
	}
	if err != nil {
		c.fail(w, r, err)
		return
	}
	for _, e := range page.Events {
		p.Steps = append(p.Steps, step{Event: e})
	}
	p.Failed = c.failed(ctx, page.Events)
	if page.Next != "" {
		p.Next = aggregatePath(p.Type, id) + "?" + url.Values{"after": {string(page.Next)}}.Encode()
	}
	empty := c.aggregates[p.Type]
	p.Stateful = empty != nil
	if p.Revealed {
		c.revealAggregate(ctx, r, &p, empty)
	}
	c.render(w, r, http.StatusOK, "aggregate", p.Type, p)
}

// revealAggregate fills in the data of the steps, and the states after them.
func (c *Console) revealAggregate(ctx context.Context, r *http.Request, p *aggregatePage, empty func() events.Stateful) {
	ids := make([]string, len(p.Steps))
	for i := range p.Steps {
		s := &p.Steps[i]
		ids[i], s.Data = s.Event.ID.String(), pretty(s.Event.Data)
	}
	c.revealed(r, "aggregate", "aggregate_type", p.Type, "aggregate_id", p.ID.String(), "event_ids", ids)
	if empty == nil {
		return
	}
	if err := c.states(ctx, p, empty()); err != nil {
		p.Problem = err.Error()
	}
}

// states loads an aggregate, and takes its state after each of the steps.
func (c *Console) states(ctx context.Context, p *aggregatePage, a events.Stateful) error {
	first := p.Steps[0].Event.AggregateVersion
	var after store.Cursor
	for version := 1; version < first; {
		page, err := c.store.ByAggregate(ctx, p.Type, p.ID, store.Query{Limit: min(first-version, store.MaxLimit), After: after})
		if err == nil {
			err = events.Load(a, history(page.Events...))
		}
		if err != nil {
			return err
		}
		if page.Next == "" {
			return fmt.Errorf("the history ends before version %d", first)
		}
		version, after = version+len(page.Events), page.Next
	}
	for i := range p.Steps {
		s := &p.Steps[i]
		if err := events.Load(a, history(s.Event)); err != nil {
			return err
		}
		state, err := json.MarshalIndent(a.State(), "", "  ")
		if err != nil {
			return fmt.Errorf("encode the state after version %d: %w", s.Event.AggregateVersion, err)
		}
		s.State = string(state)
	}
	return nil
}

func history(list ...events.Event) func(yield func(events.Event, error) bool) {
	return func(yield func(events.Event, error) bool) {
		for _, e := range list {
			if !yield(e, nil) {
				return
			}
		}
	}
}

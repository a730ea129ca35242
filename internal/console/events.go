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

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

const (
	// pageSize is the number of rows of a page.
	pageSize = 50
	// searchTimeout bounds the search for a first event, which may need several queries.
	searchTimeout = 2 * time.Second
)

type eventsPage struct {
	Query  url.Values
	Events []events.Event
	// Failed are the ids of those with waiting dead letters.
	Failed map[uuid.UUID]bool
	// Next is the address of the next page, "" if there is none.
	Next string
	// First is set on the first page.
	First    bool
	Problems []string
}

// Filtered returns whether a filter is set.
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

func (c *Console) events(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	p := eventsPage{Query: query, First: query.Get("after") == ""}
	search, problems := searchOf(query)
	if len(problems) > 0 {
		p.Problems = problems
		return c.render(w, r, http.StatusBadRequest, "events", "Events", p)
	}
	found, err := c.search(r.Context(), search, store.Cursor(query.Get("after")))
	if err != nil {
		return err
	}
	p.Events = found.Events
	p.Failed = c.failed(r.Context(), p.Events)
	if found.Next != "" {
		query.Set("after", string(found.Next))
		p.Next = "/events?" + query.Encode()
	}
	query.Del("after")
	return c.render(w, r, http.StatusOK, "events", "Events", p)
}

// search reads a page. A query examines a limited number of events, so it repeats the query while it finds none.
func (c *Console) search(ctx context.Context, s store.Search, after store.Cursor) (store.Page, error) {
	for began := time.Now(); ; {
		page, err := c.store.Search(ctx, s, store.Query{Limit: pageSize, After: after, WithoutData: true})
		if err != nil || len(page.Events) > 0 || page.Next == "" || time.Since(began) > searchTimeout {
			return page, err
		}
		after = page.Next
	}
}

func searchOf(query url.Values) (store.Search, []string) {
	f := formReader{Values: query}
	s := store.Search{
		TenantID: f.id("tenant", "Tenant"), AggregateID: f.id("aggregate", "Aggregate"), CorrelationID: f.id("correlation", "Correlation"),
		CausationID: f.id("cause", "Cause"), Type: strings.TrimSpace(query.Get("type")),
		From: f.at("from", "From"), Until: f.at("until", "Until"),
	}
	return s, f.problems
}

// pageOf returns the address of the page of an id.
func (c *Console) pageOf(ctx context.Context, id uuid.UUID) (string, error) {
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
		found, err := c.store.Search(ctx, of.search, store.Query{Limit: 1, WithoutData: true})
		if err != nil {
			return "", err
		}
		if len(found.Events) > 0 {
			return of.page(found.Events[0]), nil
		}
	}
	return "", store.ErrNoEvent
}

type eventPage struct {
	Event events.Event
	// Causes are the chain of causes in the store, from the root to the direct cause.
	Causes []events.Event
	// Effects are the direct effects, the newest first. MoreEffects is set if there are others.
	Effects     []events.Event
	MoreEffects bool
	Handled     []store.Handling
	// Letters are its dead letters in all states. Failed is set if one is waiting.
	Letters  []deadletter.Letter
	Failed   bool
	Revealed bool
	// Problems are the failed queries.
	Problems []string
	// Data and Metadata are set if they are revealed.
	Data, Metadata string
	Bytes          int
}

// Cause is the direct cause.
func (p eventPage) Cause() events.Event { return p.Causes[len(p.Causes)-1] }

func (c *Console) event(w http.ResponseWriter, r *http.Request) error {
	id, err := uuidIn(r, "id")
	if err != nil {
		return err
	}
	p, err := c.eventPage(r.Context(), id)
	if err != nil {
		return err
	}
	if r.Method == http.MethodPost {
		if err := c.reveal(r, audit.Subject{}.WithID("event_id", id), 1); err != nil {
			return err
		}
		p.Revealed, p.Data, p.Metadata = true, pretty(p.Event.Data), pretty(p.Event.Metadata)
	}
	return c.render(w, r, http.StatusOK, "event", p.Event.Type, p)
}

func (c *Console) eventPage(ctx context.Context, id uuid.UUID) (eventPage, error) {
	found, err := c.store.ByID(ctx, id)
	if err != nil {
		return eventPage{}, err
	}
	e := found.Event
	p := eventPage{Event: e, Bytes: len(e.Data) + len(e.Metadata)}
	if p.Causes, err = c.causes(ctx, e); err != nil {
		return p, err
	}
	effects, err := c.store.Search(ctx, store.Search{CausationID: id}, store.Query{Limit: pageSize, WithoutData: true})
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

const maxCauses = 12

// causes returns the chain of causes of an event, as far as it is in the store.
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

type aggregatePage struct {
	Type   string
	ID     uuid.UUID
	Steps  []step
	Failed map[uuid.UUID]bool
	// After is the cursor of the page, and Next the address of the next page.
	After, Next string
	Stateful    bool
	Revealed    bool
	// Problem says why the state cannot be shown.
	Problem string
}

type step struct {
	Event       events.Event
	Data, State string
}

func (c *Console) aggregate(w http.ResponseWriter, r *http.Request) error {
	id, err := uuidIn(r, "id")
	if err != nil {
		return err
	}
	p := aggregatePage{Type: r.PathValue("type"), ID: id, Revealed: r.Method == http.MethodPost}
	p.After = r.FormValue("after")
	page, err := c.store.ByAggregate(r.Context(), p.Type, id, store.Query{
		Limit: pageSize, After: store.Cursor(p.After), MaxBytes: store.PageBytes, WithoutData: !p.Revealed,
	})
	if err == nil && len(page.Events) == 0 {
		err = store.ErrNoEvent
	}
	if err != nil {
		return err
	}
	for _, e := range page.Events {
		p.Steps = append(p.Steps, step{Event: e})
	}
	p.Failed = c.failed(r.Context(), page.Events)
	if page.Next != "" {
		p.Next = aggregatePath(p.Type, id) + "?" + url.Values{"after": {string(page.Next)}}.Encode()
	}
	empty := c.aggregates[p.Type]
	p.Stateful = empty != nil
	if p.Revealed {
		if err := c.revealAggregate(r, &p, empty); err != nil {
			return err
		}
	}
	return c.render(w, r, http.StatusOK, "aggregate", p.Type, p)
}

// revealAggregate fills in the data of the steps and the states after them.
func (c *Console) revealAggregate(r *http.Request, p *aggregatePage, empty func() events.Stateful) error {
	ids := make([]string, len(p.Steps))
	for i := range p.Steps {
		s := &p.Steps[i]
		ids[i], s.Data = s.Event.ID.String(), pretty(s.Event.Data)
	}
	subject := audit.Subject{}.With("aggregate", p.Type+"/"+p.ID.String()).WithList("event_ids", ids)
	if err := c.reveal(r, subject, len(ids)); err != nil {
		return err
	}
	if empty == nil {
		return nil
	}
	if err := c.states(r.Context(), p, empty()); err != nil {
		p.Problem = err.Error()
	}
	return nil
}

// states loads an aggregate and records its state after each step, up to [store.PageBytes] of states.
func (c *Console) states(ctx context.Context, p *aggregatePage, a events.Stateful) error {
	first := p.Steps[0].Event.AggregateVersion
	err := events.Load(a, func(yield func(events.Event, error) bool) {
		for e, err := range c.store.Stream(ctx, p.Type, p.ID, 0) {
			if err == nil && e.AggregateVersion >= first || !yield(e, err) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	size := 0
	for i := range p.Steps {
		s := &p.Steps[i]
		err := events.Load(a, func(yield func(events.Event, error) bool) { yield(s.Event, nil) })
		if err != nil {
			return err
		}
		state, err := json.MarshalIndent(a.State(), "", "  ")
		if err != nil {
			return fmt.Errorf("encode the state after version %d: %w", s.Event.AggregateVersion, err)
		}
		if size += len(state); size > store.PageBytes {
			return fmt.Errorf("the states from version %d on are too large to be shown", s.Event.AggregateVersion)
		}
		s.State = string(state)
	}
	return nil
}

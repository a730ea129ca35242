package console

import (
	"context"
	"errors"
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
	// minShort is the minimum length of the end of an id by which it is found.
	minShort = 6
	// recentEvents is the number of the latest events among which the end of an id, and names, are looked up.
	recentEvents = 10_000
	// scanPage is the number of events per query of such a lookup.
	scanPage = 1000
	// maxSuggestions limits the suggestions of a search that finds nothing.
	maxSuggestions = 12
)

// findPage says that nothing was found.
type findPage struct {
	Text string
	// Similar are names that contain the text.
	Similar []found
	// Examined is the number of the latest events whose ids were compared with a short form.
	Examined int
}

// found is a page that a search finds.
type found struct{ Name, Path string }

// find redirects to the page of what the user has entered: an id of any kind or its end, an aggregate as Type/ID, a group, a
// handler or an event type.
func (c *Console) find(w http.ResponseWriter, r *http.Request) error {
	text := strings.TrimSpace(r.URL.Query().Get("q"))
	s := finder{Console: c, ctx: r.Context(), text: text}
	target, err := s.find()
	if err != nil {
		return err
	}
	if target != "" {
		return redirect(w, r, target)
	}
	return c.render(w, r, http.StatusNotFound, "find", "Find", findPage{Text: text, Similar: s.similar(), Examined: s.examined})
}

// finder is a search.
type finder struct {
	*Console

	ctx  context.Context //nolint:containedctx // of the request
	text string
	// names are of all event types and handlers that the search has come across.
	names    []found
	examined int
}

// find returns the address of a page, "" if nothing is found.
func (f *finder) find() (string, error) {
	if f.text == "" {
		return "", nil
	}
	for _, look := range []func() (string, error){f.aggregate, f.id, f.letter, f.named, f.recent} {
		if target, err := look(); err != nil || target != "" {
			return target, err
		}
	}
	return "", nil
}

// aggregate finds an aggregate by Type/ID.
func (f *finder) aggregate() (string, error) {
	i := strings.LastIndexByte(f.text, '/')
	id, err := uuid.Parse(f.text[i+1:])
	if i < 0 || err != nil {
		return "", nil //nolint:nilerr // it is no aggregate
	}
	page, err := f.store.Search(f.ctx, store.Search{AggregateID: id}, store.Query{Limit: 1, WithoutData: true})
	if err != nil || len(page.Events) == 0 || !strings.EqualFold(page.Events[0].AggregateType, f.text[:i]) {
		return "", err
	}
	return aggregatePath(page.Events[0].AggregateType, id), nil
}

// id finds an id of an event, of a trace, of an aggregate or of a tenant.
func (f *finder) id() (string, error) {
	id, err := events.ParseCorrelationID(f.text)
	if err != nil || id == uuid.Nil {
		return "", nil //nolint:nilerr // it is no id
	}
	target, err := f.pageOf(f.ctx, id)
	if errors.Is(err, store.ErrNoEvent) {
		return "", nil
	}
	return target, err
}

// letter finds a dead letter by its id or by that of its event, and a group.
func (f *finder) letter() (string, error) {
	for _, id := range []string{f.text, strings.ToUpper(f.text), strings.ToLower(f.text)} {
		letter, err := f.letters.Find(f.ctx, id)
		switch {
		case err == nil:
			return letterPath(letter.ID), nil
		case errors.Is(err, deadletter.ErrAmbiguous): // it is the id of an event
			return "/traces/" + strings.ToLower(id), nil
		case !errors.Is(err, deadletter.ErrNotFound):
			return "", err
		}
	}
	if id, err := uuid.Parse(f.text); err == nil && id != uuid.Nil {
		return f.idOfLetters(id)
	}
	group := strings.ToLower(f.text)
	some, err := f.letters.Newest(f.ctx, deadletter.Filter{Group: group, States: deadletter.AllStates()}, "", 1)
	if err != nil || len(some) == 0 {
		return "", err
	}
	return link("/dead-letters", url.Values{"group": {group}}.Encode()), nil
}

// idOfLetters finds the id of a trace, of an aggregate or of a tenant whose events are not in the store.
func (f *finder) idOfLetters(id uuid.UUID) (string, error) {
	for _, of := range []struct {
		filter deadletter.Filter
		page   string
	}{
		{deadletter.Filter{Correlation: id}, "/traces/" + id.String()},
		{deadletter.Filter{Aggregate: id}, "/dead-letters?aggregate=" + id.String() + "&state=" + anyState},
		{deadletter.Filter{Tenant: id}, "/dead-letters?state=" + anyState + "&tenant=" + id.String()},
	} {
		of.filter.States = deadletter.AllStates()
		some, err := f.letters.Newest(f.ctx, of.filter, "", 1)
		if err != nil || len(some) > 0 {
			return of.page, err
		}
	}
	return "", nil
}

// named finds a handler or an event type that is registered or of a dead letter.
func (f *finder) named() (string, error) {
	for _, handler := range f.handlers {
		f.addName("handler", handler)
	}
	for _, eventType := range f.types {
		f.addName("type", eventType)
	}
	if target := f.exactly(); target != "" {
		return target, nil
	}
	groups, err := f.letters.Groups(f.ctx, deadletter.Filter{States: deadletter.AllStates()})
	if err != nil {
		return "", err
	}
	for _, g := range groups {
		f.addName("handler", g.Handler)
		f.addName("type", g.Type)
	}
	if target := f.exactly(); target != "" {
		return target, nil
	}
	page, err := f.store.Search(f.ctx, store.Search{Type: f.text}, store.Query{Limit: 1, WithoutData: true})
	if err != nil || len(page.Events) == 0 {
		return "", err
	}
	return link("/events", url.Values{"type": {f.text}}.Encode()), nil
}

func (f *finder) addName(kind, name string) {
	path := "/dead-letters"
	if kind == "type" {
		path = "/events"
	}
	if n := (found{name, link(path, url.Values{kind: {name}}.Encode())}); name != "" && !slices.Contains(f.names, n) {
		f.names = append(f.names, n)
	}
}

// exactly returns the page of the name that is the text, in any case.
func (f *finder) exactly() string {
	for _, n := range f.names {
		if strings.EqualFold(n.Name, f.text) {
			return n.Path
		}
	}
	return ""
}

// recent finds the end of an id, or an event type in another case, among the latest events.
func (f *finder) recent() (string, error) {
	end := f.text // "…5d89b244", "Clinic …5d89b244", "Clinic/…5d89b244", "...5d89b244" or "5d89b244"
	for _, dots := range []string{"…", "..."} {
		_, after, found := strings.Cut(end, dots)
		if found {
			end = after
		}
	}
	end = strings.ToLower(end)
	if target, err := f.endOfLetter(end); err != nil || target != "" {
		return target, err
	}
	isShort := len(end) >= minShort && strings.Trim(end, "0123456789abcdef-") == ""
	began := time.Now()
	var after store.Cursor
	for f.examined < recentEvents && time.Since(began) < searchTimeout {
		page, err := f.store.Search(f.ctx, store.Search{}, store.Query{Limit: scanPage, After: after, WithoutData: true})
		if err != nil {
			return "", err
		}
		f.examined += len(page.Events)
		for _, e := range page.Events {
			f.addName("type", e.Type)
			if !isShort {
				continue
			}
			for _, of := range []struct {
				id   uuid.UUID
				page string
			}{
				{e.ID, "/events/" + e.ID.String()},
				{e.AggregateID, aggregatePath(e.AggregateType, e.AggregateID)},
				{e.CorrelationID, "/traces/" + e.CorrelationID.String()},
				{e.TenantID, "/events?tenant=" + e.TenantID.String()},
			} {
				if strings.HasSuffix(of.id.String(), end) {
					return of.page, nil
				}
			}
		}
		if target := f.exactly(); target != "" || page.Next == "" {
			return target, nil
		}
		after = page.Next
	}
	return "", nil
}

// endOfLetter finds the end of the id of one of the latest dead letters.
func (f *finder) endOfLetter(end string) (string, error) {
	if len(end) < minShort {
		return "", nil
	}
	latest, err := f.letters.Newest(f.ctx, deadletter.Filter{States: deadletter.AllStates()}, "", scanPage)
	for _, l := range latest {
		if strings.HasSuffix(strings.ToLower(l.ID), end) {
			return letterPath(l.ID), nil
		}
	}
	return "", err
}

// similar returns the names that contain the text.
func (f *finder) similar() []found {
	var list []found
	for _, n := range f.names {
		if f.text != "" && strings.Contains(strings.ToLower(n.Name), strings.ToLower(f.text)) {
			list = append(list, n)
		}
	}
	slices.SortFunc(list, func(a, b found) int { return strings.Compare(a.Name, b.Name) })
	return list[:min(len(list), maxSuggestions)]
}

package console

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
)

const (
	// maxLetters is how many dead letters the console looks at, the oldest.
	maxLetters = 10_000
	// lettersAge is how long a look at the dead letters is good for, or as many times as long as it took: on a broker
	// nobody else sees a letter while it is looked at.
	lettersAge   = 2 * time.Second
	lettersPause = 30
)

// letters are the dead letters at one moment, without their bodies.
type letters struct {
	List   []deadletter.Letter
	Groups []deadletter.Group
	// Truncated tells that there are more than the console looks at.
	Truncated bool
	At        time.Time
}

// letterBox looks at the dead letters, not too often. It is safe for concurrent use.
type letterBox struct {
	queue deadletter.Queue

	looking chan struct{} // holds a token while nobody looks
	last    letters
	took    time.Duration
	known   bool
}

func newLetterBox(queue deadletter.Queue) *letterBox {
	b := &letterBox{queue: queue, looking: make(chan struct{}, 1)}
	b.looking <- struct{}{}
	return b
}

// look returns the dead letters as they are, or were lately.
func (b *letterBox) look(ctx context.Context) (letters, error) {
	select {
	case <-b.looking:
	case <-ctx.Done():
		return letters{}, ctx.Err()
	}
	defer func() { b.looking <- struct{}{} }()
	if b.known && time.Since(b.last.At) < max(lettersAge, lettersPause*b.took) {
		return b.last, nil
	}
	began := time.Now()
	found, err := b.read(ctx)
	switch {
	case errors.Is(err, deadletter.ErrBusy) && b.known:
		return b.last, nil
	case err != nil:
		return letters{}, err
	}
	b.last, b.took, b.known = found, time.Since(began), true
	return found, nil
}

func (b *letterBox) read(ctx context.Context) (letters, error) {
	found := letters{At: time.Now()}
	for l, err := range b.queue.List(ctx, deadletter.Filter{Limit: maxLetters + 1}) {
		if err != nil {
			return letters{}, err
		}
		if len(found.List) == maxLetters {
			found.Truncated = true
			break
		}
		l.Body, l.Raw, l.Headers, l.Event.Data, l.Event.Metadata = nil, nil, nil, nil, nil
		found.List = append(found.List, l)
	}
	var err error
	found.Groups, err = deadletter.Groups(found.all())
	return found, err
}

// all yields the letters.
func (l letters) all() iter.Seq2[deadletter.Letter, error] {
	return func(yield func(deadletter.Letter, error) bool) {
		for _, letter := range l.List {
			if !yield(letter, nil) {
				return
			}
		}
	}
}

// renew looks again, whatever is known.
func (b *letterBox) renew(ctx context.Context) {
	select {
	case <-b.looking:
		b.last.At = time.Time{}
		b.looking <- struct{}{}
		_, _ = b.look(ctx) // whoever looks next is told what is wrong
	case <-ctx.Done():
	}
}

// count is how many letters there were at the last look, -1 if there was none or one is being taken.
func (b *letterBox) count() int {
	select {
	case <-b.looking:
	default:
		return -1
	}
	defer func() { b.looking <- struct{}{} }()
	if !b.known {
		return -1
	}
	return len(b.last.List)
}

// List yields the letters of a look that a filter chooses.
func (b *letterBox) List(ctx context.Context, f deadletter.Filter) iter.Seq2[deadletter.Letter, error] {
	found, err := b.look(ctx)
	if err != nil {
		return func(yield func(deadletter.Letter, error) bool) { yield(deadletter.Letter{}, err) }
	}
	return f.Choose(found.all())
}

// Failed tells which events have dead letters.
func (l letters) Failed() map[uuid.UUID]bool {
	failed := make(map[uuid.UUID]bool, len(l.List))
	for _, letter := range l.List {
		failed[letter.Event.ID] = true
	}
	return failed
}

// failed tells which of the events have dead letters, if that can be told.
func (b *letterBox) failed(ctx context.Context, list []events.Event) map[uuid.UUID]bool {
	wanted, failed := make(map[uuid.UUID]bool, len(list)), map[uuid.UUID]bool{}
	for _, e := range list {
		wanted[e.ID] = true
	}
	for l, err := range b.List(ctx, deadletter.Filter{}) {
		if err != nil {
			break
		}
		if wanted[l.Event.ID] {
			failed[l.Event.ID] = true
		}
	}
	return failed
}

// of are the letters of an event.
func (b *letterBox) of(ctx context.Context, id uuid.UUID) ([]deadletter.Letter, error) {
	found, err := b.look(ctx)
	return slices.DeleteFunc(slices.Clone(found.List), func(l deadletter.Letter) bool { return l.Event.ID != id }), err
}

// lettersPage is the body of the list of dead letters.
type lettersPage struct {
	Letters letters
	Query   url.Values
	// Group is the group that is looked at, if it is one.
	Group *deadletter.Group
	List  []deadletter.Letter
	// More is how many others the filter chooses.
	More     int
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

// Count is how many letters the filter chooses.
func (p lettersPage) Count() int { return len(p.List) + p.More }

func letterFilters() []string { return []string{"group", "handler", "type", "tenant", "correlation"} }

func (c *Console) deadLetters(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	found, err := c.letters.look(ctx)
	if err != nil {
		c.fail(w, r, err)
		return
	}
	p := lettersPage{Letters: found, Query: url.Values{}, Replays: c.jobs.latest(), May: c.abilities(r)}
	if n, err := strconv.Atoi(r.URL.Query().Get("archived")); err == nil {
		p.Archived = plural(n, "letter is", "letters are") + " in the archive: worker dlq restore brings them back."
	}
	for _, name := range letterFilters() {
		if value := strings.TrimSpace(r.URL.Query().Get(name)); value != "" {
			p.Query.Set(name, value)
		}
	}
	filter, problems := letterFilter(p.Query)
	p.Problems = problems
	for _, l := range found.List {
		if len(problems) > 0 || !filter.Match(l) {
			continue
		}
		if len(p.List) == pageSize {
			p.More++
			continue
		}
		p.List = append(p.List, l)
	}
	for _, g := range found.Groups {
		if g.ID == filter.Group {
			p.Group = &g
		}
	}
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
	May  abilities
}

func (c *Console) deadLetter(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	id := r.PathValue("id")
	p := letterPage{May: c.abilities(r)}
	for l, err := range c.letters.queue.List(ctx, deadletter.Filter{IDs: []string{id}, Limit: 1}) {
		if err != nil {
			c.fail(w, r, err)
			return
		}
		p.Letter = l
	}
	if p.Letter.ID == "" {
		c.refuse(w, r, http.StatusNotFound, "There is no such dead letter, or no longer: it was replayed, or archived.")
		return
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

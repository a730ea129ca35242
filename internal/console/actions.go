package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/handlers"
)

const (
	// replayPatience and replayFailures are of replays, see [deadletter.ReplayOptions].
	replayPatience = 20 * time.Second
	replayFailures = 3
	// minRate and maxRate bound the letters that one may wish to be sent in a second.
	minRate, maxRate = 1e-3, 1e6
	// maxTried is the most letters of a dry run, the oldest.
	maxTried = 50
	// actTimeout bounds what a request waits for that changes something.
	actTimeout = time.Minute
	// maxReason bounds the reason of an archiving, in bytes.
	maxReason = 500
	// chooseAll is the name, in a form, of the wish to choose all letters, which a form that is incomplete does not have.
	chooseAll = "all"
)

// abilities are what the viewer can do with dead letters here.
type abilities struct{ Replay, Try, Archive bool }

func (c *Console) abilities(r *http.Request) abilities {
	may := viewerOf(r.Context()).MayWrite()
	return abilities{Replay: may, Try: may && c.try != nil, Archive: may}
}

// chosen are the letters that a form is about.
type chosen struct {
	deadletter.Filter

	// form is the filter as it was given, and Title says it in words.
	form  url.Values
	Title string
}

// chosenIn reads which letters a form is about; if it cannot be read it has answered.
func (c *Console) chosenIn(w http.ResponseWriter, r *http.Request) (chosen, bool) {
	form, err := url.ParseQuery(r.PostFormValue("filter"))
	known := append(letterFilters(), "id", chooseAll)
	for name := range form {
		if !slices.Contains(known, name) {
			err = errors.New("unknown condition")
		}
	}
	filter, problems := letterFilter(form)
	switch {
	case len(problems) > 0:
		c.refuse(w, r, http.StatusBadRequest, strings.Join(problems, " "))
		return chosen{}, false
	case err != nil || !isTextForm(form) || filter.IsZero() && form.Get(chooseAll) == "":
		c.refuse(w, r, http.StatusBadRequest, "The form does not say which letters it is about.")
		return chosen{}, false
	}
	return chosen{Filter: filter, form: form, Title: inWords(form)}, true
}

// inWords says what a form chooses.
func inWords(form url.Values) string {
	if id := form.Get("id"); id != "" {
		return "dead letter " + id
	}
	var parts []string
	for _, name := range letterFilters() {
		if value := form.Get(name); value != "" {
			parts = append(parts, name+" "+value)
		}
	}
	if len(parts) == 0 {
		return "all dead letters"
	}
	return "the dead letters of " + strings.Join(parts, ", ")
}

// logAction logs what somebody does with dead letters.
func (c *Console) logAction(r *http.Request, what string, of chosen) {
	v := viewerOf(r.Context())
	attrs := []any{"action", what, "who", v.Who, "client", v.Client.String()}
	for _, name := range append([]string{"id"}, letterFilters()...) {
		if value := of.form.Get(name); value != "" {
			attrs = append(attrs, "letter_"+name, value)
		}
	}
	c.logger.InfoContext(r.Context(), "console: dead letters", attrs...)
}

// replay begins a replay of what a form chooses, and goes to its page.
func (c *Console) replay(w http.ResponseWriter, r *http.Request) {
	letters, ok := c.chosenIn(w, r)
	if !ok {
		return
	}
	o := deadletter.ReplayOptions{Patience: replayPatience, MaxFailures: replayFailures}
	var err error
	if text := r.PostFormValue("max_failures"); text != "" {
		if o.MaxFailures, err = strconv.Atoi(text); err != nil || o.MaxFailures < 0 {
			c.refuse(w, r, http.StatusBadRequest, "How many may fail again must be a number.")
			return
		}
	}
	if text := r.PostFormValue("rate"); text != "" {
		if o.Rate, err = strconv.ParseFloat(text, 64); err != nil || !(o.Rate >= minRate && o.Rate <= maxRate) {
			c.refuse(w, r, http.StatusBadRequest, "The rate must be a number of letters a second, from 0.001 to a million.")
			return
		}
	}
	c.logAction(r, "replay", letters)
	//nolint:contextcheck // a replay goes on when the request is over
	j := c.jobs.start(letters.Title, viewerOf(r.Context()).Who, func(ctx context.Context, report func(deadletter.Progress)) error {
		for p, err := range c.letters.Replay(ctx, letters.Filter, o) {
			if err != nil {
				return err
			}
			report(p)
		}
		return nil
	})
	http.Redirect(w, r, "/replays/"+j.ID, http.StatusSeeOther)
}

// tryPage is the body of the page that says what would become of letters.
type tryPage struct {
	Title    string
	Filter   string
	Outcomes []handlers.Outcome
	Pass     int
	// Limited tells that there are more letters.
	Limited bool
	May     abilities
}

// tryLetters shows what would become of letters if they were replayed.
func (c *Console) tryLetters(w http.ResponseWriter, r *http.Request) {
	if c.try == nil {
		c.refuse(w, r, http.StatusNotFound, "This worker has no dry runs.")
		return
	}
	letters, ok := c.chosenIn(w, r)
	if !ok {
		return
	}
	c.logAction(r, "dry run", letters)
	ctx, cancel := context.WithTimeout(r.Context(), actTimeout)
	defer cancel()
	p := tryPage{Title: letters.Title, Filter: letters.form.Encode(), May: c.abilities(r)}
	letters.Limit = maxTried + 1
	for outcome, err := range c.try(ctx, letters.Filter) {
		if err != nil {
			c.fail(w, r, err)
			return
		}
		if len(p.Outcomes) == maxTried {
			p.Limited = true
			break
		}
		if outcome.Verdict == handlers.WouldPass {
			p.Pass++
		}
		outcome.Letter.Body = nil
		p.Outcomes = append(p.Outcomes, outcome)
	}
	c.render(w, r, http.StatusOK, "try", "Dry run", p)
}

// archiveLetters archives letters, with a reason.
func (c *Console) archiveLetters(w http.ResponseWriter, r *http.Request) {
	letters, ok := c.chosenIn(w, r)
	if !ok {
		return
	}
	reason := strings.TrimSpace(strings.ToValidUTF8(r.PostFormValue("reason"), ""))
	if reason == "" || len(reason) > maxReason {
		c.refuse(w, r, http.StatusUnprocessableEntity, "Say why, in a few words: the archive keeps it.")
		return
	}
	c.logAction(r, "archive", letters)
	ctx, cancel := context.WithTimeout(r.Context(), actTimeout)
	defer cancel()
	n, err := c.letters.PutAside(ctx, letters.Filter, deadletter.Archived, deadletter.Decision{By: viewerOf(r.Context()).Who, Reason: reason})
	c.waiting.forget()
	if err != nil {
		c.fail(w, r, fmt.Errorf("%s archived, the others were not: %w", plural(n, "letter was", "letters were"), err))
		return
	}
	http.Redirect(w, r, "/dead-letters?archived="+strconv.Itoa(n), http.StatusSeeOther)
}

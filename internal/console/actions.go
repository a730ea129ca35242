package console

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/handlers"
)

const (
	// replayPatience and replayFailures are the defaults of replays, see [deadletter.ReplayOptions].
	replayPatience = 20 * time.Second
	replayFailures = 3
	// minRate and maxRate are the limits of the rate of a replay, in letters per second.
	minRate, maxRate = 1e-3, 1e6
	// maxTried is the maximum number of letters of a dry run.
	maxTried = 50
	// actTimeout bounds a POST.
	actTimeout = time.Minute
	// maxReason is the size limit of the reason for archiving, in bytes.
	maxReason = 500
	// chooseAll is the form field that selects all letters. An incomplete form does not select all letters.
	chooseAll = "all"
	// countedField is the form field that bounds the last failure to that of the letters that were counted.
	countedField = "counted_until"
)

// Actions on letters, by the last part of their address.
const (
	actReplay  = "replay"
	actArchive = "archive"
	actDiscard = "discard"
	actRestore = "restore"
)

// chosen are the letters that a form selects.
type chosen struct {
	deadletter.Filter

	// count is how many the form has named on its button, and confirmed whether it has named any.
	count     int
	confirmed bool

	// form is the filter of the form, and Title describes it.
	form  url.Values
	Title string
}

// chosenIn parses which letters a form selects.
func chosenIn(r *http.Request) (chosen, error) {
	form, err := url.ParseQuery(r.PostFormValue("filter"))
	if ids := r.PostForm["id"]; len(ids) > 0 { // those that are checked
		form["id"] = ids
	}
	if r.Method == http.MethodGet {
		form = r.URL.Query()
		form.Del("was")
	}
	known := append(letterFilters(), "id", countedField, chooseAll)
	for name := range form {
		if !slices.Contains(known, name) {
			err = errors.New("unknown condition")
		}
	}
	filter, problems := letterFilter(form)
	switch {
	case len(problems) > 0:
		return chosen{}, refusal{http.StatusBadRequest, strings.Join(problems, " ")}
	case err != nil || !isTextForm(form) || filter.IsZero() && form.Get(chooseAll) == "":
		return chosen{}, refusal{http.StatusBadRequest, "The form does not select any letters."}
	}
	if action := path.Base(r.URL.Path); action == actRestore {
		if len(filter.States) == 0 {
			form.Set("state", string(deadletter.Archived))
			filter.States = []deadletter.State{deadletter.Archived}
		}
		if filter.States[0] != deadletter.Archived && filter.States[0] != deadletter.Discarded {
			return chosen{}, refusal{http.StatusBadRequest, "Only letters that are archived or discarded can be restored."}
		}
	} else if len(filter.States) > 0 && !slices.Equal(filter.States, []deadletter.State{deadletter.Waiting}) {
		return chosen{}, refusal{http.StatusBadRequest, "Only letters that wait can be chosen."}
	}
	c := chosen{Filter: filter, form: form, Title: inWords(form)}
	counted, err := time.Parse(time.RFC3339Nano, form.Get(countedField))
	if err != nil {
		return c, nil //nolint:nilerr // it was not confirmed
	}
	if filter.Until.IsZero() || counted.Before(filter.Until) {
		c.Until = counted
	}
	c.count, err = strconv.Atoi(r.PostFormValue("count"))
	c.confirmed = err == nil
	return c, nil
}

// confirmPage asks whether to do something with letters.
type confirmPage struct {
	// Action is the last part of the address of the action.
	Action string
	Title  string
	// Filter selects the letters that are counted: those that fail later do not match.
	Filter string
	Count  int
	Groups []deadletter.Group
	// MoreGroups is the number of other groups.
	MoreGroups int
	// Was is the number on the button that was pressed, if another number of letters matches now.
	Was int
	// State is the state of a single letter that does not wait.
	State deadletter.State
	// Back is the address of the list.
	Back string
}

// confirm asks for confirmation, with the number of letters. The button selects at most these letters.
func (c *Console) confirm(w http.ResponseWriter, r *http.Request) error {
	if !viewerOf(r.Context()).MayWrite() {
		return mayOnlyRead()
	}
	letters, err := chosenIn(r)
	if err != nil {
		return err
	}
	p := confirmPage{Action: path.Base(r.URL.Path), Title: letters.Title, Back: "/dead-letters"}
	if back := maps.Clone(letters.form); !back.Has("id") {
		back.Del(chooseAll)
		p.Back = link("/dead-letters", back.Encode())
	}
	p.Was, _ = strconv.Atoi(r.URL.Query().Get("was"))
	if p.Groups, err = c.letters.Groups(r.Context(), letters.Filter); err != nil {
		return err
	}
	p.Count = total(p.Groups)
	var last time.Time
	for _, g := range p.Groups {
		if g.LastFailed.After(last) {
			last = g.LastFailed
		}
	}
	letters.form.Set(countedField, last.Add(time.Microsecond).Format(time.RFC3339Nano))
	p.Filter = letters.form.Encode()
	p.MoreGroups = max(0, len(p.Groups)-topGroups)
	p.Groups = p.Groups[:len(p.Groups)-p.MoreGroups]
	if id := letters.form.Get("id"); len(letters.form["id"]) == 1 && p.Count == 0 {
		found, err := c.letters.Find(r.Context(), id)
		if err != nil && !errors.Is(err, deadletter.ErrNotFound) && !errors.Is(err, deadletter.ErrAmbiguous) {
			return err
		}
		p.State = found.State
	}
	return c.render(w, r, http.StatusOK, "confirm", "Confirm", p)
}

// unconfirmed returns the address of the confirmation if the form has not named the number of letters that match now.
func (c *Console) unconfirmed(r *http.Request, of chosen) (string, error) {
	groups, err := c.letters.Groups(r.Context(), of.Filter)
	if err != nil || of.confirmed && total(groups) == of.count {
		return "", err
	}
	of.form.Del(countedField)
	if of.confirmed {
		of.form.Set("was", strconv.Itoa(of.count))
	}
	return r.URL.Path + "?" + of.form.Encode(), nil
}

func inWords(form url.Values) string {
	if ids := form["id"]; len(ids) > 1 {
		return plural(len(ids), "chosen dead letter", "chosen dead letters")
	}
	if id := form.Get("id"); id != "" {
		return "dead letter " + id
	}
	var parts []string
	for _, part := range []struct{ name, words string }{
		{"group", "of group %s"},
		{"handler", "of handler %s"},
		{"type", "of type %s"},
		{"tenant", "of tenant %s"},
		{"aggregate", "of aggregate %s"},
		{"correlation", "of correlation %s"},
		{"contains", "whose reason contains %s"},
		{"from", "that failed from %s on"},
		{"until", "that failed before %s"},
		{"state", "that are %s"},
	} {
		if value := form.Get(part.name); value != "" {
			parts = append(parts, fmt.Sprintf(part.words, value))
		}
	}
	if len(parts) == 0 {
		return "all dead letters"
	}
	return "the dead letters " + strings.Join(parts, ", ")
}

func (c *Console) logAction(r *http.Request, what string, of chosen) {
	v := viewerOf(r.Context())
	c.logger.InfoContext(r.Context(), "console: dead letters", "action", what, "who", v.Who, "client", v.Client.String(),
		"letters", of.Subject().String())
}

func (c *Console) replay(w http.ResponseWriter, r *http.Request) error {
	letters, err := chosenIn(r)
	if err != nil {
		return err
	}
	if again, err := c.unconfirmed(r, letters); err != nil {
		return err
	} else if again != "" {
		return redirect(w, r, again)
	}
	o := deadletter.ReplayOptions{Patience: replayPatience, MaxFailures: replayFailures, By: viewerOf(r.Context()).actor("")}
	if text := r.PostFormValue("max_failures"); text != "" {
		if o.MaxFailures, err = strconv.Atoi(text); err != nil || o.MaxFailures < 0 {
			return refusal{http.StatusBadRequest, "The maximum of letters that fail again must be a number."}
		}
	}
	if text := r.PostFormValue("rate"); text != "" {
		if o.Rate, err = strconv.ParseFloat(text, 64); err != nil || !(o.Rate >= minRate && o.Rate <= maxRate) {
			return refusal{http.StatusBadRequest, "The rate must be a number of letters per second, from 0.001 to 1 000 000."}
		}
	}
	c.logAction(r, "replay", letters)
	//nolint:contextcheck // a replay continues after the request
	j := c.jobs.start(letters.Title, viewerOf(r.Context()).Who, func(ctx context.Context, report func(deadletter.Progress)) error {
		for p, err := range c.letters.Replay(ctx, letters.Filter, o) {
			if err != nil {
				return err
			}
			report(p)
		}
		return nil
	})
	return redirect(w, r, "/replays/"+j.ID)
}

type tryPage struct {
	Title    string
	Filter   string
	Outcomes []handlers.Outcome
	Pass     int
	// Limited is set if there are more letters.
	Limited bool
}

// tryLetters is a dry run of a replay of the selected letters.
func (c *Console) tryLetters(w http.ResponseWriter, r *http.Request) error {
	letters, err := chosenIn(r)
	if err != nil {
		return err
	}
	c.logAction(r, "dry run", letters)
	p := tryPage{Title: letters.Title, Filter: letters.form.Encode()}
	letters.Limit = maxTried + 1
	for outcome, err := range c.try(r.Context(), letters.Filter, viewerOf(r.Context()).actor("")) {
		if err != nil {
			return err
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
	return c.render(w, r, http.StatusOK, "try", "Dry run", p)
}

// putAside archives, discards or restores letters.
func (c *Console) putAside(w http.ResponseWriter, r *http.Request) error {
	action := path.Base(r.URL.Path)
	letters, err := chosenIn(r)
	if err != nil {
		return err
	}
	reason := strings.TrimSpace(strings.ToValidUTF8(r.PostFormValue("reason"), ""))
	if action != actRestore && (reason == "" || len(reason) > maxReason) {
		return refusal{http.StatusUnprocessableEntity, "Enter a reason of at most 500 bytes: it is recorded with the letter."}
	}
	if again, err := c.unconfirmed(r, letters); err != nil {
		return err
	} else if again != "" {
		return redirect(w, r, again)
	}
	c.logAction(r, action, letters)
	by, n := viewerOf(r.Context()).actor(reason), 0
	switch action {
	case actArchive:
		n, err = c.letters.PutAside(r.Context(), letters.Filter, deadletter.Archived, by)
	case actDiscard:
		n, err = c.letters.PutAside(r.Context(), letters.Filter, deadletter.Discarded, by)
	default:
		n, err = c.letters.Restore(r.Context(), letters.Filter, by)
	}
	c.waiting.expire()
	if err != nil {
		return fmt.Errorf("%s changed, the others were not: %w", plural(n, "letter was", "letters were"), err)
	}
	return redirect(w, r, "/dead-letters#actions")
}

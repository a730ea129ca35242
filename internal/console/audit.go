package console

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/healz/worker/internal/audit"
)

// latestActions is the number of actions that the list of dead letters shows.
const latestActions = 5

// actor is the viewer as who does something.
func (v viewer) actor(reason string) audit.Actor {
	return audit.Actor{By: v.Who, Source: "console, " + v.Client.String(), Reason: reason}
}

// reveal records that the viewer will see data, and logs it. If that fails, the data must not be shown.
func (c *Console) reveal(r *http.Request, subject audit.Subject, count int) error {
	v := viewerOf(r.Context())
	if err := c.audit.Record(r.Context(), v.actor("").Did(audit.Reveal, subject, count)); err != nil {
		return err
	}
	c.logger.InfoContext(r.Context(), "console: data was revealed", "who", v.Who, "client", v.Client.String(), "of", subject.String())
	return nil
}

type auditPage struct {
	Query   url.Values
	Entries []audit.Entry
	First   bool
	// Next is the address of the next page, "" on the last one.
	Next     string
	Problems []string
}

// Actions are the options of the field action.
func (auditPage) Actions() []audit.Action { return audit.Actions() }

func (c *Console) auditLog(w http.ResponseWriter, r *http.Request) error {
	read := formReader{Values: r.URL.Query()}
	before := read.Get("before")
	read.Del("before")
	p := auditPage{Query: read.Values, First: before == ""}
	filter := audit.Filter{By: strings.TrimSpace(read.Get("by")), Since: read.at("from", "From"), Until: read.at("until", "Until")}
	if name := audit.Action(read.Get("action")); slices.Contains(audit.Actions(), name) {
		filter.Actions = []audit.Action{name}
	} else if name != "" {
		read.problems = append(read.problems, "Action must be one of the list.")
	}
	var err error
	if !p.First {
		if filter.Before, err = strconv.ParseInt(before, 10, 64); err != nil {
			read.problems = append(read.problems, "The address of this page is invalid: before must be a number.")
		}
	}
	if p.Problems = read.problems; len(p.Problems) > 0 {
		return c.render(w, r, http.StatusBadRequest, "audit", "Audit", p)
	}
	found, err := c.audit.List(r.Context(), filter, pageSize+1)
	if err != nil {
		return err
	}
	if p.Entries = found[:min(len(found), pageSize)]; len(found) > pageSize {
		p.Query.Set("before", strconv.FormatInt(found[pageSize-1].ID, 10))
		p.Next = link("/audit", p.Query.Encode())
		p.Query.Del("before")
	}
	return c.render(w, r, http.StatusOK, "audit", "Audit", p)
}

// onLetters are the latest actions that have changed dead letters.
func (c *Console) onLetters(ctx context.Context) ([]audit.Entry, error) {
	return c.audit.List(ctx, audit.Filter{Actions: []audit.Action{
		audit.Replay, audit.Edit, audit.Archive, audit.Discard, audit.Restore, audit.Purge, audit.Import,
	}}, latestActions)
}

package console

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// The overview shows so many events, and so many groups of dead letters.
const latest, topGroups = 8, 5

// overviewPage is the body of the overview.
type overviewPage struct {
	Pictures []picture
	Parts    []part
	Ready    bool
	// Groups are the groups of dead letters that failed last, and MoreGroups is how many others there are.
	Groups     []deadletter.Group
	MoreGroups int
	// Queued is how many dead letters are in the broker's queue and not in the table yet.
	Queued int
	Latest []events.Event
	// Failed are the ids of those among them that have dead letters.
	Failed map[uuid.UUID]bool
	// Problems are what could not be read.
	Problems []string
	At       time.Time
}

// part is what is wrong with a part of the worker, or "ok".
type part struct {
	Name, Text string
	OK         bool
}

func (c *Console) overview(w http.ResponseWriter, r *http.Request) {
	c.render(w, r, http.StatusOK, "overview", "Overview", c.look(r.Context()))
}

// look is what the overview shows, as it is or was a moment ago: many requests share it.
func (c *Console) look(ctx context.Context) overviewPage {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	select {
	case last := <-c.lastLook:
		defer func() { c.lastLook <- last }()
		if time.Since(last.At) < sampleGap {
			return last
		}
		now := c.lookAgain(ctx)
		if ctx.Err() == nil { // what this one could not read for want of time or interest, the next one may
			last = now
		}
		return now
	case <-ctx.Done():
		return overviewPage{Problems: []string{"The answer did not come in time."}}
	}
}

// lookAgain takes what the overview shows. What cannot be read it says, and shows the rest.
func (c *Console) lookAgain(ctx context.Context) overviewPage {
	status := c.status(ctx)
	now := time.Now()
	o := overviewPage{Ready: status.Ready, At: now}
	var err error
	if o.Groups, err = c.letters.Groups(ctx, deadletter.Filter{}); err != nil {
		o.Problems = append(o.Problems, "The dead letters cannot be read: "+err.Error())
	} else {
		status.Letters = float64(total(o.Groups))
	}
	o.MoreGroups = max(0, len(o.Groups)-topGroups)
	o.Groups = o.Groups[:len(o.Groups)-o.MoreGroups]
	o.Queued = c.queued.latest(ctx)
	page, err := c.store.Search(ctx, store.Search{}, store.Query{Limit: latest})
	if err != nil {
		o.Problems = append(o.Problems, "The store cannot be read: "+err.Error())
	}
	o.Latest, o.Failed = page.Events, c.failed(ctx, page.Events)
	if end, err := c.store.End(ctx); err == nil {
		status.Totals.Appended = float64(end.ID) // ids that are given in vain are few
	}
	moving := c.flow.record(now, status.Totals)
	o.Pictures = []picture{wide(status, moving), tall(status, moving)}
	for name, text := range status.Parts {
		o.Parts = append(o.Parts, part{Name: name, Text: text, OK: healthy(text)})
	}
	slices.SortFunc(o.Parts, func(a, b part) int {
		return slices.Index(partOrder(), a.Name) - slices.Index(partOrder(), b.Name)
	})
	return o
}

func partOrder() []string { return []string{"store", "relay", "bus", "consumer"} }

func (c *Console) liveOverview(w http.ResponseWriter, r *http.Request) {
	c.stream(w, r, func(ctx context.Context) ([]byte, bool, error) {
		part, err := c.fragment(ctx, "overview", "main", c.look(ctx))
		return part, false, err
	})
}

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

const latestEvents, topGroups = 8, 5

type overviewPage struct {
	Pictures []picture
	Parts    []part
	Ready    bool
	// Groups are the groups of dead letters with the latest failures, and MoreGroups is the number of other groups.
	Groups     []deadletter.Group
	MoreGroups int
	// Queued is the number of dead letters in the failed queue that are not ingested yet.
	Queued int
	Latest []events.Event
	// Failed are the ids of those with waiting dead letters.
	Failed map[uuid.UUID]bool
	// Problems are the failed queries.
	Problems []string
	At       time.Time
}

type part struct {
	Name, Text string
	OK         bool
}

func (c *Console) overview(w http.ResponseWriter, r *http.Request) error {
	return c.render(w, r, http.StatusOK, "overview", "Overview", c.snapshot(r.Context()))
}

// snapshot returns the content of the overview. Requests at the same time share it.
func (c *Console) snapshot(ctx context.Context) overviewPage {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	select {
	case last := <-c.overviews:
		defer func() { c.overviews <- last }()
		if time.Since(last.At) < sampleInterval {
			return last
		}
		now := c.newSnapshot(ctx)
		if ctx.Err() == nil { // else it may be incomplete
			last = now
		}
		return now
	case <-ctx.Done():
		return overviewPage{Problems: []string{"The query timed out."}}
	}
}

// newSnapshot reads the content of the overview. Failed queries are listed as problems.
func (c *Console) newSnapshot(ctx context.Context) overviewPage {
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
	page, err := c.store.Search(ctx, store.Search{}, store.Query{Limit: latestEvents, WithoutData: true})
	if err != nil {
		o.Problems = append(o.Problems, "The store cannot be read: "+err.Error())
	}
	o.Latest, o.Failed = page.Events, c.failed(ctx, page.Events)
	if end, err := c.store.End(ctx); err == nil {
		status.Totals.Appended = float64(end.ID) // the sequence has few gaps
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

func partOrder() []string {
	return []string{"store", "relay", "bus", "queue", "consumer", "dead_letters"}
}

func (c *Console) liveOverview(w http.ResponseWriter, r *http.Request) error {
	return c.stream(w, r, func(ctx context.Context) ([]byte, bool, error) {
		part, err := c.fragment(ctx, "overview", "main", c.snapshot(ctx))
		return part, false, err
	})
}

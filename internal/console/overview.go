package console

import (
	"cmp"
	"context"
	"errors"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/worker"
)

const latestEvents, topGroups = 8, 5

type overviewPage struct {
	Pictures []picture
	Parts    []part
	Ready    bool
	// Groups are the groups of dead letters with the latest failures, and MoreGroups is the number of other groups.
	Groups     []deadletter.Group
	MoreGroups int
	// Queued is the number of dead letters in the failed queue that are not ingested yet, [unknownCount] if that cannot be read.
	Queued int
	Latest []events.Event
	// Failed are the ids of those with waiting dead letters.
	Failed map[uuid.UUID]bool
	// GroupsRead and LatestRead say from when the groups and the events are.
	GroupsRead, LatestRead reading
	At                     time.Time
}

// reading says from when a list is: an earlier one is shown while it cannot be read.
type reading struct {
	// At is when it was read, zero if it was never read.
	At time.Time
	// Problem says why it cannot be read now.
	Problem string
}

// next is the reading after another attempt.
func (r reading) next(now time.Time, err error) reading {
	if errors.Is(err, store.ErrUnavailable) { // the state of the store has the cause
		return reading{r.At, "The store is unavailable: see below."}
	}
	if err != nil {
		return reading{r.At, err.Error()}
	}
	return reading{At: now}
}

type part struct {
	Name string
	worker.Part
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
		now := c.newSnapshot(ctx, last)
		if ctx.Err() == nil { // else it may be incomplete
			last = now
		}
		return now
	case <-ctx.Done():
		o := overviewPage{Queued: unknownCount, At: time.Now()}
		o.GroupsRead.Problem, o.LatestRead.Problem = ctx.Err().Error(), ctx.Err().Error()
		return o
	}
}

// newSnapshot reads the content of the overview. What cannot be read is that of the last one.
func (c *Console) newSnapshot(ctx context.Context, last overviewPage) overviewPage {
	status := c.status(ctx)
	now := time.Now()
	o := overviewPage{Ready: status.Ready, Groups: last.Groups, MoreGroups: last.MoreGroups, Latest: last.Latest, Failed: last.Failed, At: now}
	groups, err := c.letters.Groups(ctx, deadletter.Filter{})
	status.Letters = math.NaN()
	if o.GroupsRead = last.GroupsRead.next(now, err); err == nil {
		status.Letters = float64(total(groups))
		o.MoreGroups = max(0, len(groups)-topGroups)
		o.Groups = groups[:len(groups)-o.MoreGroups]
	}
	o.Queued = c.queued.latest(ctx)
	page, err := c.store.Search(ctx, store.Search{}, store.Query{Limit: latestEvents, WithoutData: true})
	if o.LatestRead = last.LatestRead.next(now, err); err == nil {
		o.Latest, o.Failed = page.Events, c.failed(ctx, page.Events)
	}
	if end, err := c.store.End(ctx); err == nil {
		status.Totals.Appended = float64(end.ID) // the sequence has few gaps
	}
	moving := c.flow.record(now, status.Totals)
	o.Pictures = []picture{wide(status, moving), tall(status, moving)}
	for name, p := range status.Parts {
		o.Parts = append(o.Parts, part{name, p})
	}
	slices.SortFunc(o.Parts, func(a, b part) int {
		return cmp.Or(slices.Index(partOrder(), a.Name)-slices.Index(partOrder(), b.Name), strings.Compare(a.Name, b.Name))
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

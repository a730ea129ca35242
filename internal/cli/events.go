package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/worker"
)

// eventFilter selects events: all conditions that are set must hold.
type eventFilter struct {
	of           aggregate
	kind         string
	tenant       uuid.UUID
	correlation  uuid.UUID
	since, until time.Time
}

func eventsCommand(s *worker.Settings) *cobra.Command {
	var filter eventFilter
	var q store.Query
	var after string
	c := &cobra.Command{
		Use:   "events",
		Short: "Read events from the store",
		Long: `events prints the events that match all filters, the newest first; without a filter the latest of all. Only the
events of one --aggregate (by version) and of one --correlation, without another filter, begin with the oldest.

event_data and metadata are printed only with --reveal. With -o json --reveal the lines are what append reads.`,
		Example: `  worker events
  worker events --type PatientRegistered --since 1d
  worker events --aggregate Patient/5f0c7a52-9b4e-4a35-8f0e-2f6d0f6b1c11
  worker events --correlation 0198c9f0-7d1b-7c4e-a0f4-5a1f6f0f3b11 -o json`,
		Args: noArguments,
	}
	f := addFormat(c)
	reveal := addReveal(c)
	flags := c.Flags()
	addParsed(c, "aggregate", "only events of the aggregate `TYPE/ID`", &filter.of, parseAggregate)
	addParsed(c, "correlation", "only events with this correlation `ID`", &filter.correlation, events.ParseCorrelationID)
	flags.StringVar(&filter.kind, "type", "", "only events of this `TYPE`")
	addParsed(c, "tenant", "only events of the tenant with this `ID`", &filter.tenant, parseUUID)
	addTimes(c, "events created", &filter.since, &filter.until)
	flags.IntVar(&q.Limit, "limit", store.DefaultLimit, fmt.Sprintf("at most this number of events, up to %d; 0: the default", store.MaxLimit))
	flags.IntVar(&q.Offset, "offset", 0, "number of events to skip")
	flags.StringVar(&after, "after", "", "cursor: continue after an earlier page")
	c.RunE = func(c *cobra.Command, _ []string) error {
		q.After = store.Cursor(after)
		var err error
		if q, err = q.Check(); err != nil {
			return usageError{err}
		}
		return withStore(c, s, s.OpenExisting, func(b worker.Backend) error {
			if *reveal {
				if err := recordReveal(c, b, filter.subject(q), 0); err != nil {
					return err
				}
			}
			p := newEventPrinter(c, *f)
			next, err := filter.read(c.Context(), b, q, *reveal, func(e events.Event) error { return printEvent(p, e, *reveal) })
			if err != nil {
				return err
			}
			if err := p.flush(); err != nil {
				return err
			}
			switch {
			case next != "":
				fmt.Fprintf(c.ErrOrStderr(), "there are more events: --after %s\n", next)
			case p.count == 0:
				fmt.Fprintln(c.ErrOrStderr(), "no events")
				return printHint(c, b, filter.kind, filter.of.kind)
			}
			return nil
		})
	}
	return c
}

// subject is what is recorded of a reveal.
func (f eventFilter) subject(q store.Query) audit.Subject {
	return audit.Subject{"limit": strconv.Itoa(q.Limit)}.With("aggregate", f.of.String()).With("type", f.kind).
		WithID("tenant", f.tenant).WithID("correlation", f.correlation).WithTime("since", f.since).WithTime("until", f.until)
}

// revealedPage is the number of events with their data that a search reads at once.
const revealedPage = 4

// read yields the events of the filter, page by page, and returns the cursor behind the last one if there are more.
func (f eventFilter) read(
	ctx context.Context, b worker.Backend, q store.Query, reveal bool, yield func(events.Event) error,
) (store.Cursor, error) {
	read, skip := f.reader(b), 0
	if !f.isChain() { // a search has no offset
		skip, q.Offset = q.Offset, 0
	} else {
		q.MaxBytes = store.PageBytes
	}
	q.WithoutData = !reveal
	for left := q.Limit; ; {
		q.Limit = min(left+skip, store.MaxLimit)
		if reveal && !f.isChain() {
			q.Limit = min(q.Limit, revealedPage)
		}
		page, err := read(ctx, q)
		if err != nil {
			return "", err
		}
		for _, e := range page.Events {
			switch {
			case f.of.kind != "" && e.AggregateType != f.of.kind: // a search knows only the id of the aggregate
			case skip > 0:
				skip--
			default:
				if err := yield(e); err != nil {
					return "", err
				}
				left--
			}
		}
		if left == 0 || page.Next == "" {
			return page.Next, nil
		}
		q.Offset, q.After = 0, page.Next
	}
}

// isChain is set if the filter is one aggregate or one correlation, of which the store reads the oldest event first.
func (f eventFilter) isChain() bool {
	of, correlation := f.of, f.correlation
	f.of, f.correlation = aggregate{}, uuid.Nil
	return f == eventFilter{} && (of == aggregate{}) != (correlation == uuid.Nil)
}

func (f eventFilter) reader(b worker.Backend) func(context.Context, store.Query) (store.Page, error) {
	return func(ctx context.Context, q store.Query) (store.Page, error) {
		switch {
		case !f.isChain():
			return b.Search(ctx, store.Search{
				AggregateID: f.of.id, CorrelationID: f.correlation, TenantID: f.tenant, Type: f.kind, From: f.since, Until: f.until,
			}, q)
		case f.correlation != uuid.Nil:
			return b.ByCorrelation(ctx, f.correlation, q)
		default:
			return b.ByAggregate(ctx, f.of.kind, f.of.id, q)
		}
	}
}

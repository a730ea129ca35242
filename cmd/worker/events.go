package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/worker"
)

// selection is what `worker events` looks for: one of the four.
type selection struct{ aggregate, correlation, eventType, tenant string }

func eventsCommand(s *worker.Settings) *cobra.Command {
	var sel selection
	var q store.Query
	var after string
	c := &cobra.Command{
		Use:   "events",
		Short: "Read events from the store",
		Long: `events prints the events of one aggregate (by version), of one chain of causes (oldest first), of one type or of
one tenant (newest first). The table leaves event_data out; --format json prints whole events.`,
		Example: `  worker events --correlation 0198c9f0-7d1b-7c4e-a0f4-5a1f6f0f3b11
  worker events --aggregate Patient/5f0c7a52-9b4e-4a35-8f0e-2f6d0f6b1c11 --format json
  worker events --type PatientRegistered --limit 20`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := addFormat(c)
	flags := c.Flags()
	flags.StringVar(&sel.aggregate, "aggregate", "", "TYPE/ID: the events of this aggregate, by version")
	flags.StringVar(&sel.correlation, "correlation", "", "ID: the events of this chain, oldest first")
	flags.StringVar(&sel.eventType, "type", "", "the events of this type, newest first")
	flags.StringVar(&sel.tenant, "tenant", "", "ID: the events of this tenant, newest first")
	flags.IntVar(&q.Limit, "limit", store.DefaultLimit, fmt.Sprintf("most events to print, up to %d; 0 is the default", store.MaxLimit))
	flags.IntVar(&q.Offset, "offset", 0, "events to pass over first")
	flags.StringVar(&after, "after", "", "cursor: continue behind an earlier page")
	c.RunE = func(c *cobra.Command, _ []string) error {
		q.After = store.Cursor(after)
		read, err := sel.read(q)
		if err != nil {
			return usageError{err}
		}
		return withStore(c.Context(), s, s.OpenExisting, func(b worker.Backend) error {
			page, err := read(c, b)
			if _, bad := errors.AsType[*store.QueryError](err); bad {
				return usageError{err}
			}
			if err != nil {
				return err
			}
			if err := printEvents(c.OutOrStdout(), *f, page.Events); err != nil {
				return err
			}
			if page.Next != "" {
				fmt.Fprintf(c.ErrOrStderr(), "there are more: --after %s\n", page.Next)
			} else if len(page.Events) == 0 {
				fmt.Fprintln(c.ErrOrStderr(), "no events")
			}
			return nil
		})
	}
	return c
}

// read returns the read that the selection asks for.
func (sel selection) read(q store.Query) (func(*cobra.Command, worker.Backend) (store.Page, error), error) {
	given := 0
	for _, s := range []string{sel.aggregate, sel.correlation, sel.eventType, sel.tenant} {
		if s != "" {
			given++
		}
	}
	if given != 1 {
		return nil, errors.New("exactly one of --aggregate, --correlation, --type and --tenant is needed")
	}
	switch {
	case sel.aggregate != "":
		// The id is behind the last slash: a type may have one.
		cut := strings.LastIndexByte(sel.aggregate, '/')
		if cut < 1 {
			return nil, errors.New("--aggregate must be TYPE/ID")
		}
		id, err := uuid.Parse(sel.aggregate[cut+1:])
		if err != nil {
			return nil, fmt.Errorf("--aggregate: the ID is not a UUID")
		}
		return func(c *cobra.Command, b worker.Backend) (store.Page, error) {
			return b.ByAggregate(c.Context(), sel.aggregate[:cut], id, q)
		}, nil
	case sel.correlation != "":
		id, err := events.ParseCorrelationID(sel.correlation)
		if err != nil {
			return nil, fmt.Errorf("--correlation: %w", err)
		}
		return func(c *cobra.Command, b worker.Backend) (store.Page, error) {
			return b.ByCorrelation(c.Context(), id, q)
		}, nil
	case sel.tenant != "":
		id, err := uuid.Parse(sel.tenant)
		if err != nil {
			return nil, fmt.Errorf("--tenant: not a UUID")
		}
		return func(c *cobra.Command, b worker.Backend) (store.Page, error) { return b.ByTenant(c.Context(), id, q) }, nil
	default:
		return func(c *cobra.Command, b worker.Backend) (store.Page, error) {
			return b.ByType(c.Context(), sel.eventType, q)
		}, nil
	}
}

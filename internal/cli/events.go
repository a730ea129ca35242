package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/worker"
)

func eventsCommand(s *worker.Settings) *cobra.Command {
	var q store.Query
	var after string
	c := &cobra.Command{
		Use:   "events",
		Short: "Read events from the store",
		Long: `events prints the events of one aggregate (by version), of one correlation id (oldest first), of one type or of one tenant
(newest first). The table does not contain event_data; --format json prints complete events.`,
		Example: `  worker events --correlation 0198c9f0-7d1b-7c4e-a0f4-5a1f6f0f3b11
  worker events --aggregate Patient/5f0c7a52-9b4e-4a35-8f0e-2f6d0f6b1c11 --format json
  worker events --type PatientRegistered --limit 20`,
		Args: noArguments,
	}
	f := addFormat(c)
	flags := c.Flags()
	type read func(context.Context, worker.Backend) (store.Page, error)
	reads := map[string]read{} // by flag: the last value counts
	selection := func(name, usage string, parse func(string) (read, error)) {
		flags.Func(name, usage, func(text string) error {
			if text == "" {
				return nil
			}
			r, err := parse(text)
			reads[name] = r
			return err
		})
	}
	selection("aggregate", "events of the aggregate `TYPE/ID`, by version", func(text string) (read, error) {
		a, err := parseAggregate(text)
		return func(ctx context.Context, b worker.Backend) (store.Page, error) {
			return b.ByAggregate(ctx, a.kind, a.id, q)
		}, err
	})
	selection("correlation", "events with this correlation `ID`, oldest first", func(text string) (read, error) {
		id, err := events.ParseCorrelationID(text)
		return func(ctx context.Context, b worker.Backend) (store.Page, error) { return b.ByCorrelation(ctx, id, q) }, err
	})
	selection("type", "events of this `TYPE`, newest first", func(text string) (read, error) {
		return func(ctx context.Context, b worker.Backend) (store.Page, error) { return b.ByType(ctx, text, q) }, nil
	})
	selection("tenant", "events of the tenant with this `ID`, newest first", func(text string) (read, error) {
		id, err := parseUUID(text)
		return func(ctx context.Context, b worker.Backend) (store.Page, error) { return b.ByTenant(ctx, id, q) }, err
	})
	flags.IntVar(&q.Limit, "limit", store.DefaultLimit, fmt.Sprintf("at most this number of events, up to %d; 0: the default", store.MaxLimit))
	flags.IntVar(&q.Offset, "offset", 0, "number of events to skip")
	flags.StringVar(&after, "after", "", "cursor: continue after an earlier page")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if len(reads) != 1 {
			return usageError{errors.New("exactly one of --aggregate, --correlation, --type and --tenant is needed")}
		}
		q.After = store.Cursor(after)
		return withStore(c, s, s.OpenExisting, func(b worker.Backend) error {
			var err error
			if q, err = q.Check(); err != nil {
				return usageError{err}
			}
			q.WithoutData, q.MaxBytes = *f != formatJSON, store.PageBytes
			for count := 0; ; {
				var page store.Page
				for _, read := range reads {
					page, err = read(c.Context(), b)
				}
				if _, bad := errors.AsType[*store.QueryError](err); bad {
					return usageError{err}
				}
				if err != nil {
					return err
				}
				if err := printEvents(c.OutOrStdout(), *f, page.Events); err != nil {
					return err
				}
				count += len(page.Events)
				q.Limit, q.Offset, q.After = q.Limit-len(page.Events), 0, page.Next
				switch {
				case page.Next == "" && count == 0:
					fmt.Fprintln(c.ErrOrStderr(), "no events")
				case page.Next != "" && q.Limit == 0:
					fmt.Fprintf(c.ErrOrStderr(), "there are more events: --after %s\n", page.Next)
				}
				if page.Next == "" || q.Limit == 0 {
					return nil
				}
			}
		})
	}
	return c
}

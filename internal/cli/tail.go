package cli

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/text"
	"github.com/healz/worker/internal/watch"
	"github.com/healz/worker/internal/worker"
)

func tailCommand(s *worker.Settings) *cobra.Command {
	var filter watch.Filter
	var of aggregate
	c := &cobra.Command{
		Use:   "tail",
		Short: "Follow the events of the store as they are committed",
		Long: `tail prints the events of the store as they are committed, in the order in which the relay publishes them, until it is
stopped. It only reads, and continues after a restart of the store. An event must match all filters that are set. A line has
the time, the type, the event id (for worker trace) and, as far as the terminal is wide enough or with -o wide, the aggregate with
its version; JSON has all other fields, too. event_data and metadata are printed only with --reveal.`,
		Example: `  worker tail --type AppointmentScheduled --since 10m
  worker tail --aggregate Patient -o json --reveal`,
		Args: noArguments,
	}
	f := addFormat(c)
	reveal := addReveal(c)
	addParsed(c, "tenant", "only events of the tenant with this `ID`", &filter.TenantID, parseUUID)
	c.Flags().StringVar(&filter.Type, "type", "", "only events of this type")
	addParsed(c, "aggregate", "only events of this aggregate, or of this type of aggregates: `TYPE[/ID]`", &of,
		func(text string) (aggregate, error) {
			if !strings.Contains(text, "/") {
				return aggregate{kind: text}, nil
			}
			return parseAggregate(text)
		})
	addParsed(c, "correlation", "only events with this correlation `ID`", &filter.CorrelationID, events.ParseCorrelationID)
	addSince(c, "start with the events created at this `TIME` or later, instead of with new ones", &filter.Since)
	c.RunE = func(c *cobra.Command, _ []string) error {
		filter.AggregateType, filter.AggregateID = of.kind, of.id
		return withStore(c, s, s.OpenExisting, func(b worker.Backend) error {
			if err := printHint(c, b, filter.Type, filter.AggregateType); err != nil {
				return err
			}
			if *reveal {
				subject := audit.Subject{"follow": "yes"}.With("aggregate", of.String()).With("type", filter.Type).WithID("tenant", filter.TenantID).
					WithID("correlation", filter.CorrelationID).WithTime("since", filter.Since)
				if err := recordReveal(c, b, subject, 0); err != nil {
					return err
				}
			}
			onUnavailable := func(err error) {
				if err != nil {
					fmt.Fprintf(c.ErrOrStderr(), "worker: waiting for the store: %s\n", err)
				} else {
					fmt.Fprintln(c.ErrOrStderr(), "worker: the store is available again")
				}
			}
			for e, err := range watch.Events(c.Context(), b, filter, onUnavailable) {
				if err != nil {
					return err
				}
				if err := printFollowed(c.OutOrStdout(), *f, e, *reveal); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return c
}

// printFollowed prints one event without buffering.
func printFollowed(w io.Writer, f format, e events.Event, reveal bool) error {
	if f == formatJSON {
		line, err := eventLine(e, reveal)
		if err != nil {
			return err
		}
		return printJSON(w, line)
	}
	at, kind := localTime(e.CreatedAt), text.Printable(e.Type)
	of := fmt.Sprintf("  %s/%s v%d", text.Printable(e.AggregateType), e.AggregateID, e.AggregateVersion)
	line := fmt.Sprintf("%s  %-24s  %s", at, kind, e.ID)
	if width := widthOf(w); f != formatWide && width > 0 && utf8.RuneCountInString(line+of) > width {
		line, of = fmt.Sprintf("%s  %-24s  %s", shortTime(at, time.Now()), text.Cut(kind, 24), e.ID), ""
	}
	_, err := fmt.Fprintln(w, line+of)
	if err == nil && reveal {
		_, err = fmt.Fprintf(w, "    %s\n", text.Printable(dataOf(e)))
	}
	return err
}

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/watch"
	"github.com/healz/worker/internal/worker"
)

func tailCommand(s *worker.Settings) *cobra.Command {
	var filter watch.Filter
	var of aggregate
	var since time.Duration
	var reveal bool
	c := &cobra.Command{
		Use:   "tail",
		Short: "Follow the events of the store as they are committed, until stopped",
		Long: `tail prints the events of the store as they are committed, in the order in which the relay publishes them, until it is
stopped. It only reads, and continues after a restart of the store. An event must match all filters that are set. A line of
the table has the time, the type, the event id (for worker trace), and the aggregate with its version; JSON has all other
fields, too. event_data and metadata are printed only with --reveal.`,
		Example: `  worker tail --type AppointmentScheduled --since 10m
  worker tail --aggregate Patient/5f0c7a52-9b4e-4a35-8f0e-2f6d0f6b1c11 --format json --reveal`,
		Args: noArguments,
	}
	f := addFormat(c)
	flags := c.Flags()
	addParsed(c, "tenant", "only events of the tenant with this `ID`", &filter.TenantID, parseUUID)
	flags.StringVar(&filter.Type, "type", "", "only events of this type")
	addParsed(c, "aggregate", "only events of this aggregate, or of this type of aggregates: `TYPE[/ID]`", &of,
		func(text string) (aggregate, error) {
			if !strings.Contains(text, "/") {
				return aggregate{kind: text}, nil
			}
			return parseAggregate(text)
		})
	addParsed(c, "correlation", "only events with this correlation `ID`", &filter.CorrelationID, events.ParseCorrelationID)
	flags.DurationVar(&since, "since", 0, "start with the events created in this time before now; 0: only new events")
	flags.BoolVar(&reveal, "reveal", false, "print event_data and metadata, too: they may be about a patient")
	c.RunE = func(c *cobra.Command, _ []string) error {
		filter.AggregateType, filter.AggregateID = of.kind, of.id
		if since < 0 {
			return usageError{fmt.Errorf("--since must not be negative, but is %s", since)}
		}
		if since > 0 {
			filter.Since = time.Now().Add(-since)
		}
		return withStore(c, s, s.OpenExisting, func(b worker.Backend) error {
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
				if err := printFollowed(c.OutOrStdout(), *f, e, reveal); err != nil {
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
	if f == formatJSON && reveal {
		return printJSON(w, readable(e))
	}
	if f == formatJSON {
		line, err := withoutData(e)
		if err != nil {
			return err
		}
		return printJSON(w, line)
	}
	_, err := fmt.Fprintf(w, "%s  %-24s  %s  %s/%s v%d\n", localTime(e.CreatedAt), printable(e.Type), e.ID,
		printable(e.AggregateType), e.AggregateID, e.AggregateVersion)
	if err == nil && reveal {
		_, err = fmt.Fprintf(w, "    event_data %s metadata %s\n", printable(string(e.Data)), printable(string(e.Metadata)))
	}
	return err
}

// withoutData returns the JSON of an event without the fields that may be about a patient.
func withoutData(e events.Event) (map[string]json.RawMessage, error) {
	e.Data, e.Metadata = json.RawMessage("null"), nil
	body, err := json.Marshal(e)
	var fields map[string]json.RawMessage
	if err == nil {
		err = json.Unmarshal(body, &fields)
	}
	if err != nil {
		return nil, fmt.Errorf("print event %s: %w", e.ID, err)
	}
	delete(fields, "event_data")
	return fields, nil
}

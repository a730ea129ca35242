package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/watch"
	"github.com/healz/worker/internal/worker"
)

// tailFlags are the settings of `worker tail`.
type tailFlags struct {
	tenant, eventType, aggregate, correlation string
	since                                     time.Duration
	reveal                                    bool
}

func tailCommand(s *worker.Settings) *cobra.Command {
	var t tailFlags
	c := &cobra.Command{
		Use:   "tail",
		Short: "Follow the events of the store as they are committed, until stopped",
		Long: `tail prints the events of the store as they are committed, in the order in which the relay publishes them, until it is
stopped. It only reads, and outlives restarts of the store. What several flags choose must all be so. A line of the table
has time, type, the event's id, by which ` + "`worker trace`" + ` finds what it belongs to, and the aggregate with its version;
JSON has the rest. event_data and metadata are left out unless they are to be revealed.`,
		Example: `  worker tail --type AppointmentScheduled --since 10m
  worker tail --aggregate Patient/5f0c7a52-9b4e-4a35-8f0e-2f6d0f6b1c11 --format json --reveal`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := addFormat(c)
	flags := c.Flags()
	flags.StringVar(&t.tenant, "tenant", "", "ID: only the events of this tenant")
	flags.StringVar(&t.eventType, "type", "", "only the events of this type")
	flags.StringVar(&t.aggregate, "aggregate", "", "TYPE or TYPE/ID: only the events of these aggregates, or of this one")
	flags.StringVar(&t.correlation, "correlation", "", "ID: only the events of this chain")
	flags.DurationVar(&t.since, "since", 0, "begin with the events created so long ago; 0: with the next one")
	flags.BoolVar(&t.reveal, "reveal", false, "show event_data and metadata too: they may be about a patient")
	c.RunE = func(c *cobra.Command, _ []string) error {
		filter, err := t.filter(time.Now())
		if err != nil {
			return usageError{err}
		}
		return withStore(c.Context(), s, s.OpenExisting, func(b worker.Backend) error {
			away := func(err error) {
				if err != nil {
					fmt.Fprintf(c.ErrOrStderr(), "worker: waiting for the store: %s\n", err)
				} else {
					fmt.Fprintln(c.ErrOrStderr(), "worker: the store is back")
				}
			}
			for e, err := range watch.Events(c.Context(), b, filter, away) {
				if err != nil {
					return err
				}
				if err := printFollowed(c.OutOrStdout(), *f, e, t.reveal); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return c
}

// filter is what the flags choose.
func (t tailFlags) filter(now time.Time) (f watch.Filter, err error) {
	f.Type = t.eventType
	if t.since < 0 {
		return f, fmt.Errorf("--since must not be negative, but is %s", t.since)
	}
	if t.since > 0 {
		f.Since = now.Add(-t.since)
	}
	if t.tenant != "" {
		if f.TenantID, err = uuid.Parse(t.tenant); err != nil {
			return f, errors.New("--tenant: not a UUID")
		}
	}
	if t.correlation != "" {
		if f.CorrelationID, err = events.ParseCorrelationID(t.correlation); err != nil {
			return f, fmt.Errorf("--correlation: %w", err)
		}
	}
	f.AggregateType = t.aggregate
	if cut := strings.LastIndexByte(t.aggregate, '/'); cut >= 0 { // a type may have a slash
		if f.AggregateID, err = uuid.Parse(t.aggregate[cut+1:]); err != nil {
			return f, errors.New("--aggregate must be TYPE or TYPE/ID, with a UUID")
		}
		f.AggregateType = t.aggregate[:cut]
	}
	return f, nil
}

// printFollowed prints one event, at once.
func printFollowed(w io.Writer, f format, e events.Event, reveal bool) error {
	if f == formatJSON && reveal {
		return printJSON(w, e)
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

// withoutData is the event's JSON without what may be about a patient.
func withoutData(e events.Event) (map[string]json.RawMessage, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("print event %s: %w", e.ID, err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, fmt.Errorf("print event %s: %w", e.ID, err)
	}
	delete(fields, "event_data")
	delete(fields, "metadata")
	return fields, nil
}

package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/worker"
)

func dlqList(s *worker.Settings) *cobra.Command {
	var letters bool
	c := &cobra.Command{
		Use:   "list",
		Short: "Show what fails and why: the groups of dead letters that failed alike, or the letters",
		Long: `list shows the dead letters that wait, by groups: those of one handler and event type that failed with the same error, but for ids,
numbers and what is quoted in it; the group that failed last comes first. With --letters, or when they are of one group,
aggregate or correlation, it shows the letters themselves, oldest first. --limit bounds the rows: the first groups, each
with all of its letters counted, or the oldest letters.

It exits with 1 if letters were chosen by a flag and there are none.

With RabbitMQ it says on standard error how many dead letters are still in the failed queue and not in the table.`,
		Example: `  worker dlq list
  worker dlq list --group 3f9a12c4
  worker dlq list --letters --since 2h --format json`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := addFormat(c)
	chosen := addFilter(c, "reason")
	c.Flags().BoolVar(&letters, "letters", false, "the letters, and not their groups")
	c.RunE = func(c *cobra.Command, _ []string) error {
		filter, err := chosen.filter(nil)
		if err != nil {
			return err
		}
		one := filter.Group != "" || filter.Aggregate != uuid.Nil || filter.Correlation != uuid.Nil
		return withDeadLetters(c.Context(), s, func(table *deadletter.Table) error {
			defer noteQueued(c, s)
			if letters || one {
				return listLetters(c, table, filter, *f)
			}
			return listGroups(c, table, filter, *f)
		})
	}
	return c
}

func listLetters(c *cobra.Command, table *deadletter.Table, filter deadletter.Filter, f format) error {
	p := newLetterPrinter(c.OutOrStdout(), f)
	for l, err := range table.List(c.Context(), filter) {
		if err != nil {
			return errors.Join(p.flush(), err)
		}
		if err := p.print(l); err != nil {
			return err
		}
	}
	if p.count == 0 {
		return noLetters(c, filter)
	}
	return p.flush()
}

// noLetters says that there are none. Only where letters were chosen is that an error.
func noLetters(c *cobra.Command, filter deadletter.Filter) error {
	if filter.Limit = 0; !filter.IsZero() {
		return noneFound(filter)
	}
	fmt.Fprintln(c.ErrOrStderr(), "no dead letters")
	return nil
}

// listGroups shows groups, as many as the filter's limit, of all the letters that it chooses.
func listGroups(c *cobra.Command, table *deadletter.Table, filter deadletter.Filter, f format) error {
	rows := filter.Limit
	groups, err := table.Groups(c.Context(), filter)
	if err != nil {
		return err
	}
	if len(groups) == 0 {
		return noLetters(c, filter)
	}
	if f == formatJSON {
		if rows > 0 {
			groups = groups[:min(rows, len(groups))]
		}
		for _, g := range groups {
			if err := printJSON(c.OutOrStdout(), groupLineOf(g)); err != nil {
				return err
			}
		}
		return nil
	}
	return printGroups(c.OutOrStdout(), groups, rows)
}

// newestLength is how many characters of an error a table of groups shows.
const newestLength = 100

// printGroups prints the first rows of the groups, or all if rows is 0, and counts them all.
func printGroups(w io.Writer, groups []deadletter.Group, rows int) error {
	t := newTable(w, "GROUP", "COUNT", "TENANTS", "HANDLER", "TYPE", "FIRST FAILED", "LAST FAILED", "NEWEST ERROR")
	all := 0
	for i, g := range groups {
		all += g.Count
		if rows > 0 && i >= rows {
			continue
		}
		t.row(g.ID, strconv.Itoa(g.Count), strconv.Itoa(len(g.Tenants)), orDash(g.Handler), orDash(g.Type),
			localTime(g.FirstFailed), localTime(g.LastFailed), orDash(cutTo(g.Newest, newestLength)))
	}
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\ndead letters: %d, groups: %d. The letters of a group: worker dlq list --group %s\n",
		all, len(groups), groups[0].ID)
	return err
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// cutTo cuts a text to so many characters.
func cutTo(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

// groupLine is a group as a line of JSON.
type groupLine struct {
	Group       string      `json:"group"`
	Count       int         `json:"count"`
	Tenants     []uuid.UUID `json:"tenant_ids"`
	Handler     string      `json:"handler,omitempty"`
	EventType   string      `json:"event_type,omitempty"`
	Pattern     string      `json:"pattern,omitempty"`
	Newest      string      `json:"newest_reason,omitempty"`
	FirstFailed *time.Time  `json:"first_failed_at,omitempty"`
	LastFailed  *time.Time  `json:"last_failed_at,omitempty"`
	Replayed    int         `json:"replayed_before"`
}

func groupLineOf(g deadletter.Group) groupLine {
	return groupLine{
		Group: g.ID, Count: g.Count, Tenants: g.Tenants, Handler: g.Handler, EventType: g.Type, Pattern: g.Pattern,
		Newest: g.Newest, FirstFailed: orNull(g.FirstFailed), LastFailed: orNull(g.LastFailed), Replayed: g.Replayed,
	}
}

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// letterLine is a dead letter as a line of JSON: what may be about a patient is left out.
type letterLine struct {
	ID            string     `json:"id"`
	State         string     `json:"state"`
	Group         string     `json:"group"`
	EventID       string     `json:"event_id,omitempty"`
	EventType     string     `json:"event_type,omitempty"`
	AggregateType string     `json:"aggregate_type,omitempty"`
	AggregateID   string     `json:"aggregate_id,omitempty"`
	Version       int        `json:"aggregate_version,omitempty"`
	TenantID      string     `json:"tenant_id,omitempty"`
	CorrelationID string     `json:"correlation_id,omitempty"`
	Handler       string     `json:"handler,omitempty"`
	Reason        string     `json:"reason,omitempty"`
	Attempts      int        `json:"attempts,omitempty"`
	FirstFailed   *time.Time `json:"first_failed_at,omitempty"`
	LastFailed    *time.Time `json:"last_failed_at,omitempty"`
	Replays       int        `json:"replays,omitempty"`
	ReplayID      string     `json:"replay_id,omitempty"`
	Source        string     `json:"source,omitempty"`
	Bytes         int        `json:"bytes"`
}

func lineOf(l deadletter.Letter) letterLine {
	line := letterLine{
		ID: l.ID, State: string(l.State), Group: l.Group, EventType: l.Type, AggregateType: l.Event.AggregateType, Version: l.Event.AggregateVersion,
		Handler: l.Handler, Reason: l.Reason, Attempts: l.Attempts, Source: l.Source, Bytes: l.Bytes,
		FirstFailed: orNull(l.FirstFailed), LastFailed: orNull(l.LastFailed), Replays: l.Replays, ReplayID: l.ReplayID,
	}
	for target, id := range map[*string]uuid.UUID{
		&line.EventID: l.Event.ID, &line.AggregateID: l.Event.AggregateID, &line.TenantID: l.Event.TenantID,
		&line.CorrelationID: l.Event.CorrelationID,
	} {
		if id != uuid.Nil {
			*target = id.String()
		}
	}
	return line
}

// letterPrinter prints letters one by one and counts them.
type letterPrinter struct {
	w     io.Writer
	f     format
	t     *table
	count int
}

func newLetterPrinter(w io.Writer, f format) *letterPrinter {
	return &letterPrinter{w: w, f: f, t: newTable(w, "ID", "FAILED", "TYPE", "AGGREGATE", "HANDLER", "TRIES", "REPLAYS", "REASON")}
}

func (p *letterPrinter) print(l deadletter.Letter) error {
	p.count++
	if p.f == formatJSON {
		return printJSON(p.w, lineOf(l))
	}
	aggregate := "-"
	if l.Event.AggregateID != uuid.Nil {
		aggregate = fmt.Sprintf("%s/%d", l.Event.AggregateID, l.Event.AggregateVersion)
	}
	p.t.row(l.ID, localTime(l.LastFailed), orDash(l.Type), aggregate, orDash(l.Handler), strconv.Itoa(l.Attempts),
		strconv.Itoa(l.Replays), orDash(l.Reason))
	return nil
}

func (p *letterPrinter) flush() error { return p.t.flush() }

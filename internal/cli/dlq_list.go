package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/text"
	"github.com/healz/worker/internal/worker"
)

func dlqList(s *worker.Settings) *cobra.Command {
	var letters bool
	var states []string
	c := &cobra.Command{
		Use:   "list",
		Short: "List groups of dead letters with the same failure, or the letters",
		Long: `list shows the waiting dead letters in groups. A group has one handler, one event type and one error text, apart from ids,
numbers and quoted words; the group with the latest failure comes first. With --letters, --group, --aggregate or
--correlation it shows the letters instead, oldest first. --limit limits the rows: the first groups, each with the count of
all its letters, or the oldest letters.

It exits with 4 if a filter matches no letter.

On standard error it prints how many matching letters are being replayed and, with RabbitMQ, how many dead letters of the
failed queue are not ingested into the table yet.`,
		Example: `  worker dlq list
  worker dlq list --group 3f9a12c4
  worker dlq list --state replaying --letters
  worker dlq list --letters --since 2h -o json`,
		Args: noArguments,
	}
	f := addFormat(c)
	chosen := addFilter(c, "reason")
	c.Flags().BoolVar(&letters, "letters", false, "list letters, not groups")
	c.Flags().StringSliceVar(&states, "state", nil,
		"letters in these states: waiting, replaying, archived, discarded, edited, handled (default waiting)")
	complete(c, "state", stateNames()...)
	c.RunE = func(c *cobra.Command, _ []string) error {
		filter, err := chosen.filter(nil)
		if err != nil {
			return err
		}
		if filter.States, err = parseStates(states); err != nil {
			return err
		}
		print := listGroups
		if letters || filter.Group != "" || filter.Aggregate != uuid.Nil || filter.Correlation != uuid.Nil {
			print = listLetters
		}
		return withDeadLetters(c, s, func(table *deadletter.Table) error {
			defer noteQueued(c, s)
			found, err := print(c, table, filter, *f)
			if err != nil {
				return err
			}
			if len(states) == 0 {
				if err := noteReplaying(c, table, filter); err != nil {
					return err
				}
			}
			if filter.Limit = 0; !found && !filter.IsZero() {
				return noneFound(c, s, filter)
			}
			if !found {
				fmt.Fprintln(c.ErrOrStderr(), "no dead letters")
			}
			return nil
		})
	}
	return c
}

func stateNames() []string {
	var names []string
	for _, state := range deadletter.AllStates() {
		names = append(names, string(state))
	}
	return names
}

func parseStates(names []string) (states []deadletter.State, err error) {
	for _, name := range names {
		if !slices.Contains(stateNames(), name) {
			return nil, usageError{fmt.Errorf("--state must be one of %s, not %q", strings.Join(stateNames(), ", "), name)}
		}
		states = append(states, deadletter.State(name))
	}
	return states, nil
}

// noteReplaying prints on stderr how many letters of the filter a replay has released.
func noteReplaying(c *cobra.Command, table *deadletter.Table, filter deadletter.Filter) error {
	filter.States = []deadletter.State{deadletter.Replaying}
	groups, err := table.Groups(c.Context(), filter)
	n := 0
	for _, g := range groups {
		n += g.Count
	}
	if n > 0 {
		fmt.Fprintf(c.ErrOrStderr(), "being replayed: %s (--state replaying)\n", text.Count(n, "dead letter"))
	}
	return err
}

func listLetters(c *cobra.Command, table *deadletter.Table, filter deadletter.Filter, f format) (found bool, err error) {
	p := newLetterPrinter(c, f)
	err = printAll(p, table.List(c.Context(), filter), printLetter)
	return p.count > 0, err
}

// listGroups prints as many groups as the limit allows. The table ends with the totals of all groups.
func listGroups(c *cobra.Command, table *deadletter.Table, filter deadletter.Filter, f format) (found bool, err error) {
	groups, err := table.Groups(c.Context(), filter)
	if err != nil || len(groups) == 0 {
		return false, err
	}
	p := newPrinter(c, f, column{name: "GROUP"}, column{name: "COUNT"}, column{name: "TENANTS", spare: 2}, column{name: "HANDLER", least: 12},
		column{name: "TYPE", least: 16, spare: 3}, column{name: "FIRST FAILED", spare: 1}, column{name: "LAST FAILED"},
		column{name: "NEWEST ERROR", least: 20})
	all := 0
	for i, g := range groups {
		all += g.Count
		if filter.Limit > 0 && i >= filter.Limit {
			continue
		}
		err := p.print(groupLine{
			Group: g.ID, Count: g.Count, Tenants: g.Tenants, Handler: g.Handler, EventType: g.Type, Pattern: g.Pattern,
			Newest: g.Newest, FirstFailed: g.FirstFailed, LastFailed: g.LastFailed, Replayed: g.Replayed,
		}, g.ID, strconv.Itoa(g.Count), strconv.Itoa(len(g.Tenants)), orDash(g.Handler), orDash(g.Type),
			localTime(g.FirstFailed), localTime(g.LastFailed), orDash(g.Newest))
		if err != nil {
			return true, err
		}
	}
	if err := p.flush(); err != nil || f == formatJSON {
		return true, err
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), "\n%s in %s\nTo list the letters of a group: worker dlq list --group %s\n",
		text.Count(all, "dead letter"), text.Count(len(groups), "group"), groups[0].ID)
	return true, err
}

type groupLine struct {
	Group       string      `json:"group"`
	Count       int         `json:"count"`
	Tenants     []uuid.UUID `json:"tenant_ids"`
	Handler     string      `json:"handler,omitempty"`
	EventType   string      `json:"event_type,omitempty"`
	Pattern     string      `json:"pattern,omitempty"`
	Newest      string      `json:"newest_reason,omitempty"`
	FirstFailed time.Time   `json:"first_failed_at,omitzero"`
	LastFailed  time.Time   `json:"last_failed_at,omitzero"`
	Replayed    int         `json:"replayed_before"`
}

// letterLine is a dead letter as a line of JSON. It contains nothing that may be about a patient.
type letterLine struct {
	ID            string    `json:"id"`
	State         string    `json:"state"`
	Group         string    `json:"group"`
	EventID       uuid.UUID `json:"event_id,omitzero"`
	EventType     string    `json:"event_type,omitempty"`
	AggregateType string    `json:"aggregate_type,omitempty"`
	AggregateID   uuid.UUID `json:"aggregate_id,omitzero"`
	Version       int       `json:"aggregate_version,omitempty"`
	TenantID      uuid.UUID `json:"tenant_id,omitzero"`
	CorrelationID uuid.UUID `json:"correlation_id,omitzero"`
	Handler       string    `json:"handler,omitempty"`
	Reason        string    `json:"reason,omitempty"`
	Attempts      int       `json:"attempts,omitempty"`
	FirstFailed   time.Time `json:"first_failed_at,omitzero"`
	LastFailed    time.Time `json:"last_failed_at,omitzero"`
	Replays       int       `json:"replays,omitempty"`
	ReplayID      string    `json:"replay_id,omitempty"`
	Source        string    `json:"source,omitempty"`
	Bytes         int       `json:"bytes"`
}

func lineOf(l deadletter.Letter) letterLine {
	return letterLine{
		ID: l.ID, State: string(l.State), Group: l.Group, EventID: l.Event.ID, EventType: l.Type, AggregateType: l.Event.AggregateType,
		AggregateID: l.Event.AggregateID, Version: l.Event.AggregateVersion, TenantID: l.Event.TenantID,
		CorrelationID: l.Event.CorrelationID, Handler: l.Handler, Reason: l.Reason, Attempts: l.Attempts, Source: l.Source,
		Bytes: l.Bytes, FirstFailed: l.FirstFailed, LastFailed: l.LastFailed, Replays: l.Replays, ReplayID: l.ReplayID,
	}
}

func newLetterPrinter(c *cobra.Command, f format) *printer {
	return newPrinter(c, f, column{name: "ID"}, column{name: "STATE", spare: 5}, column{name: "FAILED"}, column{name: "TYPE", least: 16, spare: 4},
		column{name: "AGGREGATE", spare: 1}, column{name: "HANDLER", least: 12}, column{name: "ATTEMPTS", spare: 3},
		column{name: "REPLAYS", spare: 2}, column{name: "REASON", least: 20})
}

func printLetter(p *printer, l deadletter.Letter) error {
	aggregate := "-"
	if l.Event.AggregateID != uuid.Nil {
		aggregate = fmt.Sprintf("%s/%d", l.Event.AggregateID, l.Event.AggregateVersion)
	}
	return p.print(lineOf(l), l.ID, string(l.State), localTime(l.LastFailed), orDash(l.Type), aggregate, orDash(l.Handler),
		strconv.Itoa(l.Attempts), strconv.Itoa(l.Replays), orDash(l.Reason))
}

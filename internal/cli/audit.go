package cli

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/worker"
)

// maxAudited is the limit of the entries of a list.
const maxAudited = 1000

func auditCommand(s *worker.Settings) *cobra.Command {
	c := group(&cobra.Command{
		Use: "audit", Short: "List who did what by the command line and the console",
		Long: `audit reads the table worker_audit. Each reveal, dry run, replay, edit, archiving, discarding, restoring, purge, export, import
and append by the command line or the console is an entry of it, with who did it, when, to what and why. The database refuses
to change or delete an entry.`,
	})
	c.AddCommand(auditList(s))
	return c
}

func auditList(s *worker.Settings) *cobra.Command {
	var filter audit.Filter
	var limit int
	c := &cobra.Command{
		Use: "list", Short: "List entries of the audit log, the newest first",
		Long: `list prints the entries that match all flags, the newest first. An action on more than 500 dead letters has several entries.
COUNT is the number of letters or events, - if it was not known before. What was read is recorded before it is shown, so an
entry does not prove that it was shown.`,
		Example: `  worker audit list
  worker audit list --action reveal --since 1w
  worker audit list --by ana@host1 -o json`,
		Args: noArguments,
	}
	f := addFormat(c)
	flags := c.Flags()
	flags.StringVar(&filter.By, "by", "", "only actions of this person")
	var actions []string
	flags.StringSliceVar(&actions, "action", nil, "only these actions, as reveal or replay")
	var known []string
	for _, action := range audit.Actions() {
		known = append(known, string(action))
	}
	complete(c, "action", known...)
	addTimes(c, "actions", &filter.Since, &filter.Until)
	flags.Int64Var(&filter.Before, "before", 0, "only entries older than the one with this `ID`")
	flags.IntVar(&limit, "limit", 50, fmt.Sprintf("at most this number of entries, up to %d", maxAudited))
	c.RunE = func(c *cobra.Command, _ []string) error {
		if limit < 1 || limit > maxAudited {
			return usageError{fmt.Errorf("--limit must be from 1 to %d, but is %d", maxAudited, limit)}
		}
		for _, name := range actions {
			if !slices.Contains(known, name) {
				return usageError{meant(fmt.Sprintf("--action must be one of %s, and not %q", strings.Join(known, ", "), name), "", name, known)}
			}
			filter.Actions = append(filter.Actions, audit.Action(name))
		}
		return withStore(c, s, s.OpenExisting, func(b worker.Backend) error {
			found, err := audit.NewLog(b.SQL()).List(c.Context(), filter, limit+1)
			if err != nil {
				return err
			}
			p := newPrinter(c, *f, column{name: "ID", spare: 2}, column{name: "AT"}, column{name: "ACTION"}, column{name: "BY", least: 12},
				column{name: "SOURCE", least: 12, spare: 1}, column{name: "COUNT", spare: 3}, column{name: "WHAT", least: 20, spare: 4},
				column{name: "REASON", least: 16})
			for _, e := range found[:min(limit, len(found))] {
				if err := printEntry(p, e); err != nil {
					return err
				}
			}
			if err := p.flush(); err != nil {
				return err
			}
			switch {
			case len(found) > limit:
				fmt.Fprintf(c.ErrOrStderr(), "there are more entries: --before %d\n", found[limit-1].ID)
			case len(found) == 0:
				fmt.Fprintln(c.ErrOrStderr(), "no entries")
			}
			return nil
		})
	}
	return c
}

func printEntry(p *printer, e audit.Entry) error {
	count := "-"
	if e.Count > 0 {
		count = strconv.Itoa(e.Count)
	}
	return p.print(struct {
		ID      int64         `json:"id"`
		At      time.Time     `json:"at"`
		Action  audit.Action  `json:"action"`
		By      string        `json:"by"`
		Source  string        `json:"source"`
		Count   int           `json:"count,omitempty"`
		Subject audit.Subject `json:"subject"`
		Reason  string        `json:"reason,omitempty"`
	}{e.ID, e.At, e.Action, e.By, e.Source, e.Count, e.Subject, e.Reason},
		strconv.FormatInt(e.ID, 10), localTime(e.At), string(e.Action), e.By, e.Source, count, e.Subject.String(), orDash(e.Reason))
}

// addBy gives c the flag --by. Its default is the user of the operating system and the host name.
func addBy(c *cobra.Command) *audit.Actor {
	by := commandLine()
	c.Flags().StringVar(&by.By, "by", by.By, "the person who does this, for the audit log")
	return &by
}

// addActor gives c the flags that say who does something and why.
func addActor(c *cobra.Command) *audit.Actor {
	by := addBy(c)
	c.Flags().StringVar(&by.Reason, "reason", "", "the reason, for the audit log: without names of patients")
	return by
}

// addDecision gives c the flags that say who changes letters and why. The reason is required.
func addDecision(c *cobra.Command) *audit.Actor {
	by := addBy(c)
	c.Flags().StringVar(&by.Reason, "reason", "", "the reason, which is recorded with the letter; required")
	return by
}

func checkReason(by audit.Actor) error {
	if by.Reason == "" {
		return usageError{errors.New("--reason is required")}
	}
	return nil
}

// commandLine is the user of this process.
func commandLine() audit.Actor {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return audit.Actor{By: name, Source: "command line, " + name}
}

// recordReveal records that data will be printed. If that fails, none may be.
func recordReveal(c *cobra.Command, b worker.Backend, subject audit.Subject, count int) error {
	err := audit.NewLog(b.SQL()).Record(c.Context(), commandLine().Did(audit.Reveal, subject, count))
	if err != nil {
		return fmt.Errorf("nothing is revealed, as it cannot be recorded: %w", err)
	}
	return nil
}

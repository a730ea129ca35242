package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/handlers/register"
	"github.com/healz/worker/internal/worker"
)

// errCannotTell says that of some letters it cannot be told whether they would pass, and that all others would.
var errCannotTell = errors.New("it cannot be told of all whether they would pass")

func dlqTry(s *worker.Settings, all registrations) *cobra.Command {
	o := worker.TryOptions{}
	c := &cobra.Command{
		Use:   "try [ID]...",
		Short: "Say which dead letters would pass if they were replayed now, and touch nothing",
		Long: `try runs the handlers of this very program on the dead letters that are chosen, or all, in transactions that are rolled
back, and says of each letter whether it would pass, or fail and why. It changes nothing in the store. A letter is tried
once, with the handler that failed.

Of a handler that declares outside effects (handlers.OutsideEffects) it cannot tell, and does not run it. All others it does
run: what they do outside of the store happens.

The letters of one aggregate are tried in the order in which they failed, in one transaction: each finds what those before it have
done. From its first write on that transaction keeps others waiting, on Postgres the relay, on SQLite all who write. It
takes milliseconds; after five seconds it ends, and of the letters that are left it cannot tell.

It exits with 0 if all would pass, 1 if some would fail, and 3 if of some it cannot tell and the others would pass.`,
		Example: `  worker dlq try --group 3f9a12c4
  worker dlq try --type PatientRegistered --since 2h --format json`,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := addFormat(c)
	chosen := addFilter(c, "reason")
	c.Flags().BoolVar(&o.AllHandlers, "all-handlers", false,
		"try each letter with all handlers of its event, not only with the one that failed")
	c.Flags().DurationVar(&s.Tuning.HandlerTimeout, "handler-timeout", s.Tuning.HandlerTimeout, "time limit for one attempt of one handler")
	c.RunE = func(c *cobra.Command, args []string) error {
		filter, err := chosen.filter(args)
		if err != nil {
			return err
		}
		if err := s.Check(); err != nil {
			return usageError{err}
		}
		o.Logger = stderrLogger(c)
		o.Register = func(reg *handlers.Registry, streams events.Streams) { all(reg, register.Options{Streams: streams}) }
		p := newOutcomePrinter(c.OutOrStdout(), *f)
		for outcome, err := range s.TryDeadLetters(c.Context(), filter, o) {
			if err == nil {
				err = p.print(outcome)
			}
			if err != nil {
				return errors.Join(p.t.flush(), err)
			}
		}
		if err := p.t.flush(); err != nil {
			return err
		}
		if len(p.counts) == 0 && !filter.IsZero() {
			return noneFound(filter)
		}
		return p.sum(c.ErrOrStderr())
	}
	return c
}

// outcomePrinter prints what would become of letters, and counts them.
type outcomePrinter struct {
	w      io.Writer
	f      format
	t      *table
	counts map[handlers.Verdict]int
}

func newOutcomePrinter(w io.Writer, f format) *outcomePrinter {
	return &outcomePrinter{
		w: w, f: f, t: newTable(w, "VERDICT", "ID", "TYPE", "HANDLER", "WHY"), counts: make(map[handlers.Verdict]int),
	}
}

func (p *outcomePrinter) print(o handlers.Outcome) error {
	p.counts[o.Verdict]++
	if p.f == formatJSON {
		return printJSON(p.w, struct {
			letterLine

			Verdict handlers.Verdict `json:"verdict"`
			Why     string           `json:"verdict_reason,omitempty"`
		}{lineOf(o.Letter), o.Verdict, o.Reason})
	}
	p.t.row(string(o.Verdict), o.Letter.ID, o.Letter.Type, o.Letter.Handler, o.Reason)
	return nil
}

// sum prints the counts. The error says that not all would pass.
func (p *outcomePrinter) sum(w io.Writer) error {
	pass, fail, unknown := p.counts[handlers.WouldPass], p.counts[handlers.WouldFail], p.counts[handlers.CannotTell]
	fmt.Fprintf(w, "would pass: %d, would fail: %d, cannot tell: %d\n", pass, fail, unknown)
	switch {
	case fail > 0:
		return fmt.Errorf("%d of %d would fail", fail, pass+fail+unknown)
	case unknown > 0:
		return errCannotTell
	}
	return nil
}

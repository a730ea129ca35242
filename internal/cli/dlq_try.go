package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/text"
	"github.com/healz/worker/internal/worker"
)

// errCannotTell says that no letter would fail, and that the outcome of some cannot be predicted.
var errCannotTell = errors.New("the outcome of some letters cannot be predicted")

func dlqTry(s *worker.Settings, all registrations) *cobra.Command {
	o := worker.TryOptions{}
	c := &cobra.Command{
		Use:   "try [ID]...",
		Short: "Dry run: show which dead letters would be handled now",
		Long: `try is a dry run: it runs the handlers of this program on the selected dead letters, or on all, in transactions that are
rolled back. For each letter it prints whether a replay would pass, or fail and why. It changes nothing in the store. It
runs each letter once, with the handler that failed.

It does not run handlers that declare outside effects (worker.OutsideEffects), and prints "cannot tell" for them. It runs
all other handlers, and cannot roll back what they do outside of the store.

The letters of one aggregate run in one transaction, in the order in which they failed, so that each sees the effects of
those before it. From its first write on, that transaction holds back the relay (Postgres) or all writers (SQLite). This
takes milliseconds. After two seconds the transaction ends, with "cannot tell" for the remaining letters.

It exits with 0 if all would pass, with 1 if some would fail, and with 3 if none would fail and it cannot tell for some.`,
		Example: `  worker dlq try --group 3f9a12c4
  worker dlq try --type PatientRegistered --since 2h -o json`,
	}
	f := addFormat(c)
	chosen := addFilter(c, "reason")
	c.Flags().BoolVar(&o.AllHandlers, "all-handlers", false, "run all handlers of the event, not only the one that failed")
	c.Flags().DurationVar(&s.Tuning.HandlerTimeout, "handler-timeout", s.Tuning.HandlerTimeout, "timeout of one attempt of one handler")
	c.RunE = func(c *cobra.Command, args []string) error {
		filter, err := chosen.filter(args)
		if err != nil {
			return err
		}
		if err := s.Check(); err != nil {
			return usageError{err}
		}
		o.Logger = stderrLogger(c)
		o.Register, o.By = all, commandLine()
		counts := make(map[handlers.Verdict]int)
		p := newPrinter(c, *f, column{name: "VERDICT"}, column{name: "ID"}, column{name: "TYPE", least: 16, spare: 1},
			column{name: "HANDLER", least: 12})
		err = printAll(p, s.TryDeadLetters(c.Context(), filter, o), func(p *printer, o handlers.Outcome) error {
			counts[o.Verdict]++
			err := p.print(struct {
				letterLine

				Verdict handlers.Verdict `json:"verdict"`
				Why     string           `json:"verdict_reason,omitempty"`
			}{lineOf(o.Letter), o.Verdict, o.Reason}, string(o.Verdict), o.Letter.ID, o.Letter.Type, o.Letter.Handler)
			if o.Reason != "" {
				p.note(text.Wrap(text.Printable(o.Reason), p.wrap-noteIndent)...)
			}
			return err
		})
		if err != nil {
			return err
		}
		if p.count == 0 && !filter.IsZero() {
			return noneFound(c, s, filter)
		}
		return summariseTry(c.ErrOrStderr(), counts)
	}
	return c
}

// summariseTry prints the counts. Its error says that not all letters would pass.
func summariseTry(w io.Writer, counts map[handlers.Verdict]int) error {
	pass, fail, unknown := counts[handlers.WouldPass], counts[handlers.WouldFail], counts[handlers.CannotTell]
	fmt.Fprintf(w, "would pass: %d, would fail: %d, cannot tell: %d\n", pass, fail, unknown)
	switch {
	case fail > 0:
		return fmt.Errorf("%d of %d would fail", fail, pass+fail+unknown)
	case unknown > 0:
		return errCannotTell
	}
	return nil
}

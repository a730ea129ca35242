package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/handlers/register"
	"github.com/healz/worker/internal/worker"
)

func dlqReplay(s *worker.Settings, all registrations) *cobra.Command {
	var o deadletter.ReplayOptions
	var ids []string
	var to string
	c := &cobra.Command{
		Use:   "replay [ID]...",
		Short: "Send dead letters back to where they came from, and follow what becomes of them",
		Long: `replay releases the dead letters that are chosen, by ids, by flags or with --all, and shows which were handled and which
failed again. The worker that runs on the same store sends them, on RabbitMQ as well as without it: without a running worker
nothing is sent. Each letter keeps its id. One that fails again waits again, with its history; more than --max-failures of
them end the replay, which begins with no more at once. A replay that is interrupted may send a letter twice, which its
handler handles once, and never loses one. Letters of one aggregate are sent in the order of their versions, all others
oldest first.

A letter of a handler that has another name now is replayed with --to NAME: from then on it is a letter of that handler.

It shows a progress bar on a terminal, and otherwise a line of JSON for each step. With RabbitMQ it says on standard error
how many dead letters are still in the failed queue: these are not replayed.

It exits with 0 if all were sent, whether or not some failed again, and with 1 if it ended before or could not send some.`,
		Example: `  worker dlq replay 01JD2Q3YQ4X3M4J5K6N7P8R9ST
  worker dlq replay --group 3f9a12c4 --rate 50 --max-failures 0
  worker dlq replay --handler welcome-patient --to greet-patient
  worker dlq replay --group 3f9a12c4 --resume 01JD2Q3YQ4X3M4J5K6N7P8R9ST`,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := replayFormat("")
	chosen := addChoice(c, "reason")
	flags := c.Flags()
	flags.Var(&f, "format", "how to show the progress: a bar (table), a line of JSON for each step (json), or what suits the output")
	complete(c, "format", string(formatTable), string(formatJSON))
	flags.StringSliceVar(&ids, "id", nil, "only the letter with this id, or of the event with it, as an ID without the flag")
	flags.BoolVar(&o.DryRun, "dry-run", false, "say which letters would be sent, and send none")
	flags.Float64Var(&o.Rate, "rate", 0, "letters to send in a second at the most; 0: as fast as it goes")
	flags.IntVar(&o.Parallel, "parallel", deadletter.DefaultParallel, "letters at the most that are sent and not yet known to be handled")
	flags.StringVar(&to, "to", string(deadletter.ToHandler), "to the handler that failed (handler), to all handlers that have not handled it (bus), or to the handler of this NAME")
	complete(c, "to", string(deadletter.ToHandler), string(deadletter.ToBus))
	flags.IntVar(&o.MaxFailures, "max-failures", 10, "letters that may fail again; one more ends the replay; -1: any number")
	flags.DurationVar(&o.Patience, "patience", 30*time.Second, "how long to wait for the next outcome, which comes when a worker has handled a letter")
	flags.StringVar(&o.Resume, "resume", "", "ID of a replay that was interrupted: go on, and pass over what failed again in it")
	c.RunE = func(c *cobra.Command, args []string) error {
		filter, err := chosen.filter(append(args, ids...))
		if err != nil {
			return err
		}
		if o.To, o.Handler, err = destination(to, all); err != nil {
			return usageError{err}
		}
		resumed := o.Resume != ""
		if o, err = o.Check(); err != nil {
			return usageError{err}
		}
		return withDeadLetters(c.Context(), s, func(table *deadletter.Table) error {
			defer noteQueued(c, s)
			show := f.show(c.OutOrStdout())
			if _, lines := show.(stepLines); o.DryRun && !lines {
				show = letterTable{newLetterPrinter(c.OutOrStdout(), formatTable)}
			}
			last, err := replay(c, table, filter, o, show)
			if err == nil && last.Chosen == 0 && !resumed && !filter.IsZero() {
				return noneFound(filter)
			}
			if err == nil {
				summarise(c.ErrOrStderr(), last, o)
				if last.Kept > 0 || last.Sent < last.Chosen {
					err = fmt.Errorf("%d letters could not be sent, and stay", last.Chosen-last.Sent)
				}
			}
			return err
		})
	}
	return c
}

// destination is to whom --to sends letters. A name must be that of a registered handler.
func destination(to string, all registrations) (deadletter.Destination, string, error) {
	switch to := deadletter.Destination(to); to {
	case deadletter.ToHandler, deadletter.ToBus:
		return to, "", nil
	}
	var reg handlers.Registry
	all(&reg, register.Options{})
	if !slices.Contains(reg.Names(), to) {
		return "", "", fmt.Errorf("--to must be %s, %s or the name of a registered handler, and no handler has the name %q",
			deadletter.ToHandler, deadletter.ToBus, to)
	}
	return deadletter.ToHandler, to, nil
}

// replay shows a replay to its end, and returns its last step.
func replay(
	c *cobra.Command, table *deadletter.Table, filter deadletter.Filter, o deadletter.ReplayOptions, show replayShow,
) (last deadletter.Progress, err error) {
	for p, err := range table.Replay(c.Context(), filter, o) {
		last = p
		if err != nil {
			show.end()
			summarise(c.ErrOrStderr(), p, o)
			if p.ReplayID != "" && !o.DryRun {
				err = fmt.Errorf("%w\nTo go on: the same command with --resume %s", err, p.ReplayID)
			}
			return last, err
		}
		if err := show.step(p); err != nil {
			return last, err
		}
	}
	show.end()
	return last, nil
}

// summarise says how a replay ended.
func summarise(w io.Writer, p deadletter.Progress, o deadletter.ReplayOptions) {
	if o.DryRun {
		fmt.Fprintf(w, "would be replayed: %d\n", p.Sent)
		return
	}
	fmt.Fprintf(w, "replay %s: %d of %d replayed, %d handled, %d failed again", p.ReplayID, p.Sent, p.Chosen, p.Handled, p.FailedAgain)
	if n := p.InFlight() + p.Unknown; n > 0 {
		fmt.Fprintf(w, ", %d of which it is not known yet", n)
	}
	if p.Kept > 0 {
		fmt.Fprintf(w, ", %d could not be sent", p.Kept)
	}
	fmt.Fprintln(w)
}

// replayFormat is how the progress of a replay is shown; "" is as it suits the output.
type replayFormat string

// String, Set and Type implement pflag.Value.
func (f *replayFormat) String() string { return string(*f) }
func (f *replayFormat) Type() string   { return "table|json" }

func (f *replayFormat) Set(s string) error {
	if s != string(formatTable) && s != string(formatJSON) {
		return fmt.Errorf("must be table or json, not %q", s)
	}
	*f = replayFormat(s)
	return nil
}

func (f *replayFormat) show(w io.Writer) replayShow {
	file, isFile := w.(*os.File)
	terminal := isFile && term.IsTerminal(int(file.Fd()))
	switch {
	case *f == replayFormat(formatJSON) || *f == "" && !terminal:
		return stepLines{w}
	case terminal:
		return &progressBar{w: w, width: func() int {
			width, _, err := term.GetSize(int(file.Fd()))
			if err != nil || width < 1 {
				return 80
			}
			return width
		}, begun: time.Now()}
	default:
		return problemLines{w}
	}
}

// replayShow shows the steps of a replay.
type replayShow interface {
	step(p deadletter.Progress) error
	end()
}

// letterTable shows the letters that are sent, or would be.
type letterTable struct{ *letterPrinter }

func (t letterTable) end() { _ = t.flush() } // nobody is left to be told

func (t letterTable) step(p deadletter.Progress) error {
	if p.Step != deadletter.Sent {
		return nil
	}
	return t.print(p.Letter)
}

// stepLines shows each step as a line of JSON.
type stepLines struct{ w io.Writer }

func (s stepLines) end() {}

func (s stepLines) step(p deadletter.Progress) error {
	line := struct {
		Step        deadletter.Step `json:"step"`
		ReplayID    string          `json:"replay_id"`
		Letter      *sentLetter     `json:"letter,omitempty"`
		Problem     string          `json:"problem,omitempty"`
		Chosen      int             `json:"chosen"`
		Sent        int             `json:"sent"`
		Handled     int             `json:"handled"`
		FailedAgain int             `json:"failed_again"`
		Kept        int             `json:"kept"`
		Unknown     int             `json:"unknown"`
	}{
		Step: p.Step, ReplayID: p.ReplayID, Chosen: p.Chosen, Sent: p.Sent, Handled: p.Handled, FailedAgain: p.FailedAgain,
		Kept: p.Kept, Unknown: p.Unknown,
	}
	if p.Letter.ID != "" {
		l := lineOf(p.Letter)
		line.Letter = &sentLetter{l.ID, l.Group, l.EventID, l.EventType, l.AggregateID, l.Version, l.Handler, l.Reason}
	}
	if p.Problem != nil {
		line.Problem = p.Problem.Error()
	}
	return printJSON(s.w, line)
}

// sentLetter is the letter of a step.
type sentLetter struct {
	ID          string `json:"id"`
	Group       string `json:"group"`
	EventID     string `json:"event_id,omitempty"`
	EventType   string `json:"event_type,omitempty"`
	AggregateID string `json:"aggregate_id,omitempty"`
	Version     int    `json:"aggregate_version,omitempty"`
	Handler     string `json:"handler,omitempty"`
	Reason      string `json:"reason,omitempty"`
}

// problemLines shows what fails again or cannot be sent.
type problemLines struct{ w io.Writer }

func (s problemLines) end() {}

func (s problemLines) step(p deadletter.Progress) error {
	text := problemOf(p)
	if text == "" {
		return nil
	}
	_, err := fmt.Fprintln(s.w, text)
	return err
}

func problemOf(p deadletter.Progress) string {
	switch p.Step {
	case deadletter.FailedAgain:
		return printable(fmt.Sprintf("%s failed again: %s", p.Letter.ID, p.Letter.Reason))
	case deadletter.Kept:
		return printable(fmt.Sprintf("%s stays: %s", p.Letter.ID, p.Problem))
	default:
		return ""
	}
}

// progressBar draws on a terminal how far a replay is.
type progressBar struct {
	w            io.Writer
	width        func() int
	begun, drawn time.Time
	shown        bool
}

// redraw is the time between two drawings.
const redraw = 100 * time.Millisecond

func (b *progressBar) step(p deadletter.Progress) error {
	if text := problemOf(p); text != "" {
		b.clear()
		if _, err := fmt.Fprintln(b.w, text); err != nil {
			return err
		}
	} else if time.Since(b.drawn) < redraw && p.Step != deadletter.Done && p.Step != deadletter.Begun {
		return nil
	}
	b.drawn, b.shown = time.Now(), true
	_, err := fmt.Fprintf(b.w, "\r\x1b[K%s", b.line(p))
	return err
}

// line is the bar in one line: what has come to its end, and what is on its way.
func (b *progressBar) line(p deadletter.Progress) string {
	const cells = 24
	over := p.Handled + p.FailedAgain + p.Unknown + p.Kept
	bar := ""
	if p.Chosen > 0 {
		full, sent := cells*over/p.Chosen, cells*(p.Sent+p.Kept)/p.Chosen
		bar = strings.Repeat("█", full) + strings.Repeat("▒", sent-full) + strings.Repeat("·", cells-sent)
	}
	line := fmt.Sprintf("%s %d/%d  handled %d  failed again %d  on their way %d", bar, p.Sent, p.Chosen, p.Handled, p.FailedAgain, p.InFlight())
	if spent := time.Since(b.begun).Seconds(); spent > 1 {
		line += fmt.Sprintf("  %.0f/s", float64(over)/spent)
	}
	return cutTo(line, b.width())
}

func (b *progressBar) clear() {
	if b.shown {
		fmt.Fprint(b.w, "\r\x1b[K")
	}
}

// end leaves the last drawing behind.
func (b *progressBar) end() {
	if b.shown {
		fmt.Fprintln(b.w)
	}
}

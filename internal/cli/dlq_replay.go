package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/text"
	"github.com/healz/worker/internal/worker"
)

func dlqReplay(s *worker.Settings, all registrations) *cobra.Command {
	var o deadletter.ReplayOptions
	var ids []string
	var to string
	c := &cobra.Command{
		Use:   "replay [ID]...",
		Short: "Publish dead letters again, and show the outcome",
		Long: `replay releases dead letters, selected by ids, by flags or with --all, and shows which were handled and which failed again.
A running worker on the same store publishes them, with RabbitMQ as well as with the in-process bus. If no worker
leads the relay for 8 seconds, replay says so and waits for one, for as long as --patience. Each letter keeps its id. A letter that fails again returns to waiting, with its history. If
more than --max-failures letters fail again, the replay ends; until the first success it keeps no more letters in flight
than may fail. An interrupted replay loses no letter; it may publish a letter twice, which its handler handles once.
Letters of one aggregate are published in the order of their versions, all others oldest first.

If a handler was renamed, --to NAME replays its letters to the handler NAME, and moves them to that handler.

It prints the letters that fail again and, on a terminal, a progress bar; with -o json one object per step. With RabbitMQ it
prints on standard error how many dead letters of the failed queue are not ingested yet: these are not replayed.

It exits with 0 if all letters were published, even if some failed again, and with 1 if it ended early or could not publish
some.`,
		Example: `  worker dlq replay 01JD2Q3YQ4X3M4J5K6N7P8R9ST
  worker dlq replay --group 3f9a12c4 --rate 50 --max-failures 0
  worker dlq replay --handler welcome-patient --to greet-patient
  worker dlq replay --group 3f9a12c4 --resume 01JD2Q3YQ4X3M4J5K6N7P8R9ST`,
	}
	f := addFormat(c)
	chosen := addChoice(c, "reason")
	flags := c.Flags()
	by := addBy(c)
	flags.StringSliceVar(&ids, "id", nil, "only the letter with this id or event id; the same as an ID argument")
	flags.BoolVar(&o.DryRun, "dry-run", false, "print the letters that would be replayed, and publish none")
	flags.Float64Var(&o.Rate, "rate", 0, "at most this number of letters per second; 0: no limit")
	flags.IntVar(&o.Parallel, "parallel", deadletter.DefaultParallel, "at most this number of letters in flight")
	flags.StringVar(&to, "to", string(deadletter.ToHandler),
		"destination: the handler that failed (handler), all handlers that have not handled the event (bus), or the handler NAME")
	flags.IntVar(&o.MaxFailures, "max-failures", 10, "end the replay when more letters than this fail again; -1: no limit")
	flags.DurationVar(&o.Patience, "patience", 30*time.Second, "timeout for the next outcome")
	flags.StringVar(&o.Resume, "resume", "", "id of an interrupted replay: continue it, and skip the letters that failed again in it")
	c.RunE = func(c *cobra.Command, args []string) error {
		filter, err := chosen.filter(append(args, ids...))
		if err != nil {
			return err
		}
		if o.To, o.Handler, err = destination(to, s, all); err != nil {
			return err
		}
		o.By = *by
		resumed := o.Resume != ""
		if o, err = o.Check(); err != nil {
			return usageError{err}
		}
		return withDeadLetters(c, s, func(table *deadletter.Table) error {
			defer noteQueued(c, s)
			last, err := replay(c, table, filter, o, *f)
			switch {
			case err == nil && last.Chosen == 0 && !resumed && !filter.IsZero():
				return noneFound(c, s, filter)
			case err != nil && last.ReplayID != "" && !o.DryRun:
				err = fmt.Errorf("%w\nTo continue, run the same command with --resume %s", err, last.ReplayID)
			case err == nil && (last.Kept > 0 || last.Sent < last.Chosen):
				err = fmt.Errorf("%s could not be published, and stay unchanged", text.Count(last.Chosen-last.Sent, "letter"))
			}
			summarise(c.ErrOrStderr(), last, o)
			return err
		})
	}
	return c
}

// destination parses --to. A name must be the name of a registered handler.
func destination(to string, s *worker.Settings, all registrations) (deadletter.Destination, string, error) {
	switch to := deadletter.Destination(to); to {
	case deadletter.ToHandler, deadletter.ToBus:
		return to, "", nil
	}
	names := s.Registry(all).Names()
	if own := deadletter.OfService(s.AMQP.Service, to); slices.Contains(names, own) {
		to = own
	}
	if !slices.Contains(names, to) {
		return "", "", meant(fmt.Sprintf("--to must be %s, %s or the name of a registered handler, and no handler has the name %q",
			deadletter.ToHandler, deadletter.ToBus, to), "", to, names)
	}
	return deadletter.ToHandler, to, nil
}

// replay runs a replay and shows its steps. It returns the last step with its counts.
func replay(
	c *cobra.Command, table *deadletter.Table, filter deadletter.Filter, o deadletter.ReplayOptions, f format,
) (last deadletter.Progress, err error) {
	show, end := replayOutput(c, o.DryRun, f)
	defer end()
	for p, err := range table.Replay(c.Context(), filter, o) {
		last = p
		if err == nil {
			err = show(p)
		}
		if err != nil {
			return last, err
		}
	}
	return last, nil
}

func summarise(w io.Writer, p deadletter.Progress, o deadletter.ReplayOptions) {
	if o.DryRun {
		fmt.Fprintf(w, "would be replayed: %d\n", p.Sent)
		return
	}
	fmt.Fprintf(w, "replay %s: %d of %d replayed, %d handled, %d failed again", p.ReplayID, p.Sent, p.Chosen, p.Handled, p.FailedAgain)
	if n := p.InFlight() + p.Unknown; n > 0 {
		fmt.Fprintf(w, ", %d with unknown outcome", n)
	}
	if p.Kept > 0 {
		fmt.Fprintf(w, ", %d not published", p.Kept)
	}
	fmt.Fprintln(w)
}

// replayOutput returns how the steps of a replay are shown, and what ends the output.
func replayOutput(c *cobra.Command, dryRun bool, f format) (show func(deadletter.Progress) error, end func()) {
	w := c.OutOrStdout()
	if f == formatJSON {
		return func(p deadletter.Progress) error { return printJSON(w, stepOf(p)) }, func() {}
	}
	if dryRun {
		letters := newLetterPrinter(c, f)
		return func(p deadletter.Progress) error {
			if p.Step != deadletter.Sent {
				return nil
			}
			return printLetter(letters, p.Letter)
		}, func() { _ = letters.flush() } // standard output is closed
	}
	bar := &progressBar{w: w, began: time.Now()}
	_, bar.terminal = asTerminal(w)
	return bar.step, bar.end
}

type stepLine struct {
	Step        deadletter.Step `json:"step"`
	ReplayID    string          `json:"replay_id"`
	Letter      *stepLetter     `json:"letter,omitempty"`
	Problem     string          `json:"problem,omitempty"`
	Chosen      int             `json:"chosen"`
	Sent        int             `json:"sent"`
	Handled     int             `json:"handled"`
	FailedAgain int             `json:"failed_again"`
	Kept        int             `json:"kept"`
	Unknown     int             `json:"unknown"`
}

type stepLetter struct {
	ID          string    `json:"id"`
	Group       string    `json:"group"`
	EventID     uuid.UUID `json:"event_id,omitzero"`
	EventType   string    `json:"event_type,omitempty"`
	AggregateID uuid.UUID `json:"aggregate_id,omitzero"`
	Version     int       `json:"aggregate_version,omitempty"`
	Handler     string    `json:"handler,omitempty"`
	Reason      string    `json:"reason,omitempty"`
}

func stepOf(p deadletter.Progress) stepLine {
	line := stepLine{
		Step: p.Step, ReplayID: p.ReplayID, Chosen: p.Chosen, Sent: p.Sent, Handled: p.Handled, FailedAgain: p.FailedAgain,
		Kept: p.Kept, Unknown: p.Unknown,
	}
	if l := p.Letter; l.ID != "" {
		line.Letter = &stepLetter{l.ID, l.Group, l.Event.ID, l.Type, l.Event.AggregateID, l.Event.AggregateVersion, l.Handler, l.Reason}
	}
	if p.Problem != nil {
		line.Problem = p.Problem.Error()
	}
	return line
}

// progressBar prints the letters that fail again or cannot be published, that no worker leads, and, on a terminal, a progress bar.
type progressBar struct {
	w            io.Writer
	terminal     bool
	began, drawn time.Time
}

const redraw = 100 * time.Millisecond

func (b *progressBar) step(p deadletter.Progress) (err error) {
	line := ""
	switch p.Step {
	case deadletter.FailedAgain:
		line = fmt.Sprintf("%s failed again: %s", p.Letter.ID, p.Letter.Reason)
	case deadletter.Kept:
		line = fmt.Sprintf("%s was not published: %s", p.Letter.ID, p.Problem)
	case deadletter.NoWorker:
		line = fmt.Sprintf("waiting for a worker: %s", p.Problem)
	case deadletter.Begun, deadletter.Done:
	default:
		if time.Since(b.drawn) < redraw {
			return nil
		}
	}
	if line != "" {
		_, err = fmt.Fprintln(b.w, b.clear()+text.Printable(line))
	}
	if err == nil && b.terminal {
		_, err = fmt.Fprint(b.w, b.clear()+b.line(p))
		b.drawn = time.Now()
	}
	return err
}

// clear is the control sequence that clears the bar, if there is one.
func (b *progressBar) clear() string {
	if b.drawn.IsZero() {
		return ""
	}
	return "\r\x1b[K"
}

// line is the bar: the letters with an outcome, and those in flight.
func (b *progressBar) line(p deadletter.Progress) string {
	const cells = 24
	over := p.Handled + p.FailedAgain + p.Unknown + p.Kept
	bar := ""
	if p.Chosen > 0 {
		full, sent := cells*over/p.Chosen, cells*(p.Sent+p.Kept)/p.Chosen
		bar = strings.Repeat("█", full) + strings.Repeat("▒", sent-full) + strings.Repeat("·", cells-sent)
	}
	line := fmt.Sprintf("%s %d/%d  handled %d  failed again %d  in flight %d", bar, p.Sent, p.Chosen, p.Handled, p.FailedAgain, p.InFlight())
	if spent := time.Since(b.began).Seconds(); spent > 1 {
		line += fmt.Sprintf("  %.0f/s", float64(over)/spent)
	}
	return text.Cut(line, max(widthOf(b.w), minWidth))
}

// end keeps the last drawing on the terminal.
func (b *progressBar) end() {
	if !b.drawn.IsZero() {
		fmt.Fprintln(b.w)
	}
}

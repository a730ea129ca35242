package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/worker"
)

func dlqCommand(s *worker.Settings, all registrations) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "dlq",
		Short: "Look into the dead letters, replay them, purge them",
		Long: `dlq works on the events that failed for good: the queue of failed messages on RabbitMQ, or without it the table of
dead letters in the store.`,
	})
	c.AddCommand(dlqList(s), dlqShow(s), dlqTry(s, all), dlqReplay(s), dlqPurge(s))
	c.AddCommand(dlqKeeping(s)...)
	return c
}

func dlqList(s *worker.Settings) *cobra.Command {
	var filter deadletter.Filter
	c := &cobra.Command{
		Use:   "list",
		Short: "List the dead letters, oldest first, and leave them as they are",
		Args:  noArguments, ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := addFormat(c)
	c.Flags().StringVar(&filter.Type, "type", "", "only those of this event type")
	c.RunE = func(c *cobra.Command, _ []string) error {
		return withDeadLetters(c.Context(), s, func(q deadletter.Queue) error {
			p := newLetterPrinter(c.OutOrStdout(), *f)
			for l, err := range q.List(c.Context(), filter) {
				if err != nil {
					return errors.Join(p.flush(), err)
				}
				if err := p.print(l); err != nil {
					return err
				}
			}
			if p.count == 0 {
				fmt.Fprintln(c.ErrOrStderr(), "no dead letters")
			}
			return p.flush()
		})
	}
	return c
}

func dlqShow(s *worker.Settings) *cobra.Command {
	var reveal bool
	c := &cobra.Command{
		Use:   "show ID",
		Short: "Show one dead letter, by its id or its event's, and leave it as it is",
		Args:  oneID, ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := addFormat(c)
	c.Flags().BoolVar(&reveal, "reveal", false, "show the body and the headers too: they may be about a patient")
	c.RunE = func(c *cobra.Command, args []string) error {
		filter := deadletter.Filter{IDs: args, Limit: 1}
		return withDeadLetters(c.Context(), s, func(q deadletter.Queue) error {
			for l, err := range q.List(c.Context(), filter) {
				if err != nil {
					return err
				}
				return showLetter(c.OutOrStdout(), *f, l, reveal)
			}
			return fmt.Errorf("no dead letter has the id %q", args[0])
		})
	}
	return c
}

func dlqReplay(s *worker.Settings) *cobra.Command {
	var filter deadletter.Filter
	c := &cobra.Command{
		Use:   "replay",
		Short: "Send dead letters back to where they came from, oldest first",
		Long: `replay sends the dead letters that are chosen, or all, back to where they came from. Each leaves the dead letters only
when that is safe: a replay that is interrupted may repeat one, and never loses one. Without RabbitMQ the letters are
marked, and the worker that runs on the same store takes them up. A letter that is parked behind another which is not yet
handled becomes a dead letter again: replay until none is left.`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := addFormat(c)
	c.Flags().StringSliceVar(&filter.IDs, "id", nil, "only the letter with this id, or of the event with it")
	c.Flags().StringVar(&filter.Type, "type", "", "only those of this event type")
	c.RunE = func(c *cobra.Command, _ []string) error {
		return withDeadLetters(c.Context(), s, func(q deadletter.Queue) error {
			p := newLetterPrinter(c.OutOrStdout(), *f)
			for step, err := range q.Replay(c.Context(), filter, deadletter.ReplayOptions{}) {
				if err != nil {
					return errors.Join(p.flush(), fmt.Errorf("after %d replayed: %w", p.count, err))
				}
				if step.Step != deadletter.Sent {
					continue
				}
				if err := p.print(step.Letter); err != nil {
					return err
				}
			}
			if err := p.flush(); err != nil {
				return err
			}
			if len(filter.IDs) > 0 && p.count == 0 {
				return fmt.Errorf("no dead letter has the id %q", filter.IDs[0])
			}
			if s.AMQP.URL == "" {
				fmt.Fprintf(c.ErrOrStderr(), "marked for replay: %d; a worker that runs on this store takes them up\n", p.count)
			} else {
				fmt.Fprintf(c.ErrOrStderr(), "replayed: %d\n", p.count)
			}
			return nil
		})
	}
	return c
}

func dlqPurge(s *worker.Settings) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "purge",
		Short: "Destroy all dead letters",
		Args:  noArguments, ValidArgsFunction: cobra.NoFileCompletions,
	}
	c.Flags().BoolVar(&yes, "yes", false, "confirm; this cannot be undone")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if !yes {
			return usageError{errors.New("purge destroys all dead letters for good: say --yes")}
		}
		return withDeadLetters(c.Context(), s, func(q deadletter.Queue) error {
			n, err := q.Purge(c.Context())
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "purged: %d\n", n)
			return nil
		})
	}
	return c
}

func withDeadLetters(ctx context.Context, s *worker.Settings, do func(deadletter.Queue) error) (err error) {
	if err := s.Check(); err != nil {
		return usageError{err}
	}
	q, closeQueue, err := s.OpenDeadLetters(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeQueue()) }()
	return do(q)
}

// letterLine is a dead letter as a line of JSON: what may be about a patient is left out.
type letterLine struct {
	ID            string     `json:"id"`
	EventID       string     `json:"event_id,omitempty"`
	EventType     string     `json:"event_type,omitempty"`
	AggregateType string     `json:"aggregate_type,omitempty"`
	AggregateID   string     `json:"aggregate_id,omitempty"`
	TenantID      string     `json:"tenant_id,omitempty"`
	CorrelationID string     `json:"correlation_id,omitempty"`
	Handler       string     `json:"handler,omitempty"`
	Reason        string     `json:"reason,omitempty"`
	Attempts      int        `json:"attempts,omitempty"`
	FirstFailed   *time.Time `json:"first_failed_at,omitempty"`
	LastFailed    *time.Time `json:"last_failed_at,omitempty"`
	Source        string     `json:"source,omitempty"`
	Bytes         int        `json:"bytes"`
}

func lineOf(l deadletter.Letter) letterLine {
	line := letterLine{
		ID: l.ID, EventType: l.Event.Type, AggregateType: l.Event.AggregateType,
		Handler: l.Handler, Reason: l.Reason, Attempts: l.Attempts, Source: l.Source, Bytes: len(l.Body),
	}
	for target, id := range map[*string]uuid.UUID{
		&line.EventID: l.Event.ID, &line.AggregateID: l.Event.AggregateID, &line.TenantID: l.Event.TenantID,
		&line.CorrelationID: l.Event.CorrelationID,
	} {
		if id != uuid.Nil {
			*target = id.String()
		}
	}
	if !l.FirstFailed.IsZero() {
		line.FirstFailed = &l.FirstFailed
	}
	if !l.LastFailed.IsZero() {
		line.LastFailed = &l.LastFailed
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
	return &letterPrinter{w: w, f: f, t: newTable(w, "ID", "FAILED", "TYPE", "HANDLER", "TRIES", "REASON")}
}

func (p *letterPrinter) print(l deadletter.Letter) error {
	p.count++
	if p.f == formatJSON {
		return printJSON(p.w, lineOf(l))
	}
	p.t.row(l.ID, localTime(l.LastFailed), l.Event.Type, l.Handler, fmt.Sprint(l.Attempts), l.Reason)
	return nil
}

func (p *letterPrinter) flush() error { return p.t.flush() }

// showLetter prints all of a letter; what may be about a patient only when it is to be revealed.
func showLetter(w io.Writer, f format, l deadletter.Letter, reveal bool) error {
	line := lineOf(l)
	if f == formatJSON {
		whole := struct {
			letterLine

			Headers map[string]any  `json:"headers,omitempty"`
			Body    json.RawMessage `json:"body,omitempty"`
			Raw     []byte          `json:"body_base64,omitempty"`
		}{letterLine: line}
		if reveal {
			whole.Headers = l.Headers
			if json.Valid(l.Body) {
				whole.Body = l.Body
			} else {
				whole.Raw = l.Body
			}
		}
		return printJSON(w, whole)
	}
	t := newTable(w, "FIELD", "VALUE")
	for _, row := range [][2]string{
		{"id", line.ID},
		{"reason", line.Reason},
		{"handler", line.Handler},
		{"tries", fmt.Sprint(line.Attempts)},
		{"first failed", localTime(l.FirstFailed)},
		{"last failed", localTime(l.LastFailed)},
		{"source", line.Source},
		{"event", line.EventID},
		{"type", line.EventType},
		{"aggregate", line.AggregateType + "/" + line.AggregateID},
		{"tenant", line.TenantID},
		{"correlation", line.CorrelationID},
		{"bytes", fmt.Sprint(line.Bytes)},
	} {
		if row[1] != "" && row[1] != "/" && row[1] != "-" {
			t.row(row[0], row[1])
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	if !reveal {
		_, err := fmt.Fprintln(w, "\nThe body is not shown: it may be about a patient. --reveal shows it.")
		return err
	}
	headers, err := json.MarshalIndent(l.Headers, "", "  ")
	if err != nil {
		headers = fmt.Appendf(nil, "%v", l.Headers)
	}
	body := string(l.Body)
	if !utf8.ValidString(body) {
		body = fmt.Sprintf("%q", body)
	}
	_, err = fmt.Fprintf(w, "\nheaders: %s\n\nbody: %s\n", headers, body)
	return err
}

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/causation"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/worker"
)

func dlqShow(s *worker.Settings) *cobra.Command {
	var reveal bool
	c := &cobra.Command{
		Use:   "show ID",
		Short: "Show one dead letter, by its id or the id of its event",
		Long: `show prints one dead letter in any state: its event, its last error, its history, and the trace of its event from the
store. It prints body and headers only with --reveal.`,
		Args: oneID,
	}
	f := addFormat(c)
	c.Flags().BoolVar(&reveal, "reveal", false, "print body and headers, too: they may be about a patient")
	c.RunE = func(c *cobra.Command, args []string) error {
		return withStore(c, s, s.OpenExisting, func(b worker.Backend) error {
			l, err := deadletter.NewTable(b.SQL()).Find(c.Context(), args[0])
			if errors.Is(err, deadletter.ErrNotFound) {
				noteQueued(c, s)
			}
			if err != nil {
				return err
			}
			if reveal {
				if err := recordReveal(c, b, deadletter.Filter{IDs: []string{l.ID}}.Subject(), 1); err != nil {
					return err
				}
			}
			if *f == formatJSON {
				return printWholeLetter(c.OutOrStdout(), l, reveal)
			}
			if err := showLetter(c, *f, l, reveal); err != nil {
				return err
			}
			return showTrace(c, b, l, *f)
		})
	}
	return c
}

// showLetter prints a letter. What may be about a patient is printed only with reveal.
func showLetter(c *cobra.Command, f format, l deadletter.Letter, reveal bool) error {
	w, e := c.OutOrStdout(), l.Event
	p := newPrinter(c, f, column{name: "FIELD"}, column{name: "VALUE", least: 20, wraps: true})
	for _, row := range [][2]string{
		{"id", l.ID},
		{"state", string(l.State)},
		{"decided", localTime(l.Decided.At)},
		{"decided by", l.Decided.By},
		{"decided why", l.Decided.Reason},
		{"group", l.Group},
		{"reason", l.Reason},
		{"handler", l.Handler},
		{"attempts", strconv.Itoa(l.Attempts)},
		{"first failed", localTime(l.FirstFailed)},
		{"last failed", localTime(l.LastFailed)},
		{"replays", strconv.Itoa(l.Replays)},
		{"last replay", l.ReplayID},
		{"source", l.Source},
		{"event", idOf(e.ID)},
		{"type", l.Type},
		{"aggregate", strings.Trim(e.AggregateType+"/"+idOf(e.AggregateID), "/")},
		{"version", strconv.Itoa(e.AggregateVersion)},
		{"tenant", idOf(e.TenantID)},
		{"clinic", idOf(e.ClinicID.UUID)},
		{"correlation", idOf(e.CorrelationID)},
		{"causation", idOf(e.CausationID.UUID)},
		{"user", idOf(e.UserID.UUID)},
		{"created", localTime(e.CreatedAt)},
		{"bytes", strconv.Itoa(l.Bytes)},
	} {
		if row[1] != "" && row[1] != "-" {
			_ = p.print(nil, row[:]...) // flush returns the error
		}
	}
	if err := p.flush(); err != nil {
		return err
	}
	if err := showHistory(c, f, l.History); err != nil {
		return err
	}
	if !reveal {
		_, err := fmt.Fprintln(w, "\nBody and headers are hidden, as they may be about a patient. --reveal prints them.")
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

func idOf(id uuid.UUID) string {
	if id == uuid.Nil {
		return ""
	}
	return id.String()
}

func printWholeLetter(w io.Writer, l deadletter.Letter, reveal bool) error {
	whole := struct {
		letterLine

		DecidedBy     string             `json:"decided_by,omitempty"`
		DecidedReason string             `json:"decided_reason,omitempty"`
		DecidedAt     time.Time          `json:"decided_at,omitzero"`
		History       deadletter.History `json:"history,omitempty"`
		Headers       map[string]any     `json:"headers,omitempty"`
		Body          json.RawMessage    `json:"body,omitempty"`
		Raw           []byte             `json:"body_base64,omitempty"`
	}{
		letterLine: lineOf(l), DecidedBy: l.Decided.By, DecidedReason: l.Decided.Reason, DecidedAt: l.Decided.At, History: l.History,
	}
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

func showHistory(c *cobra.Command, f format, h deadletter.History) error {
	if len(h) == 0 {
		return nil
	}
	fmt.Fprintln(c.OutOrStdout(), "\nBefore its last failure:")
	p := newPrinter(c, f, column{name: "AT"}, column{name: "WHAT"}, column{name: "HANDLER", least: 12}, column{name: "ATTEMPTS"},
		column{name: "WHY", least: 20, wraps: true})
	for _, i := range h {
		what, attempts, why := string(i.Kind), "", i.Reason
		switch i.Kind {
		case deadletter.Failed:
			attempts = strconv.Itoa(i.Attempts)
		case deadletter.Omitted:
			what = fmt.Sprintf("%d more", i.Attempts)
		case deadletter.Replayed:
			why = "replay " + i.ReplayID
		default: // the kind is enough
		}
		if i.By != "" {
			why = strings.TrimSpace(why + " (" + i.By + ")")
		}
		_ = p.print(nil, localTime(i.At), what, orDash(i.Handler), orDash(attempts), orDash(why)) // flush returns the error
	}
	return p.flush()
}

// showTrace prints the trace of a letter's event, if the store has it.
func showTrace(c *cobra.Command, b worker.Backend, l deadletter.Letter, f format) error {
	if l.Event.CorrelationID == uuid.Nil {
		return nil
	}
	tree, err := causation.Load(c.Context(), b, l.Event.CorrelationID, deadletter.NewTable(b.SQL()))
	switch {
	case err == nil:
		fmt.Fprintln(c.OutOrStdout(), "\nTrace:")
		return tree.WriteText(c.OutOrStdout(), widthFor(c, f))
	case c.Context().Err() == nil && !errors.Is(err, causation.ErrNotFound):
		fmt.Fprintf(c.ErrOrStderr(), "worker: the trace cannot be read: %s\n", err)
		return nil
	default:
		return c.Context().Err()
	}
}

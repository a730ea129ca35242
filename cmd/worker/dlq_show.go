package main

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
		Short: "Show one dead letter, by its id or its event's",
		Long: `show shows of one dead letter, whatever its state, what it is, why it failed, its history, and the chain of causes that its
event belongs to, which is read from the store. Body and headers are shown only with --reveal.`,
		Args: oneID, ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := addFormat(c)
	c.Flags().BoolVar(&reveal, "reveal", false, "show the body and the headers too: they may be about a patient")
	c.RunE = func(c *cobra.Command, args []string) error {
		l, err := findLetter(c, s, args[0])
		if err != nil {
			return err
		}
		if err := showLetter(c.OutOrStdout(), *f, l, reveal); err != nil {
			return err
		}
		if *f == formatJSON || l.Event.CorrelationID == uuid.Nil {
			return nil
		}
		return showChain(c, s, l)
	}
	return c
}

func findLetter(c *cobra.Command, s *worker.Settings, id string) (l deadletter.Letter, err error) {
	err = withDeadLetters(c.Context(), s, func(table *deadletter.Table) error {
		l, err = table.Find(c.Context(), id)
		if errors.Is(err, deadletter.ErrNotFound) {
			noteQueued(c, s)
		}
		return err
	})
	return l, err
}

// showLetter prints all of a letter; what may be about a patient only when it is to be revealed.
func showLetter(w io.Writer, f format, l deadletter.Letter, reveal bool) error {
	if f == formatJSON {
		return printWholeLetter(w, l, reveal)
	}
	line := lineOf(l)
	t := newTable(w, "FIELD", "VALUE")
	for _, row := range [][2]string{
		{"id", line.ID},
		{"state", line.State},
		{"decided", localTime(l.Decided.At)},
		{"decided by", l.Decided.By},
		{"decided why", l.Decided.Reason},
		{"group", line.Group},
		{"reason", line.Reason},
		{"handler", line.Handler},
		{"tries", strconv.Itoa(line.Attempts)},
		{"first failed", localTime(l.FirstFailed)},
		{"last failed", localTime(l.LastFailed)},
		{"replays", strconv.Itoa(line.Replays)},
		{"last replay", line.ReplayID},
		{"source", line.Source},
		{"event", line.EventID},
		{"type", line.EventType},
		{"aggregate", strings.Trim(line.AggregateType+"/"+line.AggregateID, "/")},
		{"version", strconv.Itoa(line.Version)},
		{"tenant", line.TenantID},
		{"clinic", idOf(l.Event.ClinicID)},
		{"correlation", line.CorrelationID},
		{"causation", idOf(l.Event.CausationID)},
		{"user", idOf(l.Event.UserID)},
		{"created", localTime(l.Event.CreatedAt)},
		{"bytes", strconv.Itoa(line.Bytes)},
	} {
		if row[1] != "" && row[1] != "-" {
			t.row(row[0], row[1])
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	if err := showHistory(w, l.History); err != nil {
		return err
	}
	if !reveal {
		_, err := fmt.Fprintln(w, "\nBody and headers are not shown: they may be about a patient. --reveal shows them.")
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

func idOf(id uuid.NullUUID) string {
	if !id.Valid {
		return ""
	}
	return id.UUID.String()
}

func printWholeLetter(w io.Writer, l deadletter.Letter, reveal bool) error {
	whole := struct {
		letterLine

		DecidedBy     string             `json:"decided_by,omitempty"`
		DecidedReason string             `json:"decided_reason,omitempty"`
		DecidedAt     *time.Time         `json:"decided_at,omitempty"`
		History       deadletter.History `json:"history,omitempty"`
		Headers       map[string]any     `json:"headers,omitempty"`
		Body          json.RawMessage    `json:"body,omitempty"`
		Raw           []byte             `json:"body_base64,omitempty"`
	}{
		letterLine: lineOf(l), DecidedBy: l.Decided.By, DecidedReason: l.Decided.Reason, DecidedAt: orNull(l.Decided.At),
		History: l.History,
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

func showHistory(w io.Writer, h deadletter.History) error {
	if len(h) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nBefore its last failure:")
	t := newTable(w, "AT", "WHAT", "HANDLER", "TRIES", "WHY")
	for _, i := range h {
		what, tries, why := string(i.Kind), "", i.Reason
		switch i.Kind {
		case deadletter.Failed:
			tries = strconv.Itoa(i.Attempts)
		case deadletter.Omitted:
			what = fmt.Sprintf("%d more", i.Attempts)
		case deadletter.Replayed:
			why = "replay " + i.ReplayID
		default: // the kind says it
		}
		if i.By != "" {
			why = strings.TrimSpace(why + " (" + i.By + ")")
		}
		t.row(localTime(i.At), what, orDash(i.Handler), orDash(tries), orDash(why))
	}
	return t.flush()
}

// showChain prints the chain of causes that a letter belongs to, if there is a store that knows of it.
func showChain(c *cobra.Command, s *worker.Settings, l deadletter.Letter) error {
	err := withStore(c.Context(), s, s.OpenExisting, func(b worker.Backend) error {
		tree, err := causation.Load(c.Context(), b, l.Event.CorrelationID, deadletter.NewTable(b.SQL()))
		if err != nil {
			return err
		}
		fmt.Fprintln(c.OutOrStdout(), "\nThe chain that it belongs to:")
		return tree.WriteText(c.OutOrStdout())
	})
	if err != nil && c.Context().Err() == nil && !errors.Is(err, causation.ErrNotFound) {
		fmt.Fprintf(c.ErrOrStderr(), "worker: the chain that it belongs to cannot be shown: %s\n", err)
		return nil
	}
	return c.Context().Err()
}

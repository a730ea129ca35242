package causation

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/rawjson"
	"github.com/healz/worker/internal/text"
)

// maxIndent is the number of levels that are drawn. For deeper nodes these are the nearest levels.
const maxIndent = 20

// timeWidth is the width of the times and the gap before the drawing.
const timeWidth = 12

// WriteText draws the tree for a terminal of a width: where an event is too wide, its aggregate is left out, and then its type
// is cut. 0 is no limit. The time of an event is relative to the first event. The time of a handler is relative to the creation
// of its event; it may be negative if the clocks of the writer and of the database differ.
func (t Tree) WriteText(w io.Writer, width int) error {
	out := bufio.NewWriter(w)
	began := t.Began()
	tenant, same := t.tenant()
	fmt.Fprintf(out, "correlation  %s\n", t.CorrelationID)
	if same {
		fmt.Fprintf(out, "tenant       %s\n", tenant)
	}
	fmt.Fprintf(out, "began        %s\n", began.UTC().Format("2006-01-02 15:04:05.000Z"))
	fmt.Fprintf(out, "             %s in %s, %s\n",
		text.Count(len(t.Nodes), "event"), duration(t.Ended().Sub(began)), text.Count(t.Failures(), "dead letter"))
	if t.Truncated {
		fmt.Fprintf(out, "             incomplete: these are the oldest events\n")
	}
	var more []bool // by depth: whether further siblings follow
	for i, n := range t.Nodes {
		more = append(more[:n.Depth], !n.Last)
		if n.Depth == 0 {
			fmt.Fprintln(out)
		}
		e := n.Event
		what := fmt.Sprintf("%s  %s/%s v%d", text.Printable(e.Type), text.Printable(e.AggregateType), e.AggregateID, e.AggregateVersion)
		if room := width - timeWidth - utf8.RuneCountInString(branch(more)) - len("  ") - len(e.ID.String()); width > 0 && utf8.RuneCountInString(what) > room {
			what = text.Cut(text.Printable(e.Type), max(room, 8))
		}
		fmt.Fprintf(out, "%*s  %s%s  %s\n", timeWidth-2, offset(e.CreatedAt, began), branch(more), what, e.ID)
		parent := i+1 < len(t.Nodes) && t.Nodes[i+1].Parent == i
		margin := under(more, parent)
		for _, detail := range n.details(!same) {
			lines := []string{detail}
			if width > 0 {
				lines = text.Wrap(detail, max(width-timeWidth-utf8.RuneCountInString(margin)-2, 20))
			}
			for i, line := range lines {
				if i > 0 {
					line = "  " + line
				}
				fmt.Fprintf(out, "%*s%s%s\n", timeWidth, "", margin, line)
			}
		}
	}
	return out.Flush()
}

func (n Node) details(withTenant bool) []string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	if withTenant {
		add("tenant %s", n.Event.TenantID)
	}
	switch n.Cause {
	case CauseMissing:
		add("? its cause %s is not in this trace", n.Event.CausationID.UUID)
	case CauseCircular:
		add("? its cause %s is also its effect: the causation_ids form a cycle", n.Event.CausationID.UUID)
	case CauseNone, CauseKnown:
	}
	if !n.Stored {
		add("? it is not in the store")
	}
	for _, h := range n.Handled {
		add("✓ %s after %s", text.Printable(h.Handler), duration(h.At.Sub(n.Event.CreatedAt)))
	}
	for _, f := range n.Failures {
		handler := text.Printable(f.Handler)
		if handler != "" {
			handler += " "
		}
		what := text.Count(f.Attempts, "attempt")
		if f.Replays > 0 {
			what += ", " + text.Count(f.Replays, "replay")
		}
		mark, where := "✗", "dead letter"
		if f.State != deadletter.Waiting {
			mark, where = "–", string(f.State)+" letter"
		}
		add("%s %s(%s, %s %s): %s", mark, handler, what, where, text.Printable(f.LetterID), text.Printable(f.Reason))
	}
	return lines
}

// branch draws the line to a node. Its depth is one less than the length of more.
func branch(more []bool) string {
	if len(more) == 1 {
		return ""
	}
	end := "└─ "
	if more[len(more)-1] {
		end = "├─ "
	}
	return trunks(more[:len(more)-1]) + end
}

// under draws the lines beside the details of a node.
func under(more []bool, parent bool) string {
	line := trunks(more)
	if parent {
		return line + "│  "
	}
	return line + "   "
}

// trunks draws the vertical lines of all levels except the roots, which are not connected.
func trunks(more []bool) string {
	var b strings.Builder
	levels := more[1:]
	if hidden := len(levels) - maxIndent; hidden > 0 {
		fmt.Fprintf(&b, "⋯%d⋯ ", hidden)
		levels = levels[hidden:]
	}
	for _, further := range levels {
		if further {
			b.WriteString("│  ")
		} else {
			b.WriteString("   ")
		}
	}
	return b.String()
}

func (t Tree) tenant() (tenant uuid.UUID, same bool) {
	for i, n := range t.Nodes {
		if i > 0 && n.Event.TenantID != tenant {
			return uuid.Nil, false
		}
		tenant = n.Event.TenantID
	}
	return tenant, true
}

type treeJSON struct {
	CorrelationID uuid.UUID  `json:"correlation_id"`
	BeganAt       string     `json:"began_at"`
	DurationMS    float64    `json:"duration_ms"`
	DeadLetters   int        `json:"dead_letters"`
	Truncated     bool       `json:"truncated"`
	Events        []nodeJSON `json:"events"`
}

type nodeJSON struct {
	EventID       uuid.UUID     `json:"event_id"`
	EventType     string        `json:"event_type"`
	AggregateType string        `json:"aggregate_type"`
	AggregateID   uuid.UUID     `json:"aggregate_id"`
	Version       int           `json:"aggregate_version"`
	TenantID      uuid.UUID     `json:"tenant_id"`
	CausationID   *uuid.UUID    `json:"causation_id,omitempty"`
	Cause         Cause         `json:"cause"`
	Depth         int           `json:"depth"`
	CreatedAt     string        `json:"created_at"` // a [time.Time] of a year above 9999 is no JSON
	OffsetMS      float64       `json:"offset_ms"`
	Stored        bool          `json:"stored"`
	Handled       []handledJSON `json:"handled"`
	Failures      []failureJSON `json:"failures"`
}

type handledJSON struct {
	Handler   string    `json:"handler"`
	HandledAt time.Time `json:"handled_at"`
	AfterMS   float64   `json:"after_ms"`
}

type failureJSON struct {
	LetterID    string    `json:"letter_id"`
	Handler     string    `json:"handler,omitempty"`
	Reason      string    `json:"reason"`
	Attempts    int       `json:"attempts"`
	Replays     int       `json:"replays"`
	State       string    `json:"state"`
	FirstFailed time.Time `json:"first_failed_at,omitzero"`
	LastFailed  time.Time `json:"last_failed_at,omitzero"`
}

// WriteJSON writes the tree as one JSON object with a list of events, each after its cause, with its depth.
func (t Tree) WriteJSON(w io.Writer) error {
	began := t.Began()
	tree := treeJSON{
		CorrelationID: t.CorrelationID, BeganAt: events.FormatTime(began, time.RFC3339Nano), DurationMS: milliseconds(t.Ended().Sub(began)),
		DeadLetters: t.Failures(), Truncated: t.Truncated, Events: make([]nodeJSON, len(t.Nodes)),
	}
	for i, n := range t.Nodes {
		e := n.Event
		node := nodeJSON{
			EventID: e.ID, EventType: e.Type, AggregateType: e.AggregateType, AggregateID: e.AggregateID,
			Version: e.AggregateVersion, TenantID: e.TenantID, Cause: n.Cause, Depth: n.Depth, CreatedAt: events.FormatTime(e.CreatedAt, time.RFC3339Nano),
			OffsetMS: milliseconds(e.CreatedAt.Sub(began)), Stored: n.Stored,
			Handled: make([]handledJSON, len(n.Handled)), Failures: make([]failureJSON, len(n.Failures)),
		}
		if e.CausationID.Valid {
			node.CausationID = &e.CausationID.UUID
		}
		for i, h := range n.Handled {
			node.Handled[i] = handledJSON{Handler: h.Handler, HandledAt: h.At, AfterMS: milliseconds(h.At.Sub(e.CreatedAt))}
		}
		for i, f := range n.Failures {
			node.Failures[i] = failureJSON{
				LetterID: f.LetterID, Handler: f.Handler, Reason: f.Reason, Attempts: f.Attempts, Replays: f.Replays,
				State:       string(f.State),
				FirstFailed: f.FirstFailed, LastFailed: f.LastFailed,
			}
		}
		tree.Events[i] = node
	}
	text, err := json.Marshal(tree)
	if err == nil {
		_, err = fmt.Fprintf(w, "%s\n", rawjson.Printable(text))
	}
	return err
}

// WriteDOT writes the tree as a graph for Graphviz.
func (t Tree) WriteDOT(w io.Writer) error {
	out := bufio.NewWriter(w)
	began := t.Began()
	fmt.Fprintf(out, "digraph %q {\n", t.CorrelationID)
	fmt.Fprintln(out, "  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n  edge [fontname=\"sans-serif\"];")
	ids := make(map[uuid.UUID]int, len(t.Nodes))
	for i, n := range t.Nodes {
		ids[n.Event.ID] = i
	}
	for i, n := range t.Nodes {
		e := n.Event
		label := []string{
			text.Printable(e.Type), fmt.Sprintf("%s/%s v%d", text.Printable(e.AggregateType), e.AggregateID, e.AggregateVersion),
			e.ID.String(), offset(e.CreatedAt, began),
		}
		color := "black"
		if slices.ContainsFunc(n.Failures, func(f Failure) bool { return f.State == deadletter.Waiting }) {
			color = "red"
		}
		fmt.Fprintf(out, "  n%d [label=%s, color=%s];\n", i, quoted(append(label, n.details(false)...)), color)
		switch n.Cause {
		case CauseKnown:
			took := duration(e.CreatedAt.Sub(t.Nodes[n.Parent].Event.CreatedAt))
			fmt.Fprintf(out, "  n%d -> n%d [label=%q];\n", n.Parent, i, took)
		case CauseCircular:
			fmt.Fprintf(out, "  n%d -> n%d [style=dashed, constraint=false];\n", ids[e.CausationID.UUID], i)
		case CauseNone, CauseMissing:
		}
	}
	fmt.Fprintln(out, "}")
	return out.Flush()
}

// quoted returns a label of several lines for DOT.
func quoted(lines []string) string {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	var b strings.Builder
	for _, line := range lines {
		b.WriteString(escape.Replace(line) + `\l`)
	}
	return `"` + b.String() + `"`
}

func offset(at, began time.Time) string {
	if at.IsZero() {
		return "?"
	}
	if !isKnown(at) {
		return events.FormatTime(at, time.DateOnly)
	}
	return "+" + duration(at.Sub(began))
}

// duration formats a duration in milliseconds, above a minute in seconds.
func duration(d time.Duration) string {
	switch {
	case d.Abs() >= time.Minute:
		return d.Round(time.Second).String()
	case d.Abs() >= time.Second:
		return d.Round(time.Millisecond).String()
	default:
		return fmt.Sprintf("%dms", d.Round(time.Millisecond).Milliseconds())
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

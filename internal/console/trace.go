package console

import (
	"cmp"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/causation"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/text"
)

// maxDrawn is how many events of a trace are shown.
const maxDrawn = 400

type tracePage struct {
	// Tree contains the events that are shown.
	Tree  causation.Tree
	Drawn drawing
	// Folded is the number of the other events, and FoldedUrgent of those among them that failed or are not handled.
	Folded, FoldedUrgent int
	Tenant               uuid.UUID
	Took                 time.Duration
	Fails                int
}

func (c *Console) trace(w http.ResponseWriter, r *http.Request) error {
	id, err := uuidIn(r, "id")
	if err != nil {
		return err
	}
	tree, err := causation.Load(r.Context(), c.store, id, c.letters)
	if err != nil {
		return err
	}
	shown, folded, urgent := fold(tree, maxDrawn)
	drawn := draw(shown)
	for i := range drawn.Rows {
		drawn.Rows[i].Before = folded[i]
	}
	drawn.After = folded[len(drawn.Rows)]
	return c.render(w, r, http.StatusOK, "trace", "Trace", tracePage{
		Tree: shown, Drawn: drawn, Folded: len(tree.Nodes) - len(shown.Nodes), FoldedUrgent: urgent,
		Tenant: tree.Nodes[0].Event.TenantID, Took: tree.Ended().Sub(tree.Began()), Fails: tree.Failures(),
	})
}

// isUrgent returns whether an event failed, or is not handled by any handler.
func isUrgent(n causation.Node) bool { return len(n.Failures) > 0 || len(n.Handled) == 0 }

// causeFolded is the cause of an event whose cause is not shown.
const causeFolded causation.Cause = "folded"

// fold returns the tree with at most n events: first those that failed, then those that are not handled, then the causes of
// both, then the others, each in their order. folded are, for each event that is shown, how many before it are not, and last
// those at the end. urgent is the number of events that are not shown though they failed or are not handled.
func fold(t causation.Tree, n int) (shown causation.Tree, folded []int, urgent int) {
	chosen, free := make([]bool, len(t.Nodes)), n
	choose := func(i int) {
		if !chosen[i] && free > 0 {
			chosen[i] = true
			free--
		}
	}
	for i, node := range t.Nodes {
		if len(node.Failures) > 0 {
			choose(i)
		}
	}
	for i, node := range t.Nodes {
		if isUrgent(node) {
			choose(i)
		}
	}
	for i := len(t.Nodes) - 1; i >= 0; i-- { // causes come before their effects
		if chosen[i] && t.Nodes[i].Parent >= 0 {
			choose(t.Nodes[i].Parent)
		}
	}
	for i := range t.Nodes {
		choose(i)
	}
	shown, since := t, 0
	shown.Nodes = nil
	index := make([]int, len(t.Nodes))
	for i, node := range t.Nodes {
		if !chosen[i] {
			if since++; isUrgent(node) {
				urgent++
			}
			continue
		}
		index[i] = len(shown.Nodes)
		switch {
		case node.Parent >= 0 && chosen[node.Parent]:
			node.Parent = index[node.Parent]
		case node.Parent >= 0:
			node.Parent, node.Cause = -1, causeFolded
		}
		shown.Nodes, folded, since = append(shown.Nodes, node), append(folded, since), 0
	}
	return shown, append(folded, since), urgent
}

type drawing struct {
	Width, Height, Axis int
	// Compressed is set if the scale is logarithmic.
	Compressed bool
	Ticks      []tick
	Rows       []drawnEvent
	// After is the number of events after the last row that are not shown.
	After int
}

type tick struct {
	X     float64
	Label string
}

type drawnEvent struct {
	causation.Node

	Y, Middle, TextY int
	LabelX           int
	// At is the position of the event on the axis, and From the line from its cause.
	At   float64
	From string
	// Spans are its handlings and failures.
	Spans []span
	// Failed is set if it has a waiting dead letter.
	Failed bool
	Offset string
	// Label is the type, cut if it would overlap the axis.
	Label string
	// Before is the number of events before it that are not shown.
	Before int
}

// Depth8 is the indentation in the table.
func (e drawnEvent) Depth8() int { return min(e.Depth, maxIndent) }

// label shows only the label of the span that ends last, as labels would overlap.
func (e drawnEvent) label() {
	if len(e.Spans) == 0 {
		return
	}
	last := 0
	for i := range e.Spans {
		e.Spans[i].Title = e.Spans[i].Label
	}
	for i, s := range e.Spans {
		if s.End > e.Spans[last].End || s.Bad && !e.Spans[last].Bad {
			last = i
		}
	}
	e.Spans[last].Show = true
	if others := len(e.Spans) - 1; others > 0 {
		e.Spans[last].Label += fmt.Sprintf(" +%d", others)
	}
	e.Spans[last].Label = text.Cut(e.Spans[last].Label, max(minLabel, int(drawWidth-e.Spans[last].TextX)/noteWidth))
}

type span struct {
	X, End float64
	// Label is cut if it would be too long. Title is the whole one.
	Label, Title string
	TextX        float64
	TextY        int
	// Show is set if the label is shown.
	Show bool
	Bad  bool
	Href string
}

// Sizes of a drawing.
const (
	drawWidth  = 1100
	charWidth  = 8 // of a type
	noteWidth  = 6 // of a character beside a span
	labelWidth = 330
	rowHeight  = 36
	axisHeight = 34
	indent     = 16
	plotRight  = 150
	minLabel   = 12 // characters
	maxIndent  = 8
)

func draw(t causation.Tree) drawing {
	scale := newScale(t)
	d := drawing{Width: drawWidth, Height: axisHeight + rowHeight*len(t.Nodes) + 8, Axis: axisHeight, Compressed: scale.compressed}
	for _, m := range scale.marks {
		d.Ticks = append(d.Ticks, tick{X: scale.x(m), Label: offset(m.Sub(scale.moments[0]))})
	}
	for i, n := range t.Nodes {
		row := drawnEvent{
			Node: n, Y: axisHeight + i*rowHeight, Middle: axisHeight + i*rowHeight + rowHeight/2,
			LabelX: 8 + indent*min(n.Depth, maxIndent), At: scale.x(n.Event.CreatedAt),
			Offset: offset(n.Event.CreatedAt.Sub(scale.moments[0])), TextY: axisHeight + i*rowHeight + rowHeight/2 + 4,
		}
		row.Label = text.Cut(visible(n.Event.Type), (labelWidth-row.LabelX-32)/charWidth)
		if n.Parent >= 0 {
			cause := d.Rows[n.Parent]
			row.From = fmt.Sprintf("M%.1f %dV%dQ%.1f %d %.1f %dH%.1f", cause.At, cause.Middle+7, row.Middle-8, cause.At, row.Middle,
				cause.At+8, row.Middle, math.Max(cause.At+8, row.At-8))
		}
		for _, h := range n.Handled {
			row.Spans = append(row.Spans, spanTo(scale, row, h.At, h.Handler, false))
		}
		for _, f := range n.Failures {
			failed := spanTo(scale, row, f.LastFailed, cmp.Or(f.Handler, "no handler"), true)
			failed.Href = letterPath(f.LetterID)
			if f.State == deadletter.Waiting {
				row.Failed = true
			} else {
				failed.Label += ", " + string(f.State)
			}
			row.Spans = append(row.Spans, failed)
		}
		if row.Failed { // the end of its line may be off the screen
			row.Label = "✕ " + row.Label
		}
		row.label()
		d.Rows = append(d.Rows, row)
	}
	return d
}

func spanTo(s scale, row drawnEvent, at time.Time, label string, bad bool) span {
	to := row.At
	if !at.IsZero() {
		to = max(row.At, s.x(at))
	}
	return span{X: row.At, End: max(row.At+14, to), Label: label, TextX: max(row.At+14, to) + 10, TextY: row.TextY, Bad: bad}
}

func offset(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	return "+" + took(d)
}

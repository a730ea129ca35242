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
)

const maxDrawn = 400

type tracePage struct {
	Tree   causation.Tree
	Drawn  drawing
	Hidden int
	Tenant uuid.UUID
	Took   time.Duration
	Fails  int
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
	shown := tree
	shown.Nodes = tree.Nodes[:min(len(tree.Nodes), maxDrawn)]
	return c.render(w, r, http.StatusOK, "trace", "Trace", tracePage{
		Tree: shown, Drawn: draw(shown), Hidden: len(tree.Nodes) - len(shown.Nodes), Tenant: tree.Nodes[0].Event.TenantID,
		Took: tree.Ended().Sub(tree.Began()), Fails: tree.Failures(),
	})
}

type drawing struct {
	Width, Height, Axis int
	// Compressed is set if the scale is logarithmic.
	Compressed bool
	Ticks      []tick
	Rows       []drawnEvent
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
}

// Depth8 is the indentation in the table.
func (e drawnEvent) Depth8() int { return min(e.Depth, maxIndent) }

// label shows only the label of the span that ends last, as labels would overlap.
func (e drawnEvent) label() {
	if len(e.Spans) == 0 {
		return
	}
	last := 0
	for i, s := range e.Spans {
		if s.End > e.Spans[last].End || s.Bad && !e.Spans[last].Bad {
			last = i
		}
	}
	e.Spans[last].Show = true
	if others := len(e.Spans) - 1; others > 0 {
		e.Spans[last].Label += fmt.Sprintf(" +%d", others)
	}
}

type span struct {
	X, End float64
	Label  string
	TextX  float64
	TextY  int
	// Show is set if the label is shown.
	Show bool
	Bad  bool
	Href string
}

// Sizes of a drawing.
const (
	drawWidth  = 1100
	labelWidth = 330
	rowHeight  = 36
	axisHeight = 34
	indent     = 16
	plotRight  = 150
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

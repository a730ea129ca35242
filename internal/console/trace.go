package console

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/causation"
)

// maxDrawn is how many events a drawing has.
const maxDrawn = 400

// tracePage is the body of a chain's page.
type tracePage struct {
	Tree   causation.Tree
	Drawn  drawing
	Hidden int
	Tenant uuid.UUID
	Took   time.Duration
	Fails  int
}

func (c *Console) trace(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	id, ok := c.uuidIn(w, r, "id")
	if !ok {
		return
	}
	tree, err := causation.Load(ctx, c.store, c.letters, id)
	if err != nil {
		c.fail(w, r, err)
		return
	}
	shown := tree
	shown.Nodes = tree.Nodes[:min(len(tree.Nodes), maxDrawn)]
	c.render(w, r, http.StatusOK, "trace", "Trace", tracePage{
		Tree: shown, Drawn: draw(shown), Hidden: len(tree.Nodes) - len(shown.Nodes), Tenant: tree.Nodes[0].Event.TenantID,
		Took: tree.Ended().Sub(tree.Began()), Fails: tree.Failures(),
	})
}

// drawing is a tree of causes over a time axis.
type drawing struct {
	Width, Height, Axis int
	// Compressed tells that long pauses are drawn shorter than they were.
	Compressed bool
	Ticks      []tick
	Rows       []drawnEvent
}

type tick struct {
	X     float64
	Label string
}

// drawnEvent is a row of a drawing.
type drawnEvent struct {
	causation.Node

	Y, Middle int
	LabelX    int
	// At is where the event is on the axis, and From the line from its cause.
	At   float64
	From string
	// Spans are its handlings and failures.
	Spans []span
	// Failed tells that it lies in the dead letters.
	Failed bool
	Offset string
}

// span is from an event to what became of it.
type span struct {
	X, Width float64
	Label    string
	Bad      bool
	Href     string
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

// draw places a tree's events.
func draw(t causation.Tree) drawing {
	scale := newScale(t)
	d := drawing{Width: drawWidth, Height: axisHeight + rowHeight*len(t.Nodes) + 8, Axis: axisHeight, Compressed: scale.compressed}
	for _, m := range scale.marks {
		d.Ticks = append(d.Ticks, tick{X: scale.x(m), Label: offset(m.Sub(scale.moments[0]))})
	}
	for i, n := range t.Nodes {
		row := drawnEvent{
			Node: n, Y: axisHeight + i*rowHeight, Middle: axisHeight + i*rowHeight + rowHeight/2,
			LabelX: 8 + indent*min(n.Depth, maxIndent), At: scale.x(n.Event.CreatedAt), Failed: len(n.Failures) > 0,
			Offset: offset(n.Event.CreatedAt.Sub(scale.moments[0])),
		}
		if n.Parent >= 0 {
			cause := d.Rows[n.Parent]
			row.From = fmt.Sprintf("M%.1f %dV%dQ%.1f %d %.1f %dH%.1f", cause.At, cause.Middle+7, row.Middle-8, cause.At, row.Middle,
				cause.At+8, row.Middle, math.Max(cause.At+8, row.At-8))
		}
		for _, h := range n.Handled {
			row.Spans = append(row.Spans, spanTo(scale, row.At, h.At, h.Handler, false, ""))
		}
		for _, f := range n.Failures {
			row.Spans = append(row.Spans, spanTo(scale, row.At, f.LastFailed, f.Handler, true, f.LetterID))
		}
		d.Rows = append(d.Rows, row)
	}
	return d
}

func spanTo(s scale, from float64, at time.Time, label string, bad bool, letter string) span {
	to := from
	if !at.IsZero() {
		to = s.x(at)
	}
	sp := span{X: math.Min(from, to), Width: math.Max(3, math.Abs(to-from)), Label: label, Bad: bad}
	if letter != "" {
		sp.Href = "/dead-letters/letter/" + letter
	}
	return sp
}

func offset(d time.Duration) string { return "+" + took(d) }

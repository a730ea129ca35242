package console

import (
	"math"
	"slices"
	"time"

	"github.com/healz/worker/internal/causation"
)

// scale places moments on the axis of a drawing. Where one pause would leave no room for the rest, pauses are drawn by
// their logarithm: order is kept, and what is close together stays apart.
type scale struct {
	moments    []time.Time // in order, different
	places     []float64   // from 0 to 1
	marks      []time.Time
	compressed bool
}

const (
	// grain is the pause that counts as one where pauses are drawn by their logarithm.
	grain = 5 * time.Millisecond
	// crowd is how many times longer than the median pause the whole may be to be drawn as it was.
	crowd = 40
	// mostMarks is how many labels fit on an axis, each of markWidth.
	markWidth = 0.09
)

func newScale(t causation.Tree) scale {
	var s scale
	for _, n := range t.Nodes {
		s.moments = append(s.moments, n.Event.CreatedAt)
		for _, h := range n.Handled {
			s.moments = append(s.moments, h.At)
		}
		for _, f := range n.Failures {
			s.moments = append(s.moments, f.LastFailed)
		}
	}
	s.moments = slices.DeleteFunc(s.moments, time.Time.IsZero)
	if len(s.moments) == 0 {
		s.moments = []time.Time{{}}
	}
	slices.SortFunc(s.moments, time.Time.Compare)
	s.moments = slices.CompactFunc(s.moments, time.Time.Equal)
	var pauses []time.Duration
	for i := 1; i < len(s.moments); i++ {
		pauses = append(pauses, s.moments[i].Sub(s.moments[i-1]))
	}
	whole := s.moments[len(s.moments)-1].Sub(s.moments[0])
	if len(pauses) > 0 {
		sorted := slices.Sorted(slices.Values(pauses))
		s.compressed = whole > crowd*max(sorted[len(sorted)/2], time.Microsecond)
	}
	s.places = make([]float64, len(s.moments))
	for i, p := range pauses {
		length := float64(p)
		if s.compressed {
			length = 0.3 + math.Log1p(float64(p)/float64(grain))
		}
		s.places[i+1] = s.places[i] + length
	}
	if end := s.places[len(s.places)-1]; end > 0 {
		for i := range s.places {
			s.places[i] /= end
		}
	}
	last := -1.0
	for i, m := range s.moments {
		if s.places[i]-last >= markWidth {
			s.marks, last = append(s.marks, m), s.places[i]
		}
	}
	return s
}

// x is where a moment is in the drawing.
func (s scale) x(at time.Time) float64 {
	i, _ := slices.BinarySearchFunc(s.moments, at, time.Time.Compare)
	place := s.places[min(i, len(s.places)-1)]
	return labelWidth + 20 + place*(drawWidth-labelWidth-20-plotRight)
}

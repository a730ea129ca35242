package console

import (
	"math"
	"slices"
	"time"

	"github.com/healz/worker/internal/causation"
)

// scale maps times to the axis of a drawing. If one pause would take almost all the space, the scale is logarithmic: it keeps
// the order, and separates times that are close together.
type scale struct {
	moments    []time.Time // sorted, without duplicates
	positions  []float64   // from 0 to 1
	marks      []time.Time
	compressed bool
}

const (
	// grain is the unit of pauses on a logarithmic scale.
	grain = 5 * time.Millisecond
	// linearLimit is the ratio of the total time to the median pause from which on the scale is logarithmic.
	linearLimit = 40
	// markWidth is the minimum distance of two labels.
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
		s.compressed = whole > linearLimit*max(sorted[len(sorted)/2], time.Microsecond)
	}
	s.positions = make([]float64, len(s.moments))
	for i, p := range pauses {
		length := float64(p)
		if s.compressed {
			length = 0.3 + math.Log1p(float64(p)/float64(grain))
		}
		s.positions[i+1] = s.positions[i] + length
	}
	if end := s.positions[len(s.positions)-1]; end > 0 {
		for i := range s.positions {
			s.positions[i] /= end
		}
	}
	last := -1.0
	for i, m := range s.moments {
		if s.positions[i]-last >= markWidth {
			s.marks, last = append(s.marks, m), s.positions[i]
		}
	}
	return s
}

func (s scale) x(at time.Time) float64 {
	i, _ := slices.BinarySearchFunc(s.moments, at, time.Time.Compare)
	position := s.positions[min(i, len(s.positions)-1)]
	return labelWidth + 20 + position*(drawWidth-labelWidth-20-plotRight)
}

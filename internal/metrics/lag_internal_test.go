package metrics

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/store"
)

func TestLag(t *testing.T) {
	t.Parallel()
	at := func(id int64) store.Position { return store.Position{Transaction: 7, ID: id} }
	var l lag
	now := time.Unix(1_700_000_000, 0)
	for i, step := range []struct {
		after               int64 // in seconds, as lag
		events              int
		position, last, lag int64
	}{
		{0, 0, 10, 10, 0},
		{5, 5, 10, 15, 0},  // just come
		{5, 8, 10, 18, 5},  // nothing is published, more have come
		{5, 6, 14, 20, 10}, // the event at 15 still waits
		{5, 5, 15, 20, 10}, // the one at 16 has been there for 10 s at least
		{5, 5, 15, 20, 15}, // stuck
		{5, 40, 20, 60, 0}, // all that was seen before is published
		{60, 40, 20, 60, 60},
		{5, 0, 60, 60, 0},
		{5, 1, 60, 61, 0},
	} {
		now = now.Add(time.Duration(step.after) * time.Second)
		got := l.of(store.Backlog{Events: step.events, Position: at(step.position), Last: at(step.last)}, now)
		require.Equal(t, time.Duration(step.lag)*time.Second, got, "step %d", i)
	}
}

// A long outage needs little memory, and the lag goes on growing.
func TestLagOfALongOutage(t *testing.T) {
	t.Parallel()
	var l lag
	began := time.Unix(1_700_000_000, 0)
	for i := range int64(100_000) {
		passed := time.Duration(i) * pollInterval
		require.Equal(t, passed, l.of(store.Backlog{Events: 1, Last: store.Position{ID: i + 1}}, began.Add(passed)))
		require.LessOrEqual(t, len(l.seen), maxSightings)
	}
}

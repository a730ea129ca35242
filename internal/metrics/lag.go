package metrics

import (
	"time"

	"github.com/healz/worker/internal/store"
)

// maxSightings bounds the memory of a lag: about an hour at full resolution. Beyond it every second one is dropped.
const maxSightings = 720

// lag finds out for how long the first event that is not published has been there. Its created_at cannot tell: it is the
// time of a producer's clock, and of an import it may be years ago. The lag is exact to the interval of the polls, and
// begins anew with the worker.
type lag struct{ seen []sighting }

// sighting is when an event was seen that was the last one then.
type sighting struct {
	at   time.Time
	last store.Position
}

// of is the lag with a backlog that is read at a time.
func (l *lag) of(b store.Backlog, now time.Time) time.Duration {
	for len(l.seen) > 0 && !l.seen[0].last.IsBehind(b.Position) { // it is published
		l.seen = l.seen[1:]
	}
	if b.Events == 0 {
		l.seen = nil
		return 0
	}
	if n := len(l.seen); n == 0 || b.Last.IsBehind(l.seen[n-1].last) {
		l.seen = append(l.seen, sighting{now, b.Last})
	}
	if len(l.seen) > maxSightings {
		kept := l.seen[:0:0]
		for i := 0; i < len(l.seen); i += 2 {
			kept = append(kept, l.seen[i])
		}
		l.seen = kept
	}
	return now.Sub(l.seen[0].at)
}

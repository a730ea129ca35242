package metrics

import (
	"sync"
	"time"
)

// inFlight are the messages that are received and not settled. The zero value has none. It is safe for concurrent use.
type inFlight struct {
	mu    sync.Mutex
	next  uint64
	since map[uint64]time.Time
}

// begin adds a message until its end.
func (f *inFlight) begin() (end func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.since == nil {
		f.since = map[uint64]time.Time{}
	}
	f.next++
	id := f.next
	f.since[id] = time.Now()
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.since, id)
	}
}

// state is how many there are, and for how long the oldest has been one.
func (f *inFlight) state(now time.Time) (count int, oldest time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, since := range f.since {
		oldest = max(oldest, now.Sub(since))
	}
	return len(f.since), oldest
}

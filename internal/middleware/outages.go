package middleware

import (
	"log/slog"
	"sync"
	"time"
)

// DefaultPatience is how long an operation waits for the store before that counts as lasting.
const DefaultPatience = 5 * time.Second

// Outages tracks the operations that wait for the store. A ping may succeed all the same: a right is missing, a table is
// locked, or one statement fails. It is safe for concurrent use.
type Outages struct {
	// Patience is how long an operation waits before that is an error.
	Patience time.Duration

	mu      sync.Mutex
	waits   map[*waiting]struct{}
	lasting bool // an operation has waited for longer, and some still wait
	// began is when the first of them has failed, and failures is how often they have failed together.
	began    time.Time
	failures int
}

// waiting is one operation that may wait for the store.
type waiting struct {
	of    *Outages
	began time.Time
	err   error // of the last attempt; nil if it does not wait
}

// Err is the last error of an operation that has waited for longer than the patience, nil if there is none.
func (o *Outages) Err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for w := range o.waits {
		if w.lasts() {
			return w.err
		}
	}
	return nil
}

func (o *Outages) begin() *waiting {
	if o == nil {
		o = &Outages{Patience: DefaultPatience}
	}
	return &waiting{of: o}
}

// note records the error of an attempt, and returns the level at which to log it: an outage is logged once, when it has
// lasted for longer than the patience.
func (w *waiting) note(err error) slog.Level {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	if w.err == nil {
		w.began = time.Now()
	}
	w.err = err
	if len(w.of.waits) == 0 {
		w.of.waits, w.of.began, w.of.failures = make(map[*waiting]struct{}), w.began, 0
	}
	w.of.failures++
	w.of.waits[w] = struct{}{}
	if w.of.lasting || !w.lasts() {
		return slog.LevelDebug
	}
	w.of.lasting = true
	return slog.LevelError
}

func (w *waiting) lasts() bool { return time.Since(w.began) >= w.of.Patience }

// end ends the wait. If that was the last one of an outage that was logged, it returns what to log of its end.
func (w *waiting) end() (summary []any) {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	delete(w.of.waits, w)
	w.err = nil
	if !w.of.lasting || len(w.of.waits) > 0 {
		return nil
	}
	w.of.lasting = false
	return []any{"outage", time.Since(w.of.began).Round(time.Millisecond), "failures", w.of.failures}
}

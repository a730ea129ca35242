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

// note records the error of an attempt, and returns the level at which to log it: an outage that lasts is logged once.
func (w *waiting) note(err error) slog.Level {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	if w.err == nil {
		w.began = time.Now()
	}
	w.err = err
	if w.of.waits == nil {
		w.of.waits = make(map[*waiting]struct{})
	}
	w.of.waits[w] = struct{}{}
	switch {
	case w.of.lasting:
		return slog.LevelDebug
	case w.lasts():
		w.of.lasting = true
		return slog.LevelError
	default:
		return slog.LevelWarn
	}
}

func (w *waiting) lasts() bool { return time.Since(w.began) >= w.of.Patience }

// end ends the wait, and reports whether that was the last one of an outage that lasted.
func (w *waiting) end() (over bool) {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	delete(w.of.waits, w)
	w.err = nil
	over = w.of.lasting && len(w.of.waits) == 0
	w.of.lasting = w.of.lasting && !over
	return over
}

package middleware

import (
	"sync"
	"time"
)

// DefaultPatience is how long an operation waits for the store before that counts as lasting.
const DefaultPatience = 5 * time.Second

// Outages knows which operations wait for the store. A ping may succeed all the same: a right is missing, a table is
// locked, or one statement fails. It is safe for concurrent use.
type Outages struct {
	// Patience is how long an operation waits before that is an error.
	Patience time.Duration

	mu    sync.Mutex
	waits map[*outage]struct{}
}

// outage is what one operation meets.
type outage struct {
	of    *Outages
	began time.Time
	err   error
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

func (o *Outages) begin() *outage {
	if o == nil {
		o = &Outages{Patience: DefaultPatience}
	}
	return &outage{of: o}
}

// meets notes an error, and reports whether the outage lasts.
func (w *outage) meets(err error) bool {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	if w.err == nil {
		w.began = time.Now()
	}
	w.err = err
	if w.of.waits == nil {
		w.of.waits = make(map[*outage]struct{})
	}
	w.of.waits[w] = struct{}{}
	return w.lasts()
}

func (w *outage) lasts() bool { return time.Since(w.began) >= w.of.Patience }

func (w *outage) end() {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	delete(w.of.waits, w)
	w.err = nil
}

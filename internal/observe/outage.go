package observe

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Moment is how long most parts fail before that is logged: many faults are over by then.
const Moment = time.Second

// Outage logs that a part of the worker fails: one line when it has failed for some time, and one when it works again,
// with the duration and the number of failures. Each failure is a line at the debug level. The zero value logs the first
// failure. It is safe for concurrent use.
type Outage struct {
	// After is how long the part fails before that is logged.
	After time.Duration

	mu       sync.Mutex
	began    time.Time // of the failures; zero if the part works
	failures int
	logged   bool
}

// Fails logs a failure, at the level if it is the one to be logged.
func (o *Outage) Fails(ctx context.Context, logger *slog.Logger, level slog.Level, text string, args ...any) {
	o.mu.Lock()
	if o.failures == 0 {
		o.began = time.Now()
	}
	o.failures++
	if o.logged || time.Since(o.began) < o.After {
		level = slog.LevelDebug
	} else {
		o.logged = true
	}
	o.mu.Unlock()
	logger.Log(ctx, level, text, args...) //nolint:sloglint // the callers give constants
}

// Over logs that the part works again, if it was logged that it fails.
func (o *Outage) Over(ctx context.Context, logger *slog.Logger, text string, args ...any) {
	o.mu.Lock()
	logged, began, failures := o.logged, o.began, o.failures
	o.logged, o.failures = false, 0
	o.mu.Unlock()
	if logged {
		logger.InfoContext(ctx, text, append(args, "outage", time.Since(began).Round(time.Millisecond), "failures", failures)...) //nolint:sloglint // likewise
	}
}

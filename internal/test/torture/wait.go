package torture

import (
	"context"
	"time"
)

// sleep waits, and tells whether it came to its end rather than to ctx's.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// until asks again and again whether something is so, and gives up after limit or when ctx ends.
func until(ctx context.Context, limit, interval time.Duration, so func(context.Context) bool) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for !so(ctx) {
		if !sleep(ctx, interval) {
			return false
		}
	}
	return true
}

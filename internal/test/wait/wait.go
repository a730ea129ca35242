// Package wait waits in programs that test workers from outside.
package wait

import (
	"context"
	"time"
)

// Sleep waits, and tells whether it came to its end rather than to ctx's.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Until asks again and again whether something is so, and gives up after limit or when ctx ends.
func Until(ctx context.Context, limit, interval time.Duration, so func(context.Context) bool) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for !so(ctx) {
		if !Sleep(ctx, interval) {
			return false
		}
	}
	return true
}

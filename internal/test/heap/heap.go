// Package heap measures for tests how much memory work takes. Such a test runs alone, as it measures the process.
package heap

import (
	"runtime"
	"runtime/metrics"
	"time"
)

// Metrics of the runtime that [Peak] measures.
const (
	// Live is what the last collection of garbage has left.
	Live = "/gc/heap/live:bytes"
	// All is the same with the garbage since then.
	All = "/memory/classes/heap/objects:bytes"
)

// Peak measures how much a metric grows, at its peak, until it is told to end.
func Peak(metric string) (end func() int) {
	read := func() int {
		sample := []metrics.Sample{{Name: metric}}
		metrics.Read(sample)
		return int(sample[0].Value.Uint64())
	}
	runtime.GC()
	began, peak := read(), 0
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			peak = max(peak, read()-began)
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return func() int { close(stop); <-done; return peak }
}

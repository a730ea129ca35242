package clinic

import (
	"context"
	"fmt"
	"sync"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

// chaos makes a handler fail on demand, for demonstrations and tests: as often as "fail_times" in an event's metadata
// says, before it is let through. It counts in memory, so a restart begins anew.
func chaos[T any](handle func(context.Context, events.Event, T) ([]events.Event, error)) func(context.Context, events.Event, T) ([]events.Event, error) {
	var mu sync.Mutex
	failed := map[uuid.UUID]int{}
	return func(ctx context.Context, e events.Event, data T) ([]events.Event, error) {
		var metadata struct {
			FailTimes int `json:"fail_times"`
		}
		if err := e.DecodeMetadata(&metadata); err != nil {
			return nil, err
		}
		mu.Lock()
		n := failed[e.ID] + 1
		if n <= metadata.FailTimes {
			failed[e.ID] = n
			mu.Unlock()
			return nil, fmt.Errorf("chaos: failure %d of %d", n, metadata.FailTimes)
		}
		delete(failed, e.ID)
		mu.Unlock()
		return handle(ctx, e, data)
	}
}

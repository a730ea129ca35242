package handlers

import (
	"context"
	"fmt"
	"sync"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

// FailOnDemand makes the handlers registered so far fail on demand, for demonstrations and tests: each fails as often as
// "fail_times" in an event's metadata says, before it is let through. The counts are in memory, so that a restart begins
// anew.
func FailOnDemand(reg *Registry) {
	for i, h := range reg.handlers {
		reg.handlers[i].call = failOnDemand(h.call)
	}
}

func failOnDemand(handle func(context.Context, events.Event) ([]events.Event, error)) func(context.Context, events.Event) ([]events.Event, error) {
	var mu sync.Mutex
	failed := map[uuid.UUID]int{}
	return func(ctx context.Context, e events.Event) ([]events.Event, error) {
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
		return handle(ctx, e)
	}
}

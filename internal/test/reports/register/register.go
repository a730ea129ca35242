// Package register takes the place of the worker's own list of handlers in the program that package reports builds: its
// handlers fail, retry, take long or hang on demand.
package register

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
)

const (
	// slow is how long the slow handler takes: longer than the alert on slow handlers allows.
	slow = 11 * time.Second
	// checkInterval is how often the stuck handler looks whether it may end.
	checkInterval = 100 * time.Millisecond
)

var (
	errFlaky  = errors.New("fails for now")
	errBroken = errors.New("broken")
)

// Options are what registrations depend on.
type Options struct {
	Streams events.Streams
	Chaos   bool
}

// data is what the events say.
type data struct {
	// Fails is how many attempts of the flaky handler fail.
	Fails int `json:"fails"`
}

// All registers the handlers, one for each event type.
func All(reg *handlers.Registry, _ Options) {
	handlers.On(reg, "Fine", "fine", func(context.Context, events.Event, data) ([]events.Event, error) { return nil, nil })
	handlers.On(reg, "Flaky", "flaky", flaky())
	handlers.On(reg, "Bad", "bad", bad)
	handlers.On(reg, "Slow", "slow", func(ctx context.Context, _ events.Event, _ data) ([]events.Event, error) {
		return nil, pause(ctx, slow)
	})
	handlers.On(reg, "Stuck", "stuck", stuck)
}

// Aggregates are none.
func Aggregates() []func() events.Stateful { return nil }

// flaky fails as often as an event says.
func flaky() func(context.Context, events.Event, data) ([]events.Event, error) {
	var mu sync.Mutex
	failed := map[uuid.UUID]int{}
	return func(_ context.Context, e events.Event, d data) ([]events.Event, error) {
		mu.Lock()
		defer mu.Unlock()
		if failed[e.ID] < d.Fails {
			failed[e.ID]++
			return nil, errFlaky
		}
		return nil, nil
	}
}

// bad fails while there is a file of the name broken in the working directory.
func bad(context.Context, events.Event, data) ([]events.Event, error) {
	if exists("broken") {
		return nil, errBroken
	}
	return nil, nil
}

// stuck does not return while there is a file of the name stuck in the working directory.
func stuck(ctx context.Context, _ events.Event, _ data) ([]events.Event, error) {
	for exists("stuck") {
		if err := pause(ctx, checkInterval); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

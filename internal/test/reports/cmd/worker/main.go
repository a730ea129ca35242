// Command worker is the worker that package reports judges: its handlers fail, retry, take long or hang on demand.
package main

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker"
	"github.com/healz/worker/service"
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

// data is what the events say.
type data struct {
	// Fails is how many attempts of the flaky handler fail.
	Fails int `json:"fails"`
}

func main() { service.Main(register) }

// register registers the handlers, one for each event type.
func register(app *worker.App) {
	worker.On(app, "Fine", "fine", func(context.Context, worker.Event, data) ([]worker.Event, error) { return nil, nil })
	worker.On(app, "Flaky", "flaky", flaky())
	worker.On(app, "Bad", "bad", bad)
	worker.On(app, "Slow", "slow", func(ctx context.Context, _ worker.Event, _ data) ([]worker.Event, error) {
		return nil, pause(ctx, slow)
	})
	worker.On(app, "Stuck", "stuck", stuck)
}

// flaky fails as often as an event says.
func flaky() func(context.Context, worker.Event, data) ([]worker.Event, error) {
	var mu sync.Mutex
	failed := map[uuid.UUID]int{}
	return func(_ context.Context, e worker.Event, d data) ([]worker.Event, error) {
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
func bad(context.Context, worker.Event, data) ([]worker.Event, error) {
	if exists("broken") {
		return nil, errBroken
	}
	return nil, nil
}

// stuck does not return while there is a file of the name stuck in the working directory.
func stuck(ctx context.Context, _ worker.Event, _ data) ([]worker.Event, error) {
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

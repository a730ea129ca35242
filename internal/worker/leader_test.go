package worker_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/metrics"
	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/worker"
)

// On every combination of store and bus one of two workers leads, and a replay runs its handler once.
func TestOneOfTwoWorkersLeads(t *testing.T) {
	t.Parallel()
	for name, create := range map[string]func(*worker.Settings){
		"postgres":            func(s *worker.Settings) { s.DatabaseURL = testservers.Postgres(t) },
		"sqlite":              func(s *worker.Settings) { s.SQLitePath = filepath.Join(t.TempDir(), "test.db") },
		"postgres and broker": func(s *worker.Settings) { s.DatabaseURL, s.AMQP.URL = testservers.Postgres(t), testservers.RabbitMQ(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			settings := worker.DefaultSettings()
			create(&settings)
			settings.Tuning.RetryInitial, settings.Tuning.RetryAttempts = time.Millisecond, 1
			const letters = 20
			var mu sync.Mutex
			runs, broken := map[uuid.UUID]int{}, true
			register := func(reg *handlers.Registry) {
				handlers.On(reg, "PatientRegistered", "welcome-patient",
					func(_ context.Context, e events.Event, _ registered) ([]events.Event, error) {
						mu.Lock()
						defer mu.Unlock()
						if broken {
							return nil, handlers.Permanent(errors.New("broken"))
						}
						runs[e.ID]++
						return nil, nil
					})
			}
			one, other := metrics.New("v1"), metrics.New("v1")
			for _, m := range []*metrics.Metrics{one, other} {
				runObserved(t, settings, register, m, nil)
			}
			lead := func() int {
				n := 0
				for _, m := range []*metrics.Metrics{one, other} {
					if has(m, "worker_relay_leads 1") {
						n++
					}
				}
				return n
			}
			require.Eventually(t, func() bool { return lead() == 1 }, patience, tick)
			require.Never(t, func() bool { return lead() != 1 }, 3*time.Second, tick, "of idle workers")

			backend, err := settings.OpenStore(t.Context())
			require.NoError(t, err)
			defer func() { require.NoError(t, backend.Close()) }()
			for range letters {
				e, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, registered{secret})
				require.NoError(t, err)
				require.NoError(t, backend.Append(t.Context(), e))
			}
			table := deadletter.NewTable(backend.SQL())
			require.Eventually(t, func() bool {
				n, err := table.Count(t.Context())
				require.NoError(t, err)
				return n == letters
			}, patience, tick)
			mu.Lock()
			broken = false
			mu.Unlock()
			var last deadletter.Progress
			for last, err = range table.Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{Patience: patience}) {
				require.NoError(t, err)
			}
			require.Equal(t, letters, last.Handled)
			mu.Lock()
			defer mu.Unlock()
			require.Len(t, runs, letters)
			for id, n := range runs {
				require.Equal(t, 1, n, "runs of the handler for %s", id)
			}
			require.Equal(t, 1, lead())
		})
	}
}

// A replayed letter that is handled when its worker stops is finished: the next leader does not replay it as well.
func TestStopFinishesTheReplayInFlight(t *testing.T) {
	t.Parallel()
	settings := worker.DefaultSettings()
	settings.DatabaseURL = testservers.Postgres(t)
	settings.Tuning.RetryAttempts = 1
	broken := true
	runs, begun, finish := 0, make(chan struct{}), make(chan struct{})
	register := func(reg *handlers.Registry) {
		handlers.On(reg, "PatientRegistered", "welcome-patient",
			func(context.Context, events.Event, registered) ([]events.Event, error) {
				if broken {
					return nil, handlers.Permanent(errors.New("broken"))
				}
				runs++ // by one worker at a time, or the race detector tells
				close(begun)
				<-finish
				return nil, nil
			})
	}
	run := func() (stop func()) {
		w, closeParts, err := worker.Open(t.Context(), settings, worker.OpenOptions{
			Register: register, Migrate: true, Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		return func() {
			cancel()
			require.NoError(t, <-done)
			require.NoError(t, closeParts())
		}
	}
	stop := run()
	backend, err := settings.OpenStore(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, backend.Close()) }()
	e, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, registered{secret})
	require.NoError(t, err)
	require.NoError(t, backend.Append(t.Context(), e))
	table := deadletter.NewTable(backend.SQL())
	count := func(states ...deadletter.State) int {
		n := 0
		for _, err := range table.List(t.Context(), deadletter.Filter{States: states}) {
			require.NoError(t, err)
			n++
		}
		return n
	}
	require.Eventually(t, func() bool { return count(deadletter.Waiting) == 1 }, patience, tick)
	broken = false

	replayed := make(chan error, 1)
	go func() {
		for _, err := range table.Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{Patience: patience}) {
			if err != nil {
				replayed <- err
				return
			}
		}
		replayed <- nil
	}()
	<-begun
	defer run()()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	select {
	case <-stopped:
		require.Fail(t, "the worker did not wait for its handler")
	case <-time.After(3 * time.Second): // another worker takes a lease that is given back within half a second
	}
	close(finish)
	<-stopped
	require.NoError(t, <-replayed)
	require.Equal(t, 1, count(deadletter.Settled))
	require.Equal(t, 1, runs)
}

// A leader that loses its lease and gets it again replays again.
func TestReplaysGoOnAfterTheLeaseWasLost(t *testing.T) {
	t.Parallel()
	settings := worker.DefaultSettings()
	settings.DatabaseURL = testservers.Postgres(t)
	settings.Tuning.RetryAttempts = 1
	var broken atomic.Bool
	broken.Store(true)
	m := metrics.New("v1")
	runObserved(t, settings, func(reg *handlers.Registry) {
		handlers.On(reg, "PatientRegistered", "welcome-patient",
			func(context.Context, events.Event, registered) ([]events.Event, error) {
				if broken.Load() {
					return nil, handlers.Permanent(errors.New("broken"))
				}
				return nil, nil
			})
	}, m, nil)
	backend, err := settings.OpenStore(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, backend.Close()) }()
	e, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, registered{secret})
	require.NoError(t, err)
	require.NoError(t, backend.Append(t.Context(), e))
	table := deadletter.NewTable(backend.SQL())
	require.Eventually(t, func() bool {
		n, err := table.Count(t.Context())
		require.NoError(t, err)
		return n == 1
	}, patience, tick)
	leads := func() bool { return has(m, "worker_relay_leads 1") }
	for range 5 {
		require.Eventually(t, leads, patience, tick)
		_, err := backend.SQL().DB.ExecContext(t.Context(),
			"UPDATE leases SET holder = 'another', fence = fence + 1, expires_at = clock_timestamp() + interval '2 s' WHERE task = 'relay'")
		require.NoError(t, err)
		require.Eventually(t, func() bool { return !leads() }, patience, tick)
	}
	require.Eventually(t, leads, patience, tick)

	broken.Store(false)
	var last deadletter.Progress
	for last, err = range table.Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{Patience: patience}) {
		require.NoError(t, err)
	}
	require.Equal(t, 1, last.Handled)
}

package worker_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/worker"
)

// On the embedded default an event of another aggregate does not wait for a slow handler.
func TestASlowHandlerHoldsUpNoOtherAggregate(t *testing.T) {
	t.Parallel()
	settings := worker.DefaultSettings()
	settings.SQLitePath, settings.Tuning.Concurrency = filepath.Join(t.TempDir(), "test.db"), 2
	entered, release, handled := make(chan struct{}), make(chan struct{}), make(chan uuid.UUID)
	run(t, settings, func(reg *handlers.Registry) {
		handlers.On(reg, "ReportRequested", "slow", func(ctx context.Context, _ events.Event, _ registered) ([]events.Event, error) {
			close(entered)
			select {
			case <-release:
				return nil, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
		handlers.On(reg, "PatientRegistered", "fast", func(_ context.Context, e events.Event, _ registered) ([]events.Event, error) {
			handled <- e.ID
			return nil, nil
		})
	})
	backend, err := settings.OpenStore(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, backend.Close()) }()
	appended := func(eventType string) uuid.UUID {
		e, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, registered{secret})
		require.NoError(t, err)
		e.Type = eventType
		require.NoError(t, backend.Append(t.Context(), e))
		return e.ID
	}
	appended("ReportRequested")
	<-entered
	for range 20 {
		id := appended("PatientRegistered")
		select {
		case got := <-handled:
			require.Equal(t, id, got)
		case <-time.After(patience):
			require.Fail(t, "it waits for the slow handler")
		}
	}
	close(release)
}

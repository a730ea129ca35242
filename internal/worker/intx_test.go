package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/worker"
)

// Each event is delivered several times, its handler and its SQL fail at random, the sessions are terminated meanwhile:
// in the handler's own table its effect is there once.
func TestAHandlersOwnSQLTakesEffectOnce(t *testing.T) {
	t.Parallel()
	const count, deliveries = 150, 3
	settings := worker.DefaultSettings()
	settings.DatabaseURL, settings.AMQP.URL = testservers.Postgres(t), testservers.RabbitMQ(t)
	settings.Tuning.RetryInitial, settings.Tuning.RetryMax, settings.Tuning.RetryAttempts = time.Millisecond, 5*time.Millisecond, 100
	db, err := pgx.Connect(t.Context(), settings.DatabaseURL)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close(context.WithoutCancel(t.Context()))) })
	_, err = db.Exec(t.Context(), "CREATE TABLE effects (event_id uuid)")
	require.NoError(t, err)

	effect := func(ctx context.Context, e events.Event, _ json.RawMessage) ([]events.Event, error) {
		err := postgres.InTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "INSERT INTO effects VALUES ($1)", e.ID); err != nil {
				return err
			}
			switch rand.N(8) { // at each run of the work: an outage is waited out without the handler
			case 0:
				return errors.New("failed behind its SQL")
			case 1:
				_, err := tx.Exec(ctx, "INSERT INTO nowhere VALUES (1)")
				return err
			case 2:
				_, err := tx.Exec(ctx, "SELECT pg_terminate_backend(pg_backend_pid())")
				return err
			}
			return nil
		})
		if rand.N(8) == 0 {
			return nil, errors.New("failed behind its registration")
		}
		return nil, err
	}
	run(t, settings, func(reg *handlers.Registry) { handlers.OnAll(reg, "effect", effect) })

	s := publisher(t, settings)
	for range count {
		b := body(map[string]any{"event_id": uuid.NewString(), "aggregate_id": uuid.NewString()})
		for range deliveries {
			s.publish(b, amqp091.Table{})
		}
	}
	rows := func() (all, distinct int) {
		require.NoError(t, db.QueryRow(t.Context(), "SELECT count(*), count(DISTINCT event_id) FROM effects").Scan(&all, &distinct))
		return all, distinct
	}
	require.Eventually(t, func() bool { _, distinct := rows(); return distinct == count }, patience, tick)
	require.Eventually(t, func() bool {
		queue, err := s.channel.QueueDeclarePassive("healz.events.consumer", true, false, false, false, nil)
		require.NoError(t, err)
		return queue.Messages == 0
	}, patience, tick)
	all, _ := rows()
	require.Equal(t, count, all, "no effect is there twice")
	require.Empty(t, s.all())
}

// run runs a worker until the test ends.
func run(t *testing.T, settings worker.Settings, register func(*handlers.Registry)) {
	t.Helper()
	runHealth(t, settings, register)
}

// runHealth is run, and returns the worker's health.
func runHealth(t *testing.T, settings worker.Settings, register func(*handlers.Registry)) func() worker.Health {
	t.Helper()
	w, closeParts, err := worker.Open(t.Context(), settings,
		worker.OpenOptions{Register: register, Migrate: true, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-done)
		require.NoError(t, closeParts())
	})
	return func() worker.Health { return w.Health(t.Context()) }
}

package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
)

// While a dry run has written, the appends of others are notified, and its own are not.
func TestDryRunDoesNotNotify(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	s, listener := open(t, address), connect(t, address)
	var channel string
	require.NoError(t, listener.QueryRow(t.Context(), "SELECT 'events_' || 'events'::regclass::oid").Scan(&channel))
	_, err := listener.Exec(t.Context(), "LISTEN "+channel)
	require.NoError(t, err)

	require.NoError(t, s.Try(t.Context(), func(ctx context.Context, dry *store.DryRun) error {
		require.NoError(t, dry.AppendMany(ctx, storetest.NewStream().Take(1)))
		require.NoError(t, s.AppendMany(ctx, storetest.NewStream().Take(1)))
		waiting, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		_, err := listener.WaitForNotification(waiting)
		return err
	}))

	_, err = listener.Exec(t.Context(), "NOTIFY "+channel+", 'the next'")
	require.NoError(t, err)
	next, err := listener.WaitForNotification(t.Context())
	require.NoError(t, err)
	require.Equal(t, "the next", next.Payload)
}

// What a commit would refuse, a dry run refuses too, and goes on.
func TestDryRunRefusesWhatCannotBeCommitted(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	_, err := connect(t, address).Exec(t.Context(),
		"CREATE TABLE numbers (number integer UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO numbers VALUES (1)")
	require.NoError(t, err)
	s := open(t, address)
	causes := storetest.NewStream().Take(3)
	try := func(ctx context.Context, dry *store.DryRun, cause events.Event, work func(context.Context, pgx.Tx) error) error {
		return dry.Savepoint(ctx, func(ctx context.Context) error {
			ctx = dry.Attempt(ctx)
			require.NoError(t, postgres.InTx(ctx, work))
			return dry.Record(ctx, "handler", cause, nil)
		})
	}
	require.NoError(t, s.Try(t.Context(), func(ctx context.Context, dry *store.DryRun) error {
		var refused *store.WorkError
		for _, cause := range causes[:2] {
			err := try(ctx, dry, cause, func(ctx context.Context, tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "INSERT INTO numbers VALUES (1)")
				return err
			})
			require.ErrorAs(t, err, &refused)
			require.ErrorContains(t, err, "23505")
			require.NoError(t, try(ctx, dry, cause, func(ctx context.Context, tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "INSERT INTO numbers VALUES (1); DELETE FROM numbers; INSERT INTO numbers VALUES (1)")
				return err
			}), "for a moment it may be broken")
		}
		err := try(ctx, dry, causes[2], func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO nowhere VALUES (1)")
			require.Error(t, err)
			return nil
		})
		require.ErrorAs(t, err, &refused, "a failure that was passed over")
		return nil
	}))
}

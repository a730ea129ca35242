package postgres_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
)

func TestWork(t *testing.T) {
	t.Parallel()
	storetest.RunWork(t, workplace)
}

func TestTrial(t *testing.T) {
	t.Parallel()
	storetest.RunDryRun(t, workplace)
}

func workplace(t *testing.T) storetest.Workplace {
	t.Helper()
	address := migrated(t)
	conn := connect(t, address)
	_, err := conn.Exec(t.Context(), "CREATE TABLE numbers (number integer PRIMARY KEY)")
	require.NoError(t, err)
	return storetest.Workplace{
		Store:  open(t, address),
		Insert: insertNumber,
		IsTaken: func(err error) bool {
			refusal, is := errors.AsType[*pgconn.PgError](err)
			return is && refusal.Code == "23505"
		},
		Then: func(ctx context.Context, call func() error) error {
			return postgres.InTx(ctx, func(context.Context, pgx.Tx) error { return call() })
		},
		Numbers: func(t *testing.T) []int {
			t.Helper()
			rows, err := conn.Query(t.Context(), "SELECT number FROM numbers ORDER BY number")
			require.NoError(t, err)
			numbers, err := pgx.CollectRows(rows, pgx.RowTo[int])
			require.NoError(t, err)
			return numbers
		},
	}
}

func insertNumber(ctx context.Context, number int) error {
	return postgres.InTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "INSERT INTO numbers VALUES ($1)", number)
		return err
	})
}

// What a commit refuses is the work's failure too, and the transaction is not the work's to end.
func TestWorkThatCannotBeCommitted(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	_, err := connect(t, address).Exec(t.Context(),
		"CREATE TABLE numbers (number integer UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO numbers VALUES (1)")
	require.NoError(t, err)
	s := open(t, address)
	for name, test := range map[string]struct {
		work func(context.Context, pgx.Tx) error
		want string
	}{
		"a deferred constraint": {func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO numbers VALUES (1)")
			return err
		}, "23505"},
		"a failure that was passed over": {func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO nowhere VALUES (1)")
			require.Error(t, err)
			return nil
		}, pgx.ErrTxCommitRollback.Error()},
		"a commit":                  {func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) }, "by the worker"},
		"a rollback":                {func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) }, "by the worker"},
		"a table that is not there": {func(ctx context.Context, tx pgx.Tx) error { return tx.QueryRow(ctx, "TABLE nowhere").Scan() }, "42P01"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cause, stream := storetest.NewStream().Next(), storetest.NewStream()
			ctx := s.Attempt(t.Context())
			require.NoError(t, postgres.InTx(ctx, test.work))
			err := s.Record(ctx, "handler", cause, stream.Take(1))
			require.ErrorContains(t, err, test.want)
			for _, other := range []error{store.ErrUnavailable, store.ErrUnknownOutcome, store.ErrNoSchema} {
				require.NotErrorIs(t, err, other)
			}
			handled, err := s.Handled(t.Context(), cause)
			require.NoError(t, err)
			require.Empty(t, handled)
		})
	}
}

// A server that goes away under the work is an outage, and no failure of the handler's.
func TestWorkUnderWhichTheConnectionBreaks(t *testing.T) {
	t.Parallel()
	s := open(t, migrated(t))
	cause := storetest.NewStream().Next()
	ctx := s.Attempt(t.Context())
	require.NoError(t, postgres.InTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "SELECT pg_terminate_backend(pg_backend_pid())")
		return err
	}))
	require.ErrorIs(t, s.Record(ctx, "handler", cause, nil), store.ErrUnavailable)
	handled, err := s.Handled(t.Context(), cause)
	require.NoError(t, err)
	require.Empty(t, handled)
}

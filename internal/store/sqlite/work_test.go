package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	modernc "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/healz/worker/internal/store/sqlite"
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
	path := migrated(t)
	db := connect(t, path)
	_, err := db.ExecContext(t.Context(), "CREATE TABLE numbers (number INTEGER PRIMARY KEY)")
	require.NoError(t, err)
	return storetest.Workplace{
		Store: open(t, path),
		Insert: func(ctx context.Context, number int) error {
			return sqlite.InTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, "INSERT INTO numbers VALUES (?)", number)
				return err
			})
		},
		IsTaken: func(err error) bool {
			refusal, is := errors.AsType[*modernc.Error](err)
			return is && refusal.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
		},
		Then: func(ctx context.Context, call func() error) error {
			return sqlite.InTx(ctx, func(context.Context, *sql.Tx) error { return call() })
		},
		Numbers: func(t *testing.T) (numbers []int) {
			t.Helper()
			rows, err := db.QueryContext(t.Context(), "SELECT number FROM numbers ORDER BY number")
			require.NoError(t, err)
			defer rows.Close()
			for rows.Next() {
				var number int
				require.NoError(t, rows.Scan(&number))
				numbers = append(numbers, number)
			}
			require.NoError(t, rows.Err())
			return numbers
		},
	}
}

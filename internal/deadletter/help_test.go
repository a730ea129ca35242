package deadletter_test

import (
	"context"
	"database/sql"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
)

func testLogger(t testing.TB) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// recorder is a bus on which everything is handled at once.
type recorder struct{ table *deadletter.Table }

func (r *recorder) PublishLetters(ctx context.Context, letters []deadletter.Release) ([]deadletter.Sending, error) {
	for _, l := range letters {
		if err := r.table.Settled(ctx, l.ID, l.ReplayID, []string{l.Handler}, true); err != nil {
			return nil, err
		}
	}
	return make([]deadletter.Sending, len(letters)), nil
}

// write changes the database behind the table's back.
func write(t *testing.T, b backend, statement string, args ...any) {
	t.Helper()
	require.NoError(t, change(t, b, statement, args...))
}

func change(t *testing.T, b backend, statement string, args ...any) error {
	t.Helper()
	return b.SQL().Write(t.Context(), "test", func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, statement, args...)
		return err
	})
}

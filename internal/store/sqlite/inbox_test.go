package sqlite_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Many old records go in small batches, and none that is younger.
func TestPruneManyRecords(t *testing.T) {
	t.Parallel()
	const old, young, batch = 20_000, 1_000, 500
	path := migrated(t)
	db := connect(t, path)
	const fill = `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
		INSERT INTO handled (event_id, handler, fingerprint, handled_at) SELECT ? || i, 'handler', x'', ? + i FROM n`
	now := time.Now()
	_, err := db.ExecContext(t.Context(), fill, old, "old ", now.Add(-24*time.Hour).UnixMicro())
	require.NoError(t, err)
	_, err = db.ExecContext(t.Context(), fill, young, "young ", now.Add(-23*time.Hour).UnixMicro())
	require.NoError(t, err)

	s := open(t, path)
	for range old / batch {
		n, err := s.PruneHandled(t.Context(), 24*time.Hour-time.Minute, batch)
		require.NoError(t, err)
		require.Equal(t, batch, n)
	}
	n, err := s.PruneHandled(t.Context(), 24*time.Hour-time.Minute, batch)
	require.NoError(t, err)
	require.Zero(t, n)
	var left int
	require.NoError(t, db.QueryRowContext(t.Context(), "SELECT count(*) FROM handled").Scan(&left))
	require.Equal(t, young, left)
}

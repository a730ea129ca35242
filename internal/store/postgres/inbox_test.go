package postgres_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Many old records go in small batches, whoever else prunes, and none that is younger.
func TestPruneManyRecords(t *testing.T) {
	t.Parallel()
	const old, young, batch, pruners = 20_000, 1_000, 500, 3
	address := migrated(t)
	conn := connect(t, address)
	_, err := conn.Exec(t.Context(), `INSERT INTO handled (event_id, handler, fingerprint, handled_at)
		SELECT gen_random_uuid(), 'handler', '', now() - interval '1 day' - random() * interval '10 s'
		FROM generate_series(1, $1)`, old)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), `INSERT INTO handled (event_id, handler, fingerprint, handled_at)
		SELECT gen_random_uuid(), 'handler', '', now() - interval '23 hours' FROM generate_series(1, $1)`, young)
	require.NoError(t, err)

	s := open(t, address)
	var pruned atomic.Int64
	var pruning sync.WaitGroup
	for range pruners {
		pruning.Go(func() {
			for {
				n, err := s.PruneHandled(t.Context(), 24*time.Hour-time.Minute, batch)
				if err != nil {
					t.Error(err)
				}
				if n == 0 {
					return
				}
				pruned.Add(int64(n))
			}
		})
	}
	pruning.Wait()

	require.Equal(t, int64(old), pruned.Load())
	var left int
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM handled").Scan(&left))
	require.Equal(t, young, left)
}

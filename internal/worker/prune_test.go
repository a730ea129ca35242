package worker_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/testservers"
	"github.com/healz/worker/internal/worker"
)

// A worker forgets what is older than its retention, however much it is, and goes on to know the rest.
func TestInboxRetention(t *testing.T) {
	t.Parallel()
	settings := worker.DefaultSettings()
	settings.DatabaseURL, settings.InboxRetention = testservers.Postgres(t), time.Hour
	s, err := postgres.Open(t.Context(), settings.DatabaseURL, postgres.Options{})
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))
	require.NoError(t, s.Close())
	db, err := pgx.Connect(t.Context(), settings.DatabaseURL)
	require.NoError(t, err)
	defer db.Close(t.Context())
	_, err = db.Exec(t.Context(), `INSERT INTO handled (event_id, handler, fingerprint, handled_at)
		SELECT gen_random_uuid(), 'h', '', now() - CASE WHEN n <= 2000 THEN interval '2 hours' ELSE interval '50 minutes' END
		FROM generate_series(1, 3000) AS n`)
	require.NoError(t, err)

	run(t, settings, func(*handlers.Registry, events.Streams) {})

	require.Eventually(t, func() bool {
		var old, left int
		require.NoError(t, db.QueryRow(t.Context(),
			"SELECT count(*) FILTER (WHERE handled_at < now() - interval '1 hour'), count(*) FROM handled").Scan(&old, &left))
		require.GreaterOrEqual(t, left, 1000)
		return old == 0
	}, patience, tick)
}

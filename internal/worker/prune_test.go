package worker_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/worker"
)

// A worker forgets what is older than its retention, however much it is, and goes on to know the rest.
func TestInboxRetention(t *testing.T) {
	t.Parallel()
	settings := worker.DefaultSettings()
	settings.DatabaseURL, settings.InboxRetention = testservers.Postgres(t), 90*time.Minute
	s, err := postgres.Open(t.Context(), settings.DatabaseURL, postgres.Options{})
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))
	require.NoError(t, s.Close())
	db, err := pgx.Connect(t.Context(), settings.DatabaseURL)
	require.NoError(t, err)
	defer db.Close(t.Context())
	_, err = db.Exec(t.Context(), `INSERT INTO handled (event_id, handler, fingerprint, handled_at)
		SELECT gen_random_uuid(), 'h', '', now() - CASE WHEN n <= 2000 THEN interval '2 hours' ELSE interval '80 minutes' END
		FROM generate_series(1, 3000) AS n`)
	require.NoError(t, err)

	run(t, settings, func(*handlers.Registry) {})

	require.Eventually(t, func() bool {
		var old, left int
		require.NoError(t, db.QueryRow(t.Context(),
			"SELECT count(*) FILTER (WHERE handled_at < now() - interval '90 minutes'), count(*) FROM handled").Scan(&old, &left))
		require.GreaterOrEqual(t, left, 1000)
		return old == 0
	}, patience, tick)
}

// Letters that were dealt with are deleted once they are older than the retention. Those that wait stay.
func TestLetterRetention(t *testing.T) {
	t.Parallel()
	settings := worker.DefaultSettings()
	settings.DatabaseURL, settings.DeadLetterRetention = testservers.Postgres(t), time.Hour
	s, err := settings.OpenStore(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	require.NoError(t, s.Migrate(t.Context()))
	table := deadletter.NewTable(s.SQL())
	var arrivals []deadletter.Arrival
	for i := range 1300 {
		arrivals = append(arrivals, deadletter.Arrival{Letter: deadletter.Complete(deadletter.Letter{ID: fmt.Sprint(i)})})
	}
	require.NoError(t, table.Ingest(t.Context(), arrivals))
	db, err := pgx.Connect(t.Context(), settings.DatabaseURL)
	require.NoError(t, err)
	defer db.Close(t.Context())
	_, err = db.Exec(t.Context(), `UPDATE dead_letters SET first_failed_at = now() - interval '3 hours', last_failed_at = now() - interval '3 hours',
		state = CASE WHEN id::int >= 1200 THEN 'waiting' ELSE (ARRAY['archived', 'discarded', 'edited', 'handled'])[1 + id::int % 4] END,
		decided_at = now() - CASE WHEN id::int BETWEEN 1100 AND 1199 THEN interval '50 minutes' ELSE interval '2 hours' END`)
	require.NoError(t, err)

	run(t, settings, func(*handlers.Registry) {})

	require.Eventually(t, func() bool {
		var old, recent, waiting int
		require.NoError(t, db.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE id::int < 1100),
			count(*) FILTER (WHERE id::int BETWEEN 1100 AND 1199), count(*) FILTER (WHERE state = 'waiting') FROM dead_letters`).
			Scan(&old, &recent, &waiting))
		require.Equal(t, []int{100, 100}, []int{recent, waiting})
		return old == 0
	}, patience, tick)
}

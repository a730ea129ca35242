package postgres

import (
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store/storetest"
	"github.com/healz/worker/internal/test/testservers"
)

// However few units there are, the server soon keeps one plan: to make another takes longer than to write one of them.
func TestStatementsAreNotPlannedAnew(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), testservers.Postgres(t), Options{MaxConns: 1})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	require.NoError(t, s.Migrate(t.Context()))
	conn, err := s.pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	for range 20 {
		for _, u := range []*unit{
			{batch: storetest.NewStream().Take(1)},
			{batch: storetest.NewStream().Take(2)},
			recordOf("handler", storetest.NewStream().Next(), []events.Event{storetest.NewStream().Next()}),
			recordOf("handler", storetest.NewStream().Next(), nil),
		} {
			require.NoError(t, writeUnits(t.Context(), conn, []*unit{u}))
			require.True(t, u.written)
		}
		require.NoError(t, queries{conn}.lookUp(t.Context(), []*lookup{{eventID: uuid.New()}}))
	}
	rows, err := conn.Query(t.Context(), `SELECT custom_plans FROM pg_prepared_statements WHERE statement = ANY ($1)`,
		[]string{writeSQL, appendOneSQL, handledSQL})
	require.NoError(t, err)
	planned, err := pgx.CollectRows(rows, pgx.RowTo[int])
	require.NoError(t, err)
	require.Equal(t, []int{5, 5, 5}, planned)
}

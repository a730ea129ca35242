package postgres_test

import (
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/stretchr/testify/require"
)

// Each read finds its page by an index that has its order, and so reads no more rows than the page has.
func TestReadsUseIndexes(t *testing.T) {
	t.Parallel()
	conn := connect(t, migrated(t))
	_, err := conn.Exec(t.Context(), `
		INSERT INTO events (event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, correlation_id,
			created_at, event_data)
		SELECT 'Type' || g % 10, 'Patient', md5('a' || g / 100)::uuid, g % 100 + 1, md5('t' || g % 10)::uuid,
			md5('c' || g % 10)::uuid, now() - g * interval '1 second', '{}'
		FROM generate_series(0, 19999) AS g`)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "ANALYZE events")
	require.NoError(t, err)
	id := uuid.NewMD5(uuid.Nil, nil)
	forever, before := infinite(pgtype.Infinity), infinite(pgtype.NegativeInfinity)
	for statement, test := range map[string]struct {
		index string
		args  []any
	}{
		"by_aggregate":   {"events_aggregate_page", []any{"Patient", id, 5, 101, 0}},
		"by_correlation": {"events_correlation_page", []any{id, before, 0, 101, 0}},
		"by_tenant":      {"events_tenant_page", []any{id, forever, 0, 101, 0}},
		"by_type":        {"events_type_page", []any{"Type1", forever, 0, 101, 0}},
		"all":            {"events_transaction_unique", []any{pgtype.Uint64{Valid: true}, 0, 500}},
		"version":        {"events_aggregate_page", []any{"Patient", id}},
		"heads":          {"events_aggregate_version_unique", []any{[]uuid.UUID{id}}},
		"known_ids":      {"events_event_id_key", []any{[]uuid.UUID{id}}},
		"handled":        {"handled_pkey", []any{[]uuid.UUID{id}}},
	} {
		text, err := os.ReadFile("statements/" + statement + ".sql")
		require.NoError(t, err)
		rows, err := conn.Query(t.Context(), "EXPLAIN "+string(text), test.args...)
		require.NoError(t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		plan := strings.Join(lines, "\n")
		require.Contains(t, plan, test.index, "%s:\n%s", statement, plan)
		require.NotContains(t, plan, "Seq Scan", "%s:\n%s", statement, plan)
		require.NotContains(t, plan, "Sort", "%s:\n%s", statement, plan)
	}
}

func infinite(modifier pgtype.InfinityModifier) pgtype.Timestamptz {
	return pgtype.Timestamptz{InfinityModifier: modifier, Valid: true}
}

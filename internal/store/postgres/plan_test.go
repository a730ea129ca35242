package postgres_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
)

// Each read finds its page by an index that has its order, and so reads no more rows than the page has.
func TestReadsUseIndexes(t *testing.T) {
	t.Parallel()
	conn := connect(t, migrated(t))
	fill(t, conn)
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
		"all":            {"events_transaction_unique", []any{pgtype.Uint64{Valid: true}, 0, 500, 0}},
		"version":        {"events_aggregate_page", []any{"Patient", id}},
		"heads":          {"events_aggregate_version_unique", []any{[]uuid.UUID{id}}},
		"known_ids":      {"events_event_id_key", []any{[]uuid.UUID{id}}},
		"handled":        {"handled_pkey", []any{[]uuid.UUID{id}}},
	} {
		text, err := os.ReadFile("statements/" + statement + ".sql")
		require.NoError(t, err)
		plan := explain(t, conn, string(text), test.args...)
		require.Contains(t, plan, test.index, "%s:\n%s", statement, plan)
		require.NotContains(t, plan, "Seq Scan", "%s:\n%s", statement, plan)
		require.NotContains(t, plan, "Sort", "%s:\n%s", statement, plan)
	}
}

// The ids of transactions have no statistics after a restore, and the question is asked at each poll of the backlog.
func TestIsRestoredUsesIndexWithoutStatistics(t *testing.T) {
	t.Parallel()
	url := migrated(t)
	s, conn := open(t, url), connect(t, url)
	fill(t, conn)
	restore(t, conn, farAhead)
	_, err := s.MigrateRestored(t.Context())
	require.NoError(t, err)
	text, err := os.ReadFile("statements/is_restored.sql")
	require.NoError(t, err)

	plan := explain(t, conn, string(text))

	require.Contains(t, plan, "events_transaction_unique", plan)
	require.NotContains(t, plan, "Seq Scan on events", plan)
}

// Each scan of a search uses its index. It may sort the rows of the scan, as their number is bounded.
func TestSearchesUseIndexes(t *testing.T) {
	t.Parallel()
	conn := connect(t, migrated(t))
	fill(t, conn)
	id := uuid.NewMD5(uuid.Nil, nil)
	from := time.Now().Add(-time.Hour)
	for index, test := range map[store.Index]struct {
		index  string
		search store.Search
	}{
		store.IndexCausation:   {"idx_events_causation", store.Search{CausationID: id}},
		store.IndexAggregate:   {"events_aggregate_version_unique", store.Search{AggregateID: id}},
		store.IndexCorrelation: {"events_correlation_page", store.Search{CorrelationID: id, TenantID: id, From: from}},
		store.IndexTenant:      {"events_tenant_page", store.Search{TenantID: id, Type: "Type1", From: from}},
		store.IndexType:        {"events_type_page", store.Search{TenantID: id, Type: "Type1", Until: from}},
		store.IndexTime:        {"idx_events_created_at", store.Search{From: from}},
	} {
		statements, args := postgres.SearchStatements(index, test.search)
		for _, statement := range statements {
			plan := explain(t, conn, statement, args)
			require.Contains(t, plan, test.index, "%s:\n%s", index, plan)
			require.NotContains(t, plan, "Seq Scan", "%s:\n%s", index, plan)
		}
	}
}

// fill puts in as many events as make indexes worth while.
func fill(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	_, err := conn.Exec(t.Context(), `
		INSERT INTO events (event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, correlation_id,
			causation_id, created_at, event_data)
		SELECT 'Type' || g % 10, 'Patient', md5('a' || g / 100)::uuid, g % 100 + 1, md5('t' || g % 10)::uuid,
			md5('c' || g % 10)::uuid, md5('e' || g)::uuid, now() - g * interval '1 second', '{}'
		FROM generate_series(0, 19999) AS g`)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "ANALYZE events")
	require.NoError(t, err)
}

// explain is the plan of a statement.
func explain(t *testing.T, conn *pgx.Conn, statement string, args ...any) string {
	t.Helper()
	rows, err := conn.Query(t.Context(), "EXPLAIN "+statement, args...)
	require.NoError(t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return strings.Join(lines, "\n")
}

func infinite(modifier pgtype.InfinityModifier) pgtype.Timestamptz {
	return pgtype.Timestamptz{InfinityModifier: modifier, Valid: true}
}

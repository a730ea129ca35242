package postgres_test

import (
	"context"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
)

// insertSQL is how another program writes: it names only the contract's columns.
const insertSQL = `
INSERT INTO events (
	event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
	correlation_id, user_id, created_at, event_data, metadata
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`

func connect(tb testing.TB, url string) *pgx.Conn {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), url)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, conn.Close(context.WithoutCancel(tb.Context()))) })
	return conn
}

type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

func insert(tb testing.TB, db execer, e events.Event) {
	tb.Helper()
	_, err := db.Exec(tb.Context(), insertSQL, insertArgs(e)...)
	require.NoError(tb, err)
}

func insertArgs(e events.Event) []any {
	optional := func(id uuid.NullUUID) any {
		if id.Valid {
			return id.UUID
		}
		return nil
	}
	return []any{
		e.ID, e.Type, e.AggregateType, e.AggregateID, e.AggregateVersion, e.TenantID, optional(e.ClinicID),
		optional(e.CausationID), e.CorrelationID, optional(e.UserID), e.CreatedAt, string(e.Data), nil,
	}
}

package postgres_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store/storetest"
	"github.com/healz/worker/internal/test/testservers"
)

// contractSQL makes the contract's table with the contract's indexes, and the least inbox there can be.
const contractSQL = `
CREATE TABLE events (
	id bigserial PRIMARY KEY, event_id uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE, event_type varchar(100) NOT NULL,
	aggregate_type varchar(50) NOT NULL, aggregate_id uuid NOT NULL, aggregate_version integer NOT NULL,
	tenant_id uuid NOT NULL, clinic_id uuid, causation_id uuid, correlation_id uuid NOT NULL, user_id uuid,
	created_at timestamptz NOT NULL DEFAULT now(), event_data jsonb NOT NULL, metadata jsonb DEFAULT '{}'
);
CREATE UNIQUE INDEX events_aggregate_version_unique ON events (aggregate_id, aggregate_version);
CREATE INDEX idx_events_aggregate ON events (aggregate_type, aggregate_id);
CREATE INDEX idx_events_correlation ON events (correlation_id);
CREATE INDEX idx_events_causation ON events (causation_id);
CREATE INDEX idx_events_tenant ON events (tenant_id);
CREATE INDEX idx_events_type ON events (event_type);
CREATE INDEX idx_events_created_at ON events (created_at);
CREATE TABLE inbox (event_id uuid NOT NULL, handler text NOT NULL, PRIMARY KEY (event_id, handler))`

// recordSQL notes in one statement that an event was handled, and appends what follows.
const recordSQL = `
WITH handled AS (INSERT INTO inbox VALUES ($14, 'handler') ON CONFLICT DO NOTHING RETURNING event_id)
INSERT INTO events (
	event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id, causation_id,
	correlation_id, user_id, created_at, event_data, metadata
) SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13 FROM handled`

// BenchmarkCallers compares concurrent callers of the store with as many goroutines that have a transaction each, with
// nothing but what the contract asks for. A round is a turn of either; the figures are medians over the rounds.
func BenchmarkCallers(b *testing.B) {
	const many = 32
	s := open(b, migrated(b))
	contract := testservers.Postgres(b)
	_, err := connect(b, contract).Exec(b.Context(), contractSQL)
	require.NoError(b, err)
	config, err := pgxpool.ParseConfig(contract)
	require.NoError(b, err)
	config.MaxConns = many
	raw, err := pgxpool.NewWithConfig(b.Context(), config)
	require.NoError(b, err)
	defer raw.Close()

	insertOne := func(ctx context.Context) error {
		_, err := raw.Exec(ctx, insertSQL, insertArgs(storetest.NewStream().Next())...)
		return err
	}
	appendOne := func(ctx context.Context) error { return s.Append(ctx, storetest.NewStream().Next()) }
	b.Run("1 appends", func(b *testing.B) { takeTurns(b, 1, 1, insertOne, appendOne) })
	b.Run("32 append", func(b *testing.B) { takeTurns(b, many, many, insertOne, appendOne) })

	insertRecord := func(ctx context.Context) error {
		_, err := raw.Exec(ctx, recordSQL, append(insertArgs(storetest.NewStream().Next()), uuid.New())...)
		return err
	}
	record := func(ctx context.Context) error {
		cause := storetest.NewStream().Next()
		_, err := s.Handled(ctx, cause)
		return errors.Join(err, s.Record(ctx, "handler", cause, []events.Event{storetest.NewStream().Next()}))
	}
	b.Run("16 look up and record", func(b *testing.B) { takeTurns(b, many, 16, insertRecord, record) })
	b.Run("32 look up and record", func(b *testing.B) { takeTurns(b, many, many, insertRecord, record) })
}

// takeTurns lets so many callers of raw work, and so many of ours, again and again.
func takeTurns(b *testing.B, rawCallers, ourCallers int, raw, ours func(context.Context) error) {
	b.Helper()
	var rawRates, ourRates, ratios []float64
	turn := func(callers int, call func(context.Context) error) float64 {
		const each = 20
		var calling sync.WaitGroup
		began := time.Now()
		for range callers {
			calling.Go(func() {
				for range each {
					if err := call(b.Context()); err != nil {
						b.Error(err)
					}
				}
			})
		}
		calling.Wait()
		return float64(callers*each) / time.Since(began).Seconds()
	}
	for b.Loop() {
		r, o := turn(rawCallers, raw), turn(ourCallers, ours)
		rawRates, ourRates, ratios = append(rawRates, r), append(ourRates, o), append(ratios, o/r)
	}
	for unit, values := range map[string][]float64{"raw/s": rawRates, "ours/s": ourRates, "ours/raw": ratios} {
		slices.Sort(values)
		b.ReportMetric(values[len(values)/2], unit)
	}
}

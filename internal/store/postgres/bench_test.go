package postgres_test

import (
	"context"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
)

// appendSize is how many events an append of many has in the benchmarks.
const appendSize = 100

// BenchmarkAppend compares the store's appends with what the same rows cost without its promises: a plain INSERT, and
// COPY. Only figures of one run compare.
func BenchmarkAppend(b *testing.B) {
	address := migrated(b)
	s := open(b, address)
	pool, err := pgxpool.New(b.Context(), address)
	require.NoError(b, err)
	defer pool.Close()
	for name, way := range map[string]func(context.Context, []events.Event) error{
		"store": s.AppendMany,
		"plain INSERT": func(ctx context.Context, batch []events.Event) error {
			return plainInsert(ctx, pool, batch)
		},
		"COPY": func(ctx context.Context, batch []events.Event) error { return plainCopy(ctx, pool, batch) },
	} {
		for _, size := range []int{1, appendSize} {
			b.Run(strconv.Itoa(size)+"/"+name, func(b *testing.B) {
				stream := storetest.NewStream()
				for b.Loop() {
					require.NoError(b, way(b.Context(), stream.Take(size)))
				}
				b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "events/s")
			})
		}
	}
}

func plainInsert(ctx context.Context, pool *pgxpool.Pool, batch []events.Event) error {
	if len(batch) == 1 {
		_, err := pool.Exec(ctx, insertSQL, insertArgs(batch[0])...)
		return err
	}
	inserts := &pgx.Batch{}
	for _, e := range batch {
		inserts.Queue(insertSQL, insertArgs(e)...)
	}
	return pool.SendBatch(ctx, inserts).Close()
}

func plainCopy(ctx context.Context, pool *pgxpool.Pool, batch []events.Event) error {
	_, err := pool.CopyFrom(ctx, pgx.Identifier{"events"}, []string{
		"event_id", "event_type", "aggregate_type", "aggregate_id", "aggregate_version", "tenant_id", "clinic_id",
		"causation_id", "correlation_id", "user_id", "created_at", "event_data", "metadata",
	}, pgx.CopyFromSlice(len(batch), func(i int) ([]any, error) { return insertArgs(batch[i]), nil }))
	return err
}

// BenchmarkTail selects a batch as the relay does, again and again.
func BenchmarkTail(b *testing.B) {
	s := open(b, migrated(b))
	for range 20 {
		require.NoError(b, s.AppendMany(b.Context(), storetest.NewStream().Take(1000)))
	}
	for _, size := range []int{1, 100, 1000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			tail, err := s.Tail(b.Context(), store.TailConfig{BatchSize: size})
			require.NoError(b, err)
			defer func() { require.NoError(b, tail.Close()) }()
			for b.Loop() {
				batch, err := tail.Next(b.Context(), nil)
				require.NoError(b, err)
				require.NotEmpty(b, batch.Events)
			}
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkRecord shows what a handler's own SQL costs besides itself: a transaction of several round trips in place of
// one statement.
func BenchmarkRecord(b *testing.B) {
	s := open(b, migrated(b))
	for name, register := range map[string]func(context.Context) error{
		"follow-up": func(context.Context) error { return nil },
		"follow-up and own SQL": func(ctx context.Context) error {
			return postgres.InTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "SELECT 1")
				return err
			})
		},
	} {
		b.Run(name, func(b *testing.B) {
			causes := storetest.NewStream()
			for b.Loop() {
				ctx := s.Attempt(b.Context())
				require.NoError(b, register(ctx))
				require.NoError(b, s.Record(ctx, "handler", causes.Next(), storetest.NewStream().Take(1)))
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func BenchmarkLoad(b *testing.B) { storetest.BenchmarkLoad(b, open(b, migrated(b))) }

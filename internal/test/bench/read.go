package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/worker"
)

// longStream is how many events the aggregate has that is read.
const longStream = 1000

// diary is an aggregate of which only the reading costs anything: what a user's does with an event's data is the user's.
type diary struct {
	events.Root

	bytes int
}

func (d *diary) AggregateType() string { return "Diary" }

func (d *diary) Apply(e events.Event) error {
	d.bytes += len(e.Data)
	return nil
}

// measureRead measures the reading of a long stream into an aggregate.
func measureRead(ctx context.Context, s *stage) error {
	if !s.wants("read-1000") {
		return nil
	}
	settings, ours, err := s.newStore(ctx)
	if err != nil {
		return err
	}
	origin, id, err := writeDiary(ctx, ours)
	if err != nil {
		return err
	}
	raw, err := s.pool(ctx, settings.DatabaseURL)
	if err != nil {
		return err
	}
	return s.measureRate(ctx, rate{
		name: "read-1000", what: fmt.Sprintf("read a stream of %d events into an aggregate", longStream), reach: 0.8,
		step: longStream,
	}, contenders{raw: rawReader(raw, id), ours: diaryReader(ours, origin, id)})
}

// writeDiary appends a long stream.
func writeDiary(ctx context.Context, b worker.Backend) (events.Origin, uuid.UUID, error) {
	origin, id := events.Origin{TenantID: uuid.New(), CorrelationID: uuid.New()}, uuid.New()
	list, err := samples(longStream)
	if err != nil {
		return origin, id, err
	}
	for i := range list {
		e := &list[i]
		e.AggregateType, e.AggregateID, e.AggregateVersion = new(diary).AggregateType(), id, i+1
		e.TenantID = origin.TenantID
	}
	return origin, id, b.AppendMany(ctx, list)
}

func diaryReader(b events.Streams, origin events.Origin, id uuid.UUID) contender {
	repository := events.NewRepository(b, func() *diary { return &diary{} })
	return func(ctx context.Context, n int) (spent, error) {
		stop := spending()
		for range n / longStream {
			d, err := repository.Load(ctx, origin, id)
			if err != nil {
				return spent{}, err
			}
			if d.Version() != longStream || d.bytes == 0 {
				return spent{}, fmt.Errorf("read %d events of %d", d.Version(), longStream)
			}
		}
		return stop(), nil
	}
}

// rawReader scans the same rows into structs of pgx's own types.
func rawReader(pool *pgxpool.Pool, id uuid.UUID) contender {
	type row struct {
		eventID, aggregateID, tenantID, correlationID [16]byte
		clinicID, causationID, userID                 pgtype.UUID
		eventType, aggregateType                      string
		version                                       int
		createdAt                                     time.Time
		data, metadata                                json.RawMessage
	}
	const sql = `SELECT event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id,
		correlation_id, causation_id, user_id, created_at, event_data, metadata
		FROM events WHERE aggregate_type = $1 AND aggregate_id = $2 ORDER BY aggregate_version`
	return func(ctx context.Context, n int) (spent, error) {
		stop := spending()
		for range n / longStream {
			rows, err := pool.Query(ctx, sql, new(diary).AggregateType(), id)
			if err != nil {
				return spent{}, err
			}
			bytes, count := 0, 0
			var r row
			_, err = pgx.ForEachRow(rows, []any{
				&r.eventID, &r.eventType, &r.aggregateType, &r.aggregateID, &r.version, &r.tenantID, &r.clinicID,
				&r.correlationID, &r.causationID, &r.userID, &r.createdAt, (*[]byte)(&r.data), (*[]byte)(&r.metadata),
			}, func() error {
				count++
				bytes += len(r.data)
				return nil
			})
			if err != nil {
				return spent{}, err
			}
			if count != longStream || bytes == 0 {
				return spent{}, fmt.Errorf("read %d rows of %d", count, longStream)
			}
		}
		return stop(), nil
	}
}

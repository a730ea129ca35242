package postgres

import (
	"context"
	_ "embed"
	"errors"
	"iter"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// pageSize is how many events a streaming read holds at a time.
const pageSize = 1024

var (
	//go:embed statements/by_aggregate.sql
	byAggregateSQL string
	//go:embed statements/by_correlation.sql
	byCorrelationSQL string
	//go:embed statements/by_type.sql
	byTypeSQL string
	//go:embed statements/by_tenant.sql
	byTenantSQL string
	//go:embed statements/all.sql
	allSQL string
	//go:embed statements/version.sql
	versionSQL string
)

// Version is the version of the aggregate's last event; see [store.Store].
func (s *Store) Version(ctx context.Context, aggregateType string, aggregateID uuid.UUID) (int, error) {
	var version int
	err := s.pool.QueryRow(ctx, versionSQL, aggregateType, aggregateID).Scan(&version)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	return version, fault(ctx, "read the version of an aggregate", err)
}

// Stream yields the events of an aggregate; see [store.Store].
func (s *Store) Stream(
	ctx context.Context, aggregateType string, aggregateID uuid.UUID, afterVersion int,
) iter.Seq2[events.Event, error] {
	return stream(ctx, s.read, aggregateType, aggregateID, afterVersion)
}

// reading is [Store.read], or another's.
type reading func(ctx context.Context, doing, statement string, args ...any) ([]store.Recorded, error)

func stream(
	ctx context.Context, read reading, aggregateType string, aggregateID uuid.UUID, afterVersion int,
) iter.Seq2[events.Event, error] {
	return func(yield func(events.Event, error) bool) {
		for {
			page, err := read(ctx, "stream an aggregate", byAggregateSQL,
				aggregateType, aggregateID, afterVersion, pageSize, 0)
			if err != nil {
				yield(events.Event{}, err)
				return
			}
			for _, r := range page {
				if !yield(r.Event, nil) {
					return
				}
				afterVersion = r.AggregateVersion
			}
			if len(page) < pageSize {
				return
			}
		}
	}
}

// All yields events in commit order; see [store.Store].
func (s *Store) All(ctx context.Context, after store.Position) iter.Seq2[store.Recorded, error] {
	return func(yield func(store.Recorded, error) bool) {
		for {
			page, err := s.read(ctx, "read all events", allSQL, transactionID(after), after.ID, pageSize)
			if err != nil {
				yield(store.Recorded{}, err)
				return
			}
			for _, r := range page {
				if !yield(r, nil) {
					return
				}
				after = r.Position
			}
			if len(page) < pageSize {
				return
			}
		}
	}
}

func transactionID(p store.Position) pgtype.Uint64 {
	return pgtype.Uint64{Uint64: p.Transaction, Valid: true}
}

// ByAggregate reads a page of an aggregate's events; see [store.Store].
func (s *Store) ByAggregate(
	ctx context.Context, aggregateType string, aggregateID uuid.UUID, q store.Query,
) (store.Page, error) {
	read := "aggregate " + aggregateType + "/" + aggregateID.String()
	q, err := q.Check()
	if err != nil {
		return store.Page{}, err
	}
	var version int64
	if q.After != "" {
		if version, _, err = q.After.Place(read); err != nil {
			return store.Page{}, err
		}
	}
	list, err := s.read(ctx, "read an aggregate", byAggregateSQL, aggregateType, aggregateID, version, q.Limit+1, q.Offset)
	return page(list, err, q.Limit, func(last store.Recorded) store.Cursor {
		return store.NewCursor(read, int64(last.AggregateVersion), 0)
	})
}

// ByCorrelation reads a page of a chain of causes; see [store.Store].
func (s *Store) ByCorrelation(ctx context.Context, correlationID uuid.UUID, q store.Query) (store.Page, error) {
	return s.byTime(ctx, byCorrelationSQL, "correlation", correlationID.String(), pgtype.NegativeInfinity, q)
}

// ByType reads a page of the events of a type; see [store.Store].
func (s *Store) ByType(ctx context.Context, eventType string, q store.Query) (store.Page, error) {
	return s.byTime(ctx, byTypeSQL, "type", eventType, pgtype.Infinity, q)
}

// ByTenant reads a page of a tenant's events; see [store.Store].
func (s *Store) ByTenant(ctx context.Context, tenantID uuid.UUID, q store.Query) (store.Page, error) {
	return s.byTime(ctx, byTenantSQL, "tenant", tenantID.String(), pgtype.Infinity, q)
}

// byTime reads a page in the order of (created_at, id), which begins at one of the two infinities.
func (s *Store) byTime(
	ctx context.Context, statement, kind, key string, begin pgtype.InfinityModifier, q store.Query,
) (store.Page, error) {
	read := kind + " " + key
	q, err := q.Check()
	if err != nil {
		return store.Page{}, err
	}
	createdAt, id := pgtype.Timestamptz{InfinityModifier: begin, Valid: true}, int64(math.MaxInt64)
	if q.After != "" {
		var micros int64
		if micros, id, err = q.After.Place(read); err != nil {
			return store.Page{}, err
		}
		createdAt = pgtype.Timestamptz{Time: time.UnixMicro(micros), Valid: true}
	}
	list, err := s.read(ctx, "read by "+kind, statement, key, createdAt, id, q.Limit+1, q.Offset)
	return page(list, err, q.Limit, func(last store.Recorded) store.Cursor {
		return store.NewCursor(read, last.CreatedAt.UnixMicro(), last.Position.ID)
	})
}

// page makes a page of what was read with a limit one higher, which tells whether there is more.
func page(list []store.Recorded, err error, limit int, cursor func(store.Recorded) store.Cursor) (store.Page, error) {
	if err != nil {
		return store.Page{}, err
	}
	var p store.Page
	if len(list) > limit {
		list = list[:limit]
		p.Next = cursor(list[limit-1])
	}
	p.Events = make([]events.Event, len(list))
	for i, r := range list {
		p.Events[i] = r.Event
	}
	return p, nil
}

// querier is the pool, or a transaction.
type querier interface {
	Query(ctx context.Context, statement string, args ...any) (pgx.Rows, error)
}

// read runs one of the statements that select whole events.
func (s *Store) read(ctx context.Context, doing, statement string, args ...any) ([]store.Recorded, error) {
	return read(ctx, s.pool, doing, statement, args...)
}

func read(ctx context.Context, q querier, doing, statement string, args ...any) ([]store.Recorded, error) {
	rows, err := q.Query(ctx, statement, args...)
	if err != nil {
		return nil, fault(ctx, doing, err)
	}
	var (
		list                          []store.Recorded
		r                             store.Recorded
		clinicID, causationID, userID pgtype.UUID
		transactionID                 pgtype.Uint64
	)
	// One set of targets for all rows: pgx plans them once. Of the JSON each row gets its own. An id is given as bytes,
	// since a uuid.UUID is read by its text.
	_, err = pgx.ForEachRow(rows, []any{
		(*[16]byte)(&r.Event.ID), &r.Type, &r.AggregateType, (*[16]byte)(&r.AggregateID), &r.AggregateVersion,
		(*[16]byte)(&r.TenantID), &clinicID, (*[16]byte)(&r.CorrelationID), &causationID, &userID, &r.CreatedAt, (*[]byte)(&r.Data), (*[]byte)(&r.Metadata),
		&transactionID, &r.Position.ID,
	}, func() error {
		r.ClinicID, r.CausationID, r.UserID = nullUUID(clinicID), nullUUID(causationID), nullUUID(userID)
		r.CreatedAt = r.CreatedAt.UTC()
		r.Position.Transaction = transactionID.Uint64
		if len(list) == cap(list) {
			list = slices.Grow(list, max(minGrowth, 3*len(list)))
		}
		list = append(list, r)
		return nil
	})
	return list, fault(ctx, doing, err)
}

// minGrowth is for how many events there is room at first. It grows fourfold and so meets [pageSize]: an event is large,
// and to double or less would copy most of them twice.
const minGrowth = 4

func nullUUID(id pgtype.UUID) uuid.NullUUID { return uuid.NullUUID{UUID: id.Bytes, Valid: id.Valid} }

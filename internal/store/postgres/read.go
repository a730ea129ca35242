package postgres

import (
	"context"
	_ "embed"
	"errors"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/healz/worker/internal/store"
)

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
	//go:embed statements/by_id.sql
	byIDSQL string
	//go:embed statements/search.sql
	searchSQL string
	//go:embed statements/search_end.sql
	searchEndSQL string
)

// querier is the pool, a connection or a transaction.
type querier interface {
	Query(ctx context.Context, statement string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, statement string, args ...any) pgx.Row
	Exec(ctx context.Context, statement string, args ...any) (pgconn.CommandTag, error)
	// Begin begins a transaction, or a savepoint of the one that it is.
	Begin(ctx context.Context) (pgx.Tx, error)
}

// queries are the store's reads, on the pool or in a transaction.
type queries struct{ querier }

// Select returns the events of a read; see [store.Source].
func (q queries) Select(ctx context.Context, s store.Selection) ([]store.Recorded, bool, error) {
	var statement string
	after := []any{timestamp(s.After.Value), s.After.ID}
	switch s.Read {
	case store.ReadAggregate:
		statement, after = byAggregateSQL, []any{s.After.Value}
	case store.ReadCorrelation:
		statement = byCorrelationSQL
	case store.ReadType:
		statement = byTypeSQL
	case store.ReadTenant:
		statement = byTenantSQL
	case store.ReadAll:
		statement, after[0] = allSQL, pgtype.Uint64{Uint64: uint64(s.After.Value), Valid: true}
	}
	args := make([]any, 0, len(s.Key)+len(after)+2)
	for _, k := range s.Key {
		args = append(args, k)
	}
	args = append(append(args, after...), s.Limit, s.Offset)
	found, more, err := q.read(ctx, s.MaxBytes, selecting(statement, s.WithoutData), args...)
	return found, more || len(found) == s.Limit, fault(ctx, "read events by "+string(s.Read), err)
}

// Scan examines events along an index; see [store.Source].
func (q queries) Scan(ctx context.Context, s store.Scan) ([]store.Recorded, *store.SortKey, error) {
	statement, endStatement, args := scanStatements(s)
	found, _, err := q.read(ctx, 0, selecting(statement, s.WithoutData), args)
	if err != nil || len(found) == s.Limit {
		return found, nil, fault(ctx, "search events", err)
	}
	var end pgtype.Timestamptz
	var id int64
	err = q.QueryRow(ctx, endStatement, args).Scan(&end, &id)
	if errors.Is(err, pgx.ErrNoRows) {
		return found, nil, nil
	}
	return found, &store.SortKey{Value: timeOf(end).UnixMicro(), ID: id}, fault(ctx, "search events", err)
}

// scanStatements are the statements of a scan, which differ by its index, and their arguments.
func scanStatements(s store.Scan) (statement, endStatement string, args pgx.NamedArgs) {
	// The rows of one key are few and are sorted. No index of all rows has this order, so the planner scans none for it.
	order := "ROW (created_at, id) DESC"
	few := func(column, parameter string) string {
		return column + " = " + parameter + " AND created_at >= @from AND (created_at, id) < (@created_at, @id)"
	}
	// The rows of one key are many, in the order of an index on the key, created_at and id.
	many := func(column, parameter string) string {
		order = column + " DESC, created_at DESC, id DESC"
		return "(" + column + ", created_at) >= (" + parameter + ", @from)" +
			" AND (" + column + ", created_at, id) < (" + parameter + ", @created_at, @id)"
	}
	var condition string
	switch s.Index {
	case store.IndexCausation:
		condition = few("causation_id", "@causation")
	case store.IndexAggregate:
		condition = few("aggregate_id", "@aggregate")
	case store.IndexCorrelation:
		condition = many("correlation_id", "@correlation")
	case store.IndexTenant:
		condition = many("tenant_id", "@tenant")
	case store.IndexType:
		condition = many("event_type", "@type")
	case store.IndexTime:
		condition, order = "created_at >= @from AND (created_at, id) < (@created_at, @id)", "created_at DESC, id DESC"
	}
	complete := strings.NewReplacer("{{condition}}", condition, "{{order}}", order).Replace
	orNull := func(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: id != uuid.Nil} }
	return complete(searchSQL), complete(searchEndSQL), pgx.NamedArgs{
		"causation": orNull(s.Search.CausationID), "aggregate": orNull(s.Search.AggregateID),
		"correlation": orNull(s.Search.CorrelationID), "tenant": orNull(s.Search.TenantID),
		"type": pgtype.Text{String: s.Search.Type, Valid: s.Search.Type != ""},
		"from": timestamp(s.From), "created_at": timestamp(s.Before.Value), "id": s.Before.ID,
		"reach": s.Reach, "limit": s.Limit,
	}
}

// timestamp is a time in microseconds. Its ends are the infinities, as [events.FormatTime] writes them.
func timestamp(micros int64) pgtype.Timestamptz {
	switch micros {
	case math.MinInt64:
		return pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}
	case math.MaxInt64:
		return pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}
	}
	return pgtype.Timestamptz{Time: time.UnixMicro(micros), Valid: true}
}

// timeOf is the reverse of timestamp.
func timeOf(t pgtype.Timestamptz) time.Time {
	switch t.InfinityModifier {
	case pgtype.NegativeInfinity:
		return time.UnixMicro(math.MinInt64).UTC()
	case pgtype.Infinity:
		return time.UnixMicro(math.MaxInt64).UTC()
	case pgtype.Finite:
	}
	return t.Time.UTC()
}

// selecting returns a statement that selects whole events, or the same without their data.
func selecting(statement string, withoutData bool) string {
	if withoutData {
		return strings.Replace(statement, "event_data, metadata", "NULL, NULL", 1)
	}
	return statement
}

// errFull ends a read whose events have reached its limit of bytes.
var errFull = errors.New("the limit of bytes is reached")

// read runs one of the statements that select whole events. There may be more if it ends at maxBytes of data; 0 is no bound.
func (q queries) read(ctx context.Context, maxBytes int, statement string, args ...any) (list []store.Recorded, more bool, err error) {
	rows, _ := q.Query(ctx, statement, args...) // ForEachRow returns the error
	size := 0
	var (
		r                             store.Recorded
		clinicID, causationID, userID pgtype.UUID
		transactionID                 pgtype.Uint64
		createdAt                     pgtype.Timestamptz
	)
	// One set of targets for all rows: pgx plans them once. Of the JSON each row gets its own. An id is given as bytes,
	// since a uuid.UUID is read by its text.
	_, err = pgx.ForEachRow(rows, []any{
		(*[16]byte)(&r.Event.ID), &r.Type, &r.AggregateType, (*[16]byte)(&r.AggregateID), &r.AggregateVersion,
		(*[16]byte)(&r.TenantID), &clinicID, (*[16]byte)(&r.CorrelationID), &causationID, &userID, &createdAt, (*[]byte)(&r.Data), (*[]byte)(&r.Metadata),
		&transactionID, &r.Position.ID,
	}, func() error {
		if size += r.Size(); maxBytes > 0 && size > maxBytes && len(list) > 0 {
			return errFull
		}
		r.ClinicID, r.CausationID, r.UserID = nullUUID(clinicID), nullUUID(causationID), nullUUID(userID)
		r.CreatedAt = timeOf(createdAt)
		r.Position.Transaction = transactionID.Uint64
		if len(list) == cap(list) {
			list = slices.Grow(list, max(minGrowth, 3*len(list)))
		}
		list = append(list, r)
		return nil
	})
	if errors.Is(err, errFull) {
		return list, true, nil
	}
	return list, false, err
}

// minGrowth is for how many events there is room at first. It grows fourfold and so meets the 1024 of a stream: an event
// is large, and to double or less would copy most of them twice.
const minGrowth = 4

func nullUUID(id pgtype.UUID) uuid.NullUUID { return uuid.NullUUID{UUID: id.Bytes, Valid: id.Valid} }

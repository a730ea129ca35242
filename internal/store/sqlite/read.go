package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/store"
)

const (
	columns = `id, event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id,
		causation_id, correlation_id, user_id, created_at, event_data, metadata`

	// The parameters of a read are its key, the sort key after which it begins, limit and offset.
	selectByAggregate = `SELECT ` + columns + ` FROM events
		WHERE aggregate_type = ? AND aggregate_id = ? AND (aggregate_version, id) > (?, ?)
		ORDER BY aggregate_version, id LIMIT ? OFFSET ?`
	selectByCorrelation = `SELECT ` + columns + ` FROM events
		WHERE correlation_id = ? AND (created_at, id) > (?, ?)
		ORDER BY created_at, id LIMIT ? OFFSET ?`
	selectByType = `SELECT ` + columns + ` FROM events
		WHERE event_type = ? AND (created_at, id) < (?, ?)
		ORDER BY created_at DESC, id DESC LIMIT ? OFFSET ?`
	selectByTenant = `SELECT ` + columns + ` FROM events
		WHERE tenant_id = ? AND (created_at, id) < (?, ?)
		ORDER BY created_at DESC, id DESC LIMIT ? OFFSET ?`
	selectAll = `SELECT ` + columns + ` FROM events WHERE id > ? ORDER BY id LIMIT ? OFFSET ?`

	// A search scans one index, up to :reach rows of it, and checks the other conditions on those rows. Only the events
	// that it finds are read with their data.
	selectSearch = `SELECT ` + columns + ` FROM events WHERE id IN (
			SELECT id FROM (
				SELECT id, causation_id, aggregate_id, correlation_id, tenant_id, event_type, created_at
				FROM events {{condition}} AND created_at >= :from AND (created_at, id) < (:created_at, :id)
				ORDER BY {{order}} LIMIT :reach
			)
			WHERE (:causation IS NULL OR causation_id = :causation)
				AND (:aggregate IS NULL OR aggregate_id = :aggregate)
				AND (:correlation IS NULL OR correlation_id = :correlation)
				AND (:tenant IS NULL OR tenant_id = :tenant)
				AND (:type IS NULL OR event_type = :type)
			ORDER BY {{order}} LIMIT :limit
		)
		ORDER BY +created_at DESC, id DESC`
	selectSearchEnd = `SELECT created_at, id FROM events {{condition}}
			AND created_at >= :from AND (created_at, id) < (:created_at, :id)
		ORDER BY {{order}} LIMIT 1 OFFSET :reach - 1`
)

// querier is the pool of readers, or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// queries are the store's reads, on the pool or in a transaction.
type queries struct{ querier }

// Select returns the events of a read. See [store.Source].
func (q queries) Select(ctx context.Context, s store.Selection) ([]store.Recorded, bool, error) {
	var query string
	after := []any{s.After.Value, s.After.ID}
	switch s.Read {
	case store.ReadAggregate:
		query = selectByAggregate
	case store.ReadCorrelation:
		query = selectByCorrelation
	case store.ReadType:
		query = selectByType
	case store.ReadTenant:
		query = selectByTenant
	case store.ReadAll:
		query, after = selectAll, after[1:]
	}
	args := make([]any, 0, len(s.Key)+len(after)+2)
	for _, k := range s.Key {
		args = append(args, k)
	}
	found, more, err := q.read(ctx, s.MaxBytes, selecting(query, s.WithoutData), append(append(args, after...), s.Limit, s.Offset)...)
	return found, more || len(found) == s.Limit, translate("read events by "+string(s.Read), err)
}

// Scan examines events along an index. See [store.Source].
func (q queries) Scan(ctx context.Context, s store.Scan) ([]store.Recorded, *store.SortKey, error) {
	const doing = "search events"
	query, endQuery, args := scanQueries(s)
	found, _, err := q.read(ctx, 0, selecting(query, s.WithoutData), args...)
	if err != nil || len(found) == s.Limit {
		return found, nil, translate(doing, err)
	}
	var end store.SortKey
	err = q.QueryRowContext(ctx, endQuery, args...).Scan(&end.Value, &end.ID)
	if errors.Is(err, sql.ErrNoRows) {
		return found, nil, nil
	}
	return found, &end, translate(doing, err)
}

// scanQueries are the queries of a scan, which differ by its index, and their arguments.
func scanQueries(s store.Scan) (query, endQuery string, args []any) {
	order := "created_at DESC, id DESC"
	var condition string
	switch s.Index {
	case store.IndexCausation:
		condition, order = "INDEXED BY idx_events_causation WHERE causation_id = :causation", "+created_at DESC, id DESC"
	case store.IndexAggregate:
		condition = "INDEXED BY events_aggregate_version_unique WHERE aggregate_id = :aggregate"
	case store.IndexCorrelation:
		condition = "INDEXED BY idx_events_correlation WHERE correlation_id = :correlation"
	case store.IndexTenant:
		condition = "INDEXED BY idx_events_tenant WHERE tenant_id = :tenant"
	case store.IndexType:
		condition = "INDEXED BY idx_events_type WHERE event_type = :type"
	case store.IndexTime:
		condition = "INDEXED BY idx_events_created_at WHERE true"
	}
	complete := strings.NewReplacer("{{condition}}", condition, "{{order}}", order).Replace
	orNull := func(id uuid.UUID) sql.NullString { return sql.NullString{String: id.String(), Valid: id != uuid.Nil} }
	return complete(selectSearch), complete(selectSearchEnd), []any{
		sql.Named("causation", orNull(s.Search.CausationID)), sql.Named("aggregate", orNull(s.Search.AggregateID)),
		sql.Named("correlation", orNull(s.Search.CorrelationID)), sql.Named("tenant", orNull(s.Search.TenantID)),
		sql.Named("type", sql.NullString{String: s.Search.Type, Valid: s.Search.Type != ""}),
		sql.Named("from", s.From), sql.Named("created_at", s.Before.Value), sql.Named("id", s.Before.ID),
		sql.Named("reach", s.Reach), sql.Named("limit", s.Limit),
	}
}

// selecting returns a query that selects whole events, or the same without their data.
func selecting(query string, withoutData bool) string {
	if withoutData {
		return strings.Replace(query, "event_data, metadata", "'', NULL", 1)
	}
	return query
}

// read reads the events that a query finds. There may be more if it ends at maxBytes of data; 0 is no bound.
func (q queries) read(ctx context.Context, maxBytes int, query string, args ...any) (found []store.Recorded, more bool, err error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, false, err
	}
	defer rows.Close()
	size := 0
	for rows.Next() {
		r, err := scan(rows)
		if err != nil {
			return nil, false, err
		}
		if size += r.Size(); maxBytes > 0 && size > maxBytes && len(found) > 0 {
			return found, true, nil
		}
		found = append(found, r)
	}
	return found, false, rows.Err()
}

// scan reads the columns of one event.
func scan(row interface{ Scan(into ...any) error }) (store.Recorded, error) {
	var r store.Recorded
	var created int64
	var data string
	var metadata sql.NullString
	err := row.Scan(&r.Position.ID, &r.Event.ID, &r.Type, &r.AggregateType, &r.AggregateID, &r.AggregateVersion,
		&r.TenantID, &r.ClinicID, &r.CausationID, &r.CorrelationID, &r.UserID, &created, &data, &metadata)
	r.CreatedAt = time.UnixMicro(created).UTC()
	r.Data = json.RawMessage(data)
	if metadata.Valid {
		r.Metadata = json.RawMessage(metadata.String)
	}
	return r, err
}

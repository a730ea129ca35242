package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"iter"
	"math"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

const (
	// streamPage and streamBytes bound what a stream, or a batch of the relay, holds in memory.
	streamPage  = 500
	streamBytes = 8 << 20

	columns = `id, event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, clinic_id,
		causation_id, correlation_id, user_id, created_at, event_data, metadata`

	// The pages' parameters are the read's own, the place behind which the page begins, limit and offset.
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

	selectAll     = `SELECT ` + columns + ` FROM events WHERE id > ? ORDER BY id LIMIT ?`
	selectVersion = `SELECT coalesce(max(aggregate_version), 0) FROM events WHERE aggregate_type = ? AND aggregate_id = ?`
	selectLastID  = `SELECT coalesce(max(id), 0) FROM events`
)

// place is a place in the order of a read, see [store.NewCursor].
type place struct{ sortKey, id int64 }

// ascending and descending are the places before the first event of a read in that order.
func ascending() place  { return place{math.MinInt64, math.MinInt64} }
func descending() place { return place{math.MaxInt64, math.MaxInt64} }

// ByAggregate reads a page of an aggregate's events. See [store.Store].
func (s *Store) ByAggregate(
	ctx context.Context, aggregateType string, aggregateID uuid.UUID, q store.Query,
) (store.Page, error) {
	version := func(r store.Recorded) int64 { return int64(r.AggregateVersion) }
	return s.page(ctx, "aggregate", selectByAggregate, ascending(), version, q, aggregateType, aggregateID.String())
}

// ByCorrelation reads a page of a chain of causes. See [store.Store].
func (s *Store) ByCorrelation(ctx context.Context, correlationID uuid.UUID, q store.Query) (store.Page, error) {
	return s.page(ctx, "correlation", selectByCorrelation, ascending(), createdAt, q, correlationID.String())
}

// ByType reads a page of the events of a type. See [store.Store].
func (s *Store) ByType(ctx context.Context, eventType string, q store.Query) (store.Page, error) {
	return s.page(ctx, "type", selectByType, descending(), createdAt, q, eventType)
}

// ByTenant reads a page of a tenant's events. See [store.Store].
func (s *Store) ByTenant(ctx context.Context, tenantID uuid.UUID, q store.Query) (store.Page, error) {
	return s.page(ctx, "tenant", selectByTenant, descending(), createdAt, q, tenantID.String())
}

func createdAt(r store.Recorded) int64 { return r.CreatedAt.UnixMicro() }

// page reads a page by one of the queries above, and one event more to learn whether there is a next.
func (s *Store) page(
	ctx context.Context, name, query string, beginning place, sortKey func(store.Recorded) int64, q store.Query,
	key ...string,
) (store.Page, error) {
	doing := "read events by " + name
	q, err := q.Check()
	if err != nil {
		return store.Page{}, translate(doing, err)
	}
	read := name
	args := make([]any, 0, len(key)+4)
	for _, k := range key {
		read += " " + k
		args = append(args, k)
	}
	after := beginning
	if q.After != "" {
		if after.sortKey, after.id, err = q.After.Place(read); err != nil {
			return store.Page{}, translate(doing, err)
		}
	}
	found, _, err := s.recorded(ctx, math.MaxInt, query, append(args, after.sortKey, after.id, q.Limit+1, q.Offset)...)
	if err != nil {
		return store.Page{}, translate(doing, err)
	}
	var page store.Page
	if len(found) > q.Limit {
		found = found[:q.Limit]
		last := found[q.Limit-1]
		page.Next = store.NewCursor(read, sortKey(last), last.Position.ID)
	}
	page.Events = make([]events.Event, len(found))
	for i, r := range found {
		page.Events[i] = r.Event
	}
	return page, nil
}

// Stream yields an aggregate's events after a version. See [store.Store].
func (s *Store) Stream(
	ctx context.Context, aggregateType string, aggregateID uuid.UUID, afterVersion int,
) iter.Seq2[events.Event, error] {
	return streamAggregate(ctx, s.recorded, aggregateType, aggregateID, afterVersion)
}

func streamAggregate(
	ctx context.Context, read readEvents, aggregateType string, aggregateID uuid.UUID, afterVersion int,
) iter.Seq2[events.Event, error] {
	return func(yield func(events.Event, error) bool) {
		version := afterVersion
		stream(ctx, read, "stream an aggregate's events",
			func() (string, []any) {
				return selectByAggregate, []any{aggregateType, aggregateID.String(), version, math.MaxInt64, streamPage, 0}
			},
			func(r store.Recorded, err error) bool {
				version = r.AggregateVersion
				return yield(r.Event, err)
			})
	}
}

// All yields the events after a position in commit order. See [store.Store].
func (s *Store) All(ctx context.Context, after store.Position) iter.Seq2[store.Recorded, error] {
	return func(yield func(store.Recorded, error) bool) {
		id := after.ID
		stream(ctx, s.recorded, "read all events",
			func() (string, []any) { return selectAll, []any{id, streamPage} },
			func(r store.Recorded, err error) bool {
				id = r.Position.ID
				return yield(r, err)
			})
	}
}

// stream yields what one query after the other finds, until one finds all there is. No read is open while it yields, so
// that a slow caller does not keep the log from being emptied.
func stream(
	ctx context.Context, read readEvents, doing string, next func() (query string, args []any), yield func(store.Recorded, error) bool,
) {
	for {
		query, args := next()
		found, more, err := read(ctx, streamBytes, query, args...)
		for _, r := range found {
			if !yield(r, nil) {
				return
			}
		}
		if err != nil {
			yield(store.Recorded{}, translate(doing, err))
			return
		}
		if !more && len(found) < streamPage {
			return
		}
	}
}

// Version is the version of an aggregate's last event. See [store.Store].
func (s *Store) Version(ctx context.Context, aggregateType string, aggregateID uuid.UUID) (int, error) {
	var version int
	err := s.readers.QueryRowContext(ctx, selectVersion, aggregateType, aggregateID.String()).Scan(&version)
	return version, translate("read an aggregate's version", err)
}

// recorded reads the events that a query finds, or as many as fit into so many bytes of data, one at least. It tells
// whether there were more.
func (s *Store) recorded(
	ctx context.Context, most int, query string, args ...any,
) (found []store.Recorded, more bool, err error) {
	return recorded(ctx, s.readers, most, query, args...)
}

// readEvents is [Store.recorded], or another's.
type readEvents func(ctx context.Context, most int, query string, args ...any) (found []store.Recorded, more bool, err error)

// querier is the pool of readers, or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func recorded(
	ctx context.Context, q querier, most int, query string, args ...any,
) (found []store.Recorded, more bool, err error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, false, err
	}
	defer rows.Close()
	for size := 0; rows.Next(); {
		r, err := scan(rows)
		if err != nil {
			return found, false, err
		}
		if size += len(r.Data) + len(r.Metadata); size > most && len(found) > 0 {
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

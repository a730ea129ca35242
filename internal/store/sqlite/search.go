package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/store"
)

// A search walks along one index, up to :reach rows of it, and looks for the rest of its conditions in what it comes by.
// Only the events that it finds are read with their data.
const (
	selectSearch = `SELECT ` + columns + ` FROM events WHERE id IN (
			SELECT id FROM (
				SELECT id, causation_id, aggregate_id, correlation_id, tenant_id, event_type, created_at
				FROM events {{walk}} AND created_at >= :from AND (created_at, id) < (:created_at, :id)
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
	selectSearchEnd = `SELECT created_at, id FROM events {{walk}}
			AND created_at >= :from AND (created_at, id) < (:created_at, :id)
		ORDER BY {{order}} LIMIT 1 OFFSET :reach - 1`
)

// Search reads a page of the events that a search chooses. See [store.Store].
func (s *Store) Search(ctx context.Context, search store.Search, q store.Query) (store.Page, error) {
	page, err := store.RunSearch(ctx, search, q, func(
		ctx context.Context, w store.Walk, behind *store.Place, limit int,
	) (store.Walked, error) {
		args := searchArgs(search, behind, limit)
		found, _, err := s.recorded(ctx, math.MaxInt, along(w, selectSearch), args...)
		if err != nil || len(found) == limit {
			return store.Walked{Found: found}, err
		}
		var micros, id int64
		err = s.readers.QueryRowContext(ctx, along(w, selectSearchEnd), args...).Scan(&micros, &id)
		if errors.Is(err, sql.ErrNoRows) {
			return store.Walked{Found: found}, nil
		}
		return store.Walked{Found: found, End: &store.Place{CreatedAt: time.UnixMicro(micros).UTC(), ID: id}}, err
	})
	return page, translate("search events", err)
}

// along completes a statement with a walk's index and condition, and its order.
func along(w store.Walk, statement string) string {
	order := "created_at DESC, id DESC"
	var walk string
	switch w {
	case store.WalkCausation:
		walk, order = "INDEXED BY idx_events_causation WHERE causation_id = :causation", "+created_at DESC, id DESC"
	case store.WalkAggregate:
		walk = "INDEXED BY events_aggregate_version_unique WHERE aggregate_id = :aggregate"
	case store.WalkCorrelation:
		walk = "INDEXED BY idx_events_correlation WHERE correlation_id = :correlation"
	case store.WalkTenant:
		walk = "INDEXED BY idx_events_tenant WHERE tenant_id = :tenant"
	case store.WalkType:
		walk = "INDEXED BY idx_events_type WHERE event_type = :type"
	case store.WalkTime:
		walk = "INDEXED BY idx_events_created_at WHERE true"
	}
	return strings.NewReplacer("{{walk}}", walk, "{{order}}", order).Replace(statement)
}

func searchArgs(s store.Search, behind *store.Place, limit int) []any {
	from, until := int64(math.MinInt64), place{math.MaxInt64, math.MaxInt64}
	if !s.From.IsZero() {
		from = s.From.UnixMicro()
	}
	switch {
	case behind != nil:
		until = place{behind.CreatedAt.UnixMicro(), behind.ID}
	case !s.Until.IsZero():
		until = place{s.Until.UnixMicro(), math.MinInt64}
	}
	return []any{
		sql.Named("causation", orNull(s.CausationID)),
		sql.Named("aggregate", orNull(s.AggregateID)), sql.Named("correlation", orNull(s.CorrelationID)),
		sql.Named("tenant", orNull(s.TenantID)), sql.Named("type", sql.NullString{String: s.Type, Valid: s.Type != ""}),
		sql.Named("from", from), sql.Named("created_at", until.sortKey), sql.Named("id", until.id),
		sql.Named("reach", store.SearchReach), sql.Named("limit", limit),
	}
}

func orNull(id uuid.UUID) sql.NullString {
	return sql.NullString{String: id.String(), Valid: id != uuid.Nil}
}

package postgres

import (
	"context"
	_ "embed"
	"errors"
	"math"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/healz/worker/internal/store"
)

var (
	//go:embed statements/search.sql
	searchSQL string
	//go:embed statements/search_end.sql
	searchEndSQL string
)

// Search reads a page of the events that a search chooses; see [store.Store].
func (s *Store) Search(ctx context.Context, search store.Search, q store.Query) (store.Page, error) {
	return store.RunSearch(ctx, search, q, func(
		ctx context.Context, w store.Walk, behind *store.Place, limit int,
	) (store.Walked, error) {
		args := searchArgs(search, behind, limit)
		found, err := s.read(ctx, "search", along(w, searchSQL), args)
		if err != nil || len(found) == limit {
			return store.Walked{Found: found}, err
		}
		var end store.Place
		err = s.pool.QueryRow(ctx, along(w, searchEndSQL), args).Scan(&end.CreatedAt, &end.ID)
		if errors.Is(err, pgx.ErrNoRows) {
			return store.Walked{Found: found}, nil
		}
		return store.Walked{Found: found, End: &end}, fault(ctx, "search", err)
	})
}

// along completes a statement with a walk's condition and order.
func along(w store.Walk, statement string) string {
	// These few rows are sorted; no index of all rows has this order, so that none is walked for it.
	order := "ROW (created_at, id) DESC"
	few := func(column, parameter string) string {
		return column + " = " + parameter + " AND created_at >= @from AND (created_at, id) < (@created_at, @id)"
	}
	var walk string
	switch w {
	case store.WalkCausation:
		walk = few("causation_id", "@causation")
	case store.WalkAggregate:
		walk = few("aggregate_id", "@aggregate")
	case store.WalkCorrelation:
		walk, order = many("correlation_id", "@correlation")
	case store.WalkTenant:
		walk, order = many("tenant_id", "@tenant")
	case store.WalkType:
		walk, order = many("event_type", "@type")
	case store.WalkTime:
		walk, order = "created_at >= @from AND (created_at, id) < (@created_at, @id)", "created_at DESC, id DESC"
	}
	return strings.NewReplacer("{{walk}}", walk, "{{order}}", order).Replace(statement)
}

// many is a walk along the index on a column, created_at and id.
func many(column, parameter string) (walk, order string) {
	return "(" + column + ", created_at) >= (" + parameter + ", @from)" +
			" AND (" + column + ", created_at, id) < (" + parameter + ", @created_at, @id)",
		column + " DESC, created_at DESC, id DESC"
}

func searchArgs(s store.Search, behind *store.Place, limit int) pgx.NamedArgs {
	from := pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}
	if !s.From.IsZero() {
		from = timestamp(s.From)
	}
	createdAt, id := pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}, int64(math.MaxInt64)
	switch {
	case behind != nil:
		createdAt, id = timestamp(behind.CreatedAt), behind.ID
	case !s.Until.IsZero():
		createdAt, id = timestamp(s.Until), math.MinInt64
	}
	return pgx.NamedArgs{
		"causation": orNull(s.CausationID), "aggregate": orNull(s.AggregateID),
		"correlation": orNull(s.CorrelationID), "tenant": orNull(s.TenantID),
		"type": pgtype.Text{String: s.Type, Valid: s.Type != ""},
		"from": from, "created_at": createdAt, "id": id, "reach": store.SearchReach, "limit": limit,
	}
}

func timestamp(t time.Time) pgtype.Timestamptz { return pgtype.Timestamptz{Time: t, Valid: true} }

func orNull(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: id != uuid.Nil} }

package postgres

import (
	"context"
	_ "embed"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/healz/worker/internal/store"
)

var (
	//go:embed statements/version.sql
	versionSQL string
	//go:embed statements/end.sql
	endSQL string
	//go:embed statements/since.sql
	sinceSQL string
	//go:embed statements/handled_of.sql
	handledOfSQL string
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

// ByID reads one event; see [store.Store].
func (s *Store) ByID(ctx context.Context, eventID uuid.UUID) (store.Recorded, error) {
	found, _, err := s.read(ctx, 0, byIDSQL, eventID)
	if err == nil && len(found) == 0 {
		err = store.ErrNoEvent
	}
	if err != nil {
		return store.Recorded{}, fault(ctx, "read an event", err)
	}
	return found[0], nil
}

// HandledOf returns by whom and when events were handled; see [store.Store].
func (s *Store) HandledOf(ctx context.Context, eventIDs []uuid.UUID) (map[uuid.UUID][]store.Handling, error) {
	rows, _ := s.pool.Query(ctx, handledOfSQL, eventIDs) // ForEachRow returns the error
	handled := make(map[uuid.UUID][]store.Handling)
	var (
		id      uuid.UUID
		handler string
		at      time.Time
	)
	_, err := pgx.ForEachRow(rows, []any{&id, &handler, &at}, func() error {
		handled[id] = append(handled[id], store.Handling{Handler: handler, At: at.UTC()})
		return nil
	})
	return handled, fault(ctx, "read who has handled events", err)
}

// End is where reading in commit order ends now; see [store.Store].
func (s *Store) End(ctx context.Context) (store.Position, error) {
	return s.position(ctx, "read the last position", endSQL)
}

// Since is where to begin for what was created at t or later; see [store.Store].
func (s *Store) Since(ctx context.Context, t time.Time) (store.Position, error) {
	return s.position(ctx, "read the first position since a time", sinceSQL, t)
}

// position is the one that a statement selects, or the zero position if it selects none.
func (s *Store) position(ctx context.Context, doing, statement string, args ...any) (p store.Position, err error) {
	if err := CheckRestored(ctx, s.pool); err != nil {
		return p, err
	}
	var transaction pgtype.Uint64
	err = s.pool.QueryRow(ctx, statement, args...).Scan(&transaction, &p.ID)
	if errors.Is(err, pgx.ErrNoRows) {
		return p, nil
	}
	p.Transaction = transaction.Uint64
	return p, fault(ctx, doing, err)
}

package postgres

import (
	"context"
	_ "embed"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/healz/worker/internal/store"
)

var (
	//go:embed statements/by_id.sql
	byIDSQL string
	//go:embed statements/handled_of.sql
	handledOfSQL string
)

// ByID reads one event; see [store.Store].
func (s *Store) ByID(ctx context.Context, eventID uuid.UUID) (store.Recorded, error) {
	list, err := s.read(ctx, "read an event", byIDSQL, eventID)
	if err != nil {
		return store.Recorded{}, err
	}
	if len(list) == 0 {
		return store.Recorded{}, store.ErrNoEvent
	}
	return list[0], nil
}

// HandledOf returns by whom and when events were handled; see [store.Store].
func (s *Store) HandledOf(ctx context.Context, eventIDs []uuid.UUID) (map[uuid.UUID][]store.Handling, error) {
	const doing = "read who has handled events"
	rows, err := s.pool.Query(ctx, handledOfSQL, eventIDs)
	if err != nil {
		return nil, fault(ctx, doing, err)
	}
	handled := make(map[uuid.UUID][]store.Handling)
	var (
		id      uuid.UUID
		handler string
		at      time.Time
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &handler, &at}, func() error {
		handled[id] = append(handled[id], store.Handling{Handler: handler, At: at.UTC()})
		return nil
	})
	return handled, fault(ctx, doing, err)
}

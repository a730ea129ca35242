package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/store"
)

const (
	selectVersion   = `SELECT coalesce(max(aggregate_version), 0) FROM events WHERE aggregate_type = ? AND aggregate_id = ?`
	selectLastID    = `SELECT coalesce(max(id), 0) FROM events`
	selectSince     = `SELECT coalesce((SELECT min(id) - 1 FROM events WHERE created_at >= ?), (` + selectLastID + `))`
	selectByID      = `SELECT ` + columns + ` FROM events WHERE event_id = ?`
	selectHandledOf = `SELECT event_id, handler, handled_at FROM handled
		WHERE event_id IN (SELECT value FROM json_each(?)) ORDER BY handled_at, handler`
)

// Version is the version of an aggregate's last event. See [store.Store].
func (s *Store) Version(ctx context.Context, aggregateType string, aggregateID uuid.UUID) (int, error) {
	var version int
	err := s.readers.QueryRowContext(ctx, selectVersion, aggregateType, aggregateID.String()).Scan(&version)
	return version, translate("read the version of an aggregate", err)
}

// ByID reads one event. See [store.Store].
func (s *Store) ByID(ctx context.Context, eventID uuid.UUID) (store.Recorded, error) {
	r, err := scan(s.readers.QueryRowContext(ctx, selectByID, eventID.String()))
	if errors.Is(err, sql.ErrNoRows) {
		return store.Recorded{}, store.ErrNoEvent
	}
	return r, translate("read an event", err)
}

// HandledOf returns by whom and when events were handled. See [store.Store].
func (s *Store) HandledOf(ctx context.Context, eventIDs []uuid.UUID) (map[uuid.UUID][]store.Handling, error) {
	const doing = "read who has handled events"
	ids, err := json.Marshal(eventIDs)
	if err != nil {
		return nil, translate(doing, err)
	}
	rows, err := s.readers.QueryContext(ctx, selectHandledOf, string(ids))
	if err != nil {
		return nil, translate(doing, err)
	}
	defer rows.Close()
	handled := make(map[uuid.UUID][]store.Handling)
	for rows.Next() {
		var (
			id      uuid.UUID
			handler string
			micros  int64
		)
		if err := rows.Scan(&id, &handler, &micros); err != nil {
			return nil, translate(doing, err)
		}
		handled[id] = append(handled[id], store.Handling{Handler: handler, At: time.UnixMicro(micros).UTC()})
	}
	return handled, translate(doing, rows.Err())
}

// End is where reading in commit order ends now. See [store.Store].
func (s *Store) End(ctx context.Context) (store.Position, error) {
	var p store.Position
	err := s.readers.QueryRowContext(ctx, selectLastID).Scan(&p.ID)
	return p, translate("read the last position", err)
}

// Since is where to begin for what was created at t or later. See [store.Store].
func (s *Store) Since(ctx context.Context, t time.Time) (store.Position, error) {
	var p store.Position
	err := s.readers.QueryRowContext(ctx, selectSince, t.UnixMicro()).Scan(&p.ID)
	return p, translate("read the first position since a time", err)
}

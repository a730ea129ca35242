package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

const (
	selectHandled = `SELECT handler, fingerprint FROM handled WHERE event_id = ? ORDER BY handler`
	insertHandled = `INSERT INTO handled (event_id, handler, fingerprint, handled_at) VALUES (?, ?, ?, ?)`
	// selectRecord tells of the records of an event how many contradict it, and whether the handler's is among them.
	selectRecord = `SELECT count(*) FILTER (WHERE fingerprint <> ?), count(*) FILTER (WHERE handler = ?)
		FROM handled WHERE event_id = ?`
)

// Handled returns the names of the handlers that have handled e. See [store.Store].
func (s *Store) Handled(ctx context.Context, e events.Event) ([]string, error) {
	doing := fmt.Sprintf("read who has handled event %s", e.ID)
	rows, err := s.readers.QueryContext(ctx, selectHandled, e.ID.String())
	if err != nil {
		return nil, translate(doing, err)
	}
	defer rows.Close()
	said := e.Fingerprint()
	var handlers []string
	for rows.Next() {
		var handler string
		var fingerprint []byte
		if err := rows.Scan(&handler, &fingerprint); err != nil {
			return nil, translate(doing, err)
		}
		if !bytes.Equal(fingerprint, said[:]) {
			return nil, translate(doing, store.ErrContradiction)
		}
		handlers = append(handlers, handler)
	}
	return handlers, translate(doing, rows.Err())
}

// Record appends followUps together with the record that handler has handled e. See [store.Store].
func (s *Store) Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error {
	doing := fmt.Sprintf("record that %s has handled event %s", handler, e.ID)
	if err := store.CheckBatch(followUps); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	err := s.write(ctx, doing, func(ctx context.Context, tx *sql.Tx) error {
		if err := insertRecord(ctx, tx, handler, e); err != nil {
			return err
		}
		return insertBatch(ctx, tx, followUps)
	})
	if err == nil && len(followUps) > 0 {
		s.wakers.wake()
	}
	return err
}

func insertRecord(ctx context.Context, tx *sql.Tx, handler string, e events.Event) error {
	id, said := e.ID.String(), e.Fingerprint()
	var contradictions, records int
	if err := tx.QueryRowContext(ctx, selectRecord, said[:], handler, id).Scan(&contradictions, &records); err != nil {
		return err
	}
	switch {
	case contradictions > 0:
		return store.ErrContradiction
	case records > 0:
		return store.ErrHandled
	}
	_, err := tx.ExecContext(ctx, insertHandled, id, handler, said[:], time.Now().UnixMicro())
	return err
}

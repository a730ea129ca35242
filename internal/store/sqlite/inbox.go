package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

const (
	selectHandled = `SELECT handler, fingerprint FROM handled WHERE event_id = ? ORDER BY handler`
	insertHandled = `INSERT INTO handled (event_id, handler, fingerprint, handled_at) VALUES (?, ?, ?, ?)`
	// selectRecord counts the records of an event that contradict it, and those of the handler.
	selectRecord = `SELECT count(*) FILTER (WHERE fingerprint <> ?), count(*) FILTER (WHERE handler = ?)
		FROM handled WHERE event_id = ?`
	deleteHandled = `DELETE FROM handled WHERE (event_id, handler) IN
		(SELECT event_id, handler FROM handled WHERE handled_at < ? ORDER BY handled_at LIMIT ?)`

	insertParked = `INSERT INTO parked (event_id, handler, aggregate_id, aggregate_version, parked_at)
		SELECT ?1, ?2, ?3, ?4, ?5 WHERE NOT EXISTS (SELECT 1 FROM handled WHERE event_id = ?1 AND handler = ?2)
		ON CONFLICT DO NOTHING`
	selectParked = `SELECT event_id FROM parked WHERE aggregate_id = ? AND handler = ? AND aggregate_version < ?
		ORDER BY aggregate_version LIMIT 1`
	deleteParked = `DELETE FROM parked WHERE event_id = ? AND handler = ?`
)

// Handled returns the names of the handlers that have handled e. See [store.Store].
func (q queries) Handled(ctx context.Context, e events.Event) (names []string, err error) {
	records, err := q.handledBy(ctx, e)
	if err == nil {
		names, err = store.HandlersOf(e, records)
	}
	return names, translate("read who has handled an event", err)
}

func (q queries) handledBy(ctx context.Context, e events.Event) (records []store.HandledBy, err error) {
	rows, err := q.QueryContext(ctx, selectHandled, e.ID.String())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r store.HandledBy
		if err := rows.Scan(&r.Handler, &r.Fingerprint); err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, rows.Err()
}

// InTx registers SQL of a handler's own for the transaction in which the worker records that the handler has handled
// its event and appends what follows. A handler calls it with its context, as often as it likes, on a worker whose store
// is SQLite; anywhere else it is [store.ErrNoTransaction]. It only registers: once the handler has returned without an
// error, the transaction begins, record and follow-ups are written, and the work runs in the order of registration. The
// effect of all of it is exactly once, however often the event is delivered.
//
// An error of the work rolls everything back and is the handler's: the next try runs the handler anew, and all that it
// registers. Work does not run when another delivery of the event was first.
//
// While it runs no other writer can write to the file: keep the work to a few fast statements, and do all else in the handler
// itself. It closes its rows before it goes on, passes values as arguments (each text of a statement is kept
// prepared), and does not commit or roll back. It does not append events: those are what the handler returns.
func InTx(ctx context.Context, work func(ctx context.Context, tx *sql.Tx) error) error {
	return store.AddWork(ctx, work)
}

// Attempt returns the context for one attempt of a handler. See [store.Store].
func (s *Store) Attempt(ctx context.Context) context.Context { return store.WithWork[*sql.Tx](ctx) }

// Record appends followUps together with the record that handler has handled e. See [store.Store].
func (s *Store) Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error {
	doing := recording(handler, e)
	if err := store.CheckBatch(followUps); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	work := store.TakeWork[*sql.Tx](ctx)
	err := s.write(ctx, doing, func(_ context.Context, tx *sql.Tx) error {
		return record(ctx, tx, handler, e, followUps, work)
	})
	if err == nil && len(followUps) > 0 {
		s.wakers.wake()
	}
	return err
}

func recording(handler string, e events.Event) string {
	return fmt.Sprintf("record that %s has handled event %s", handler, e.ID)
}

// record inserts record and follow-ups and does the work, whose error is no fault of the store's.
func record(
	ctx context.Context, tx *sql.Tx, handler string, e events.Event, followUps []events.Event,
	work []func(context.Context, *sql.Tx) error,
) error {
	uncanceled := context.WithoutCancel(ctx)
	if err := insertRecord(uncanceled, tx, handler, e); err != nil {
		return err
	}
	if err := insertBatch(uncanceled, tx, followUps); err != nil {
		return err
	}
	for _, step := range work {
		if err := step(ctx, tx); err != nil && ctx.Err() == nil {
			return &store.WorkError{Err: err}
		} else if err != nil {
			return err
		}
	}
	return nil
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
	if err := insert(ctx, tx, insertHandled, id, handler, said[:], time.Now().UnixMicro()); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, deleteParked, id, handler)
	return err
}

// Park records that e is a dead letter of handler. See [store.Store].
func (s *Store) Park(ctx context.Context, handler string, e events.Event) error {
	_, err := s.exec(ctx, "park an event", insertParked,
		e.ID.String(), handler, e.AggregateID.String(), e.AggregateVersion, time.Now().UnixMicro())
	return err
}

// Parked returns behind which events e has to wait. See [store.Store].
func (q queries) Parked(ctx context.Context, e events.Event, handlers []string) (map[string]uuid.UUID, error) {
	firsts := make(map[string]uuid.UUID)
	for _, handler := range handlers {
		var first uuid.UUID
		err := q.QueryRowContext(ctx, selectParked, e.AggregateID.String(), handler, e.AggregateVersion).Scan(&first)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return nil, translate("read parked events", err)
		}
		firsts[handler] = first
	}
	return firsts, nil
}

// PruneHandled deletes records that are older than age. See [store.Store].
func (s *Store) PruneHandled(ctx context.Context, age time.Duration, limit int) (int, error) {
	n, err := s.exec(ctx, "prune the inbox", deleteHandled, time.Now().Add(-age).UnixMicro(), limit)
	return int(n), err
}

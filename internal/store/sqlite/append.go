package sqlite

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

//go:embed sql/insert_event.sql
var insertEvent string

const (
	selectHead = `SELECT aggregate_type, tenant_id, aggregate_version FROM events
		WHERE aggregate_id = ? ORDER BY aggregate_version DESC LIMIT 1`
	selectEventExists = `SELECT EXISTS (SELECT 1 FROM events WHERE event_id = ?)`
)

// Append appends one event. See [store.Store].
func (s *Store) Append(ctx context.Context, e events.Event) error {
	return s.AppendMany(ctx, []events.Event{e})
}

// AppendMany appends all events or none. See [store.Store].
func (s *Store) AppendMany(ctx context.Context, batch []events.Event) error {
	return s.AppendWith(ctx, batch, "")
}

// AppendWith is [Store.AppendMany], with a statement in the same transaction; see [store.Store].
func (s *Store) AppendWith(ctx context.Context, batch []events.Event, statement string, args ...any) error {
	if len(batch) == 0 {
		return nil
	}
	const doing = "append"
	if err := store.CheckBatch(batch); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	err := s.write(ctx, doing, func(ctx context.Context, tx *sql.Tx) error {
		err := insertBatch(ctx, tx, batch)
		if err == nil && statement != "" {
			_, err = tx.ExecContext(ctx, statement, args...)
		}
		return err
	})
	if err == nil {
		s.wakers.wake()
	}
	return err
}

// insertBatch inserts a checked batch. No other writer can write meanwhile, so the last event of an aggregate remains the last.
func insertBatch(ctx context.Context, tx *sql.Tx, batch []events.Event) error {
	begun := make(map[uuid.UUID]struct{})
	for i, e := range batch {
		if _, ok := begun[e.AggregateID]; !ok {
			head, err := readHead(ctx, tx, e.AggregateID)
			if err != nil {
				return err
			}
			if err := store.CheckNext(head, e); err != nil {
				return orDuplicate(ctx, tx, batch, i, err)
			}
			begun[e.AggregateID] = struct{}{}
		}
		switch err := insertOne(ctx, tx, e); {
		case isUnique(err): // of the event_id, or of others: the version is the next one
			return orDuplicate(ctx, tx, batch[:i+1], i, refused(err))
		case isRefusal(err):
			return store.InBatch(batch, i, refused(err))
		case isRefused(err):
			return store.InBatch(batch, i, err)
		case err != nil:
			return err
		}
	}
	return nil
}

// readHead reads the last event of an aggregate, with what [store.CheckNext] needs of it, or nil.
func readHead(ctx context.Context, tx *sql.Tx, aggregateID uuid.UUID) (*events.Event, error) {
	var head events.Event
	err := tx.QueryRowContext(ctx, selectHead, aggregateID.String()).
		Scan(&head.AggregateType, &head.TenantID, &head.AggregateVersion)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // the aggregate has no events
	}
	return &head, err
}

// orDuplicate is err, the error of event i, or a better one: that an event of the batch is in the store already. The
// events before i have been inserted by this transaction.
func orDuplicate(ctx context.Context, tx *sql.Tx, batch []events.Event, i int, err error) error {
	for j := i; j < len(batch); j++ {
		var exists bool
		if errExists := tx.QueryRowContext(ctx, selectEventExists, batch[j].ID.String()).Scan(&exists); errExists != nil {
			return errExists
		}
		if exists {
			return store.InBatch(batch, j, &store.DuplicateError{EventID: batch[j].ID})
		}
	}
	return store.InBatch(batch, i, err)
}

func insertOne(ctx context.Context, tx *sql.Tx, e events.Event) error {
	var metadata any
	if len(e.Metadata) > 0 {
		metadata = string(e.Metadata)
	}
	return insert(ctx, tx, insertEvent,
		e.ID.String(), e.Type, e.AggregateType, e.AggregateID.String(), e.AggregateVersion, e.TenantID.String(),
		e.ClinicID, e.CausationID, e.CorrelationID.String(), e.UserID,
		e.CreatedAt.UnixMicro(), string(e.Data), metadata)
}

// insert inserts a row, which it checks: a trigger of others can leave it out by RAISE(IGNORE), without an error.
func insert(ctx context.Context, tx *sql.Tx, statement string, args ...any) error {
	result, err := tx.ExecContext(ctx, statement, args...)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n == 1 {
		return err
	}
	return &store.RefusedError{By: "a trigger has left it out"}
}

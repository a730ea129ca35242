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
	if len(batch) == 0 {
		return nil
	}
	const doing = "append"
	if err := store.CheckBatch(batch); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	err := s.write(ctx, doing, func(ctx context.Context, tx *sql.Tx) error {
		return insertBatch(ctx, tx, batch)
	})
	if err == nil {
		s.wakers.wake()
	}
	return err
}

// insertBatch inserts a checked batch. Nobody else writes meanwhile, so an aggregate's head stays what it is read as.
func insertBatch(ctx context.Context, tx *sql.Tx, batch []events.Event) error {
	begun := make(map[uuid.UUID]struct{})
	for i, e := range batch {
		if _, ok := begun[e.AggregateID]; !ok {
			head, err := readHead(ctx, tx, e)
			if err != nil {
				return err
			}
			if err := continues(head, e); err != nil {
				return orDuplicate(ctx, tx, batch, i, err)
			}
			begun[e.AggregateID] = struct{}{}
		}
		err := insertOne(ctx, tx, e)
		if isUnique(err) { // of the event_id: the version is the head's successor
			return inBatch(batch, i, &store.DuplicateError{EventID: e.ID})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readHead reads the last event of e's aggregate, as far as [store.Continues] asks.
func readHead(ctx context.Context, tx *sql.Tx, e events.Event) (events.Event, error) {
	head := events.Event{AggregateType: e.AggregateType, TenantID: e.TenantID}
	err := tx.QueryRowContext(ctx, selectHead, e.AggregateID.String()).
		Scan(&head.AggregateType, &head.TenantID, &head.AggregateVersion)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return head, err
}

// continues tells why e cannot be the next event of its aggregate, behind head.
func continues(head, e events.Event) error {
	err := store.Continues(head, e)
	if gap, ok := errors.AsType[*store.GapError](err); ok && gap.Wanted <= gap.Found {
		return &store.ConflictError{
			AggregateType: gap.AggregateType, AggregateID: gap.AggregateID, Wanted: gap.Wanted, Found: gap.Found,
		}
	}
	return err
}

// orDuplicate looks for the cause of err, which event i met, that tells the caller more: the batch, or a part of it, is
// in the store already. The events before i are in it for the sake of this transaction only.
func orDuplicate(ctx context.Context, tx *sql.Tx, batch []events.Event, i int, err error) error {
	for j := i; j < len(batch); j++ {
		var exists bool
		if errExists := tx.QueryRowContext(ctx, selectEventExists, batch[j].ID.String()).Scan(&exists); errExists != nil {
			return errExists
		}
		if exists {
			return inBatch(batch, j, &store.DuplicateError{EventID: batch[j].ID})
		}
	}
	return inBatch(batch, i, err)
}

func insertOne(ctx context.Context, tx *sql.Tx, e events.Event) error {
	var metadata any
	if len(e.Metadata) > 0 {
		metadata = string(e.Metadata)
	}
	_, err := tx.ExecContext(ctx, insertEvent,
		e.ID.String(), e.Type, e.AggregateType, e.AggregateID.String(), e.AggregateVersion, e.TenantID.String(),
		e.ClinicID, e.CausationID, e.CorrelationID.String(), e.UserID,
		e.CreatedAt.UnixMicro(), string(e.Data), metadata)
	return err
}

func inBatch(batch []events.Event, i int, err error) error {
	return &store.EventError{Index: i, Of: len(batch), Err: err}
}

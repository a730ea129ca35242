package postgres

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

var (
	//go:embed statements/handled.sql
	handledSQL string
	//go:embed statements/record.sql
	recordSQL string
)

// Handled returns the names of the handlers that have handled e; see [store.Store].
func (s *Store) Handled(ctx context.Context, e events.Event) ([]string, error) {
	const doing = "read who has handled an event"
	rows, err := s.pool.Query(ctx, handledSQL, e.ID)
	if err != nil {
		return nil, fault(ctx, doing, err)
	}
	var (
		handlers    []string
		handler     string
		fingerprint []byte
	)
	want := e.Fingerprint()
	_, err = pgx.ForEachRow(rows, []any{&handler, &fingerprint}, func() error {
		if !bytes.Equal(fingerprint, want[:]) {
			return fmt.Errorf("event %s: %w", e.ID, store.ErrContradiction)
		}
		handlers = append(handlers, handler)
		return nil
	})
	return handlers, fault(ctx, doing, err)
}

// Record appends followUps together with the record that handler has handled e; see [store.Store].
func (s *Store) Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error {
	if err := store.CheckBatch(followUps); err != nil {
		return err
	}
	fingerprint := e.Fingerprint()
	args := append(columns(followUps), handler, e.ID, fingerprint[:])
	return s.write(ctx, "record", followUps,
		func(conn *pgxpool.Conn) (recorded bool, err error) {
			err = conn.QueryRow(ctx, recordSQL, args...).Scan(&recorded)
			return recorded, err
		},
		func() error {
			handled, err := s.Handled(ctx, e)
			if err != nil {
				return err
			}
			if slices.Contains(handled, handler) {
				return fmt.Errorf("event %s, handler %q: %w", e.ID, handler, store.ErrHandled)
			}
			return s.explain(ctx, followUps)
		})
}

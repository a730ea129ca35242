package sqlite

import (
	"context"
	"database/sql"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

const (
	setSavepoint     = `SAVEPOINT dry_run`
	undoSavepoint    = `ROLLBACK TO dry_run`
	releaseSavepoint = `RELEASE dry_run`
)

// Try runs do with a dry run, which is rolled back; see [store.DryRun]. The error is that of do.
func (s *Store) Try(ctx context.Context, do func(context.Context, *store.DryRun) error) error {
	return store.RunDry(ctx, s, func(context.Context) (store.Tx, error) {
		tx, err := s.begin(ctx) // the transaction ends with the context that it begins with
		if err != nil {
			return nil, translate("begin a dry run", err)
		}
		return transaction{queries{uncanceled{tx}}, tx}, nil
	}, do)
}

// transaction is that of a dry run. As elsewhere no statement in it ends early with its context.
type transaction struct {
	queries
	tx *sql.Tx
}

// Savepoint runs do in a savepoint; see [store.Tx].
func (t transaction) Savepoint(ctx context.Context, do func(store.Tx) error) error {
	ctx = context.WithoutCancel(ctx)
	if _, err := t.tx.ExecContext(ctx, setSavepoint); err != nil {
		return err
	}
	failed := do(t)
	if failed != nil {
		if _, err := t.tx.ExecContext(ctx, undoSavepoint); err != nil {
			return err
		}
	}
	if _, err := t.tx.ExecContext(ctx, releaseSavepoint); err != nil {
		return err
	}
	return failed
}

// Rollback ends the transaction; see [store.Tx].
func (t transaction) Rollback(context.Context) error { return t.tx.Rollback() }

// AppendMany appends all events or none; see [store.Store].
func (t transaction) AppendMany(ctx context.Context, batch []events.Event) error {
	return translate("append", t.Savepoint(ctx, func(store.Tx) error {
		return insertBatch(context.WithoutCancel(ctx), t.tx, batch)
	}))
}

// Record appends followUps together with the record that handler has handled e; see [store.Store].
func (t transaction) Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error {
	work := store.TakeWork[*sql.Tx](ctx)
	return translate(recording(handler, e), t.Savepoint(ctx, func(store.Tx) error {
		return record(ctx, t.tx, handler, e, followUps, work)
	}))
}

// uncanceled runs queries that do not end with their context.
type uncanceled struct{ querier }

func (u uncanceled) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return u.querier.QueryContext(context.WithoutCancel(ctx), query, args...)
}

func (u uncanceled) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	return u.querier.QueryRowContext(context.WithoutCancel(ctx), query, args...)
}

package postgres

import (
	"cmp"
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// beginDryRun keeps the events of a dry run from waking the relay (see the function events_notify), and lets the server
// end a dry run whose process has stopped.
var beginDryRun = fmt.Sprintf( //nolint:gochecknoglobals // a constant
	"SET LOCAL worker.trial = 'on'; SET LOCAL idle_in_transaction_session_timeout = %d", (2 * store.DryRunLimit).Milliseconds())

// checkConstraints checks what a commit would. Constraints are then deferred again, for the next handler.
const checkConstraints = "SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED"

// Try runs do with a dry run, which is rolled back; see [store.DryRun]. The error is that of do.
func (s *Store) Try(ctx context.Context, do func(context.Context, *store.DryRun) error) error {
	return store.RunDry(ctx, s, func(ctx context.Context) (store.Tx, error) {
		tx, err := s.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
		if err == nil {
			if _, err = tx.Exec(ctx, beginDryRun); err != nil {
				_ = tx.Rollback(context.WithoutCancel(ctx)) // if it fails the connection is closed
			}
		}
		if err != nil {
			return nil, fault(ctx, "begin a dry run", err)
		}
		return transaction{queries{tx}, tx, s}, nil
	}, do)
}

// transaction is that of a dry run.
type transaction struct {
	queries
	tx    pgx.Tx
	store *Store
}

// Savepoint runs do in a savepoint; see [store.Tx].
func (t transaction) Savepoint(ctx context.Context, do func(store.Tx) error) error {
	return pgx.BeginFunc(context.WithoutCancel(ctx), t.tx, func(tx pgx.Tx) error {
		return do(transaction{queries{tx}, tx, t.store})
	})
}

// Rollback ends the transaction; see [store.Tx].
func (t transaction) Rollback(ctx context.Context) error { return t.tx.Rollback(ctx) }

// AppendMany appends all events or none; see [store.Store].
func (t transaction) AppendMany(ctx context.Context, batch []events.Event) error {
	return t.write(ctx, "append", &unit{batch: batch})
}

// Record appends followUps together with the record that handler has handled e; see [store.Store].
func (t transaction) Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error {
	work := store.TakeWork[pgx.Tx](ctx)
	if err := t.write(ctx, "record", recordOf(handler, e, followUps)); err != nil {
		return err
	}
	if err := runWork(ctx, t.tx, work); err != nil {
		return err
	}
	_, err := t.tx.Exec(ctx, checkConstraints)
	return cmp.Or(refusedCommit(err), fault(ctx, "check the constraints as a commit does", err))
}

func (t transaction) write(ctx context.Context, doing string, u *unit) error {
	return t.store.write(ctx, doing, u, t.tx, func() error {
		err := pgx.BeginFunc(ctx, t.tx, func(tx pgx.Tx) error { return writeUnits(ctx, tx, []*unit{u}) })
		if err != nil {
			return unsentError{err} // nothing of it is kept, whatever the error
		}
		return nil
	})
}

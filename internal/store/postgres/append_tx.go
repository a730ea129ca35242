package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// AppendTx appends events in a transaction of the caller's. Its errors are those of [Store.AppendMany], and of what was to be appended
// they leave nothing. They leave the transaction usable, unless ctx has ended, or the transaction was not usable before.
//
// An error of the transaction is [events.ErrConflict] if it may succeed when it is begun again.
func (s *Store) AppendTx(ctx context.Context, tx pgx.Tx, batch []events.Event) error {
	const doing = "append in a transaction"
	if tx == nil || tx.Conn() == nil {
		return fmt.Errorf("%s: there is none", doing)
	}
	if len(batch) == 0 {
		return nil
	}
	if err := store.CheckBatch(batch); err != nil {
		return err
	}
	if err := checkMode(tx.Conn().Config()); err != nil {
		return fmt.Errorf("%s: its connection's %w", doing, err)
	}
	u := &unit{batch: batch}
	err := s.write(ctx, doing, u, tx, func() error { return faultOfTx(inSavepoint(ctx, tx, u)) })
	if refused, is := errors.AsType[*store.RefusedError](err); is {
		if pgErr, found := errors.AsType[*pgconn.PgError](refused.Err); found && pgErr.Code == uniqueViolation {
			return faultOfSnapshot(err, pgErr, batch)
		}
	}
	return err
}

// inSavepoint writes a unit in a savepoint, which ends whatever becomes of ctx: else what it has written would be committed with the
// transaction.
func inSavepoint(ctx context.Context, tx pgx.Tx, u *unit) error {
	savepoint, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	err = writeUnits(ctx, savepoint, []*unit{u})
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer cancel()
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		return savepoint.Commit(ending)
	}
	return errors.Join(err, savepoint.Rollback(ending)) // if that fails, the connection is lost, and the transaction with it
}

// txError is an error of the caller's transaction, and not of the store.
type txError struct {
	problem string
	err     error
}

func (e txError) Error() string { return e.problem + ": " + e.err.Error() }

// Is hides the other errors that the cause wraps: they say something of the store.
func (e txError) Is(target error) bool {
	return target == pgx.ErrTxClosed && errors.Is(e.err, pgx.ErrTxClosed) || target == events.ErrConflict && isConflict(e.err)
}

// SafeToRetry implements [pgconn.SafeToRetry]: nothing was written that will be committed.
func (txError) SafeToRetry() bool { return true }

func isConflict(err error) bool {
	pgErr, answered := errors.AsType[*pgconn.PgError](err)
	return answered && (pgErr.Code == serializationFailure || pgErr.Code == deadlockDetected)
}

// faultOfTx tells the errors of the caller's transaction from those of the events.
func faultOfTx(err error) error {
	pgErr, answered := errors.AsType[*pgconn.PgError](err)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pgx.ErrTxClosed):
		return txError{"the transaction is over", err}
	case answered && pgErr.Code == inFailedTransaction:
		return txError{"the transaction had failed before", err}
	case answered && pgErr.Code == readOnlyTransaction:
		return txError{"the transaction is read-only", err}
	case isConflict(err):
		return txError{events.ErrConflict.Error() + ": the transaction has to be begun again", err}
	}
	return unsentError{err} // nothing of it is kept, whatever the error
}

// faultOfSnapshot is the error of a version, or of an event, that is taken, though the transaction cannot see by what: its snapshot is
// older. The refusal by an index of others is left as it is.
func faultOfSnapshot(refused error, by *pgconn.PgError, batch []events.Event) error {
	switch {
	case strings.Contains(by.Detail, "(aggregate_id, aggregate_version)="):
		return fmt.Errorf("%w: the transaction does not see a version that another one has taken: begin it again", events.ErrConflict)
	case strings.Contains(by.Detail, "(event_id)="):
		for i, e := range batch {
			if strings.Contains(by.Detail, e.ID.String()) {
				return store.InBatch(batch, i, &store.DuplicateError{EventID: e.ID})
			}
		}
	}
	return refused
}

package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"sync"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

const (
	setSavepoint  = `SAVEPOINT part`
	undoSavepoint = `ROLLBACK TO part`
	endSavepoint  = `RELEASE part`
)

// Try runs do with a trial, and then undoes all that was done in it; see [store.Trial]. The error is that of do.
func (s *Store) Try(ctx context.Context, do func(context.Context, store.Trial) error) error {
	t := &trial{store: s, begin: func() (*sql.Tx, error) { return s.begin(ctx) }}
	defer t.end()
	return do(ctx, t)
}

// trial is a transaction that is never committed. As elsewhere no statement in it ends early with its context.
type trial struct {
	store *Store
	begin func() (*sql.Tx, error)

	mu   sync.Mutex // one statement at a time
	tx   *sql.Tx    // nil until the first write
	over bool
}

// Apart undoes what do has written if it fails; see [store.Trial].
func (t *trial) Apart(ctx context.Context, do func(context.Context) error) error {
	tx := t.current()
	if tx == nil {
		err := do(ctx)
		if err != nil {
			t.rollback()
		}
		return err
	}
	return apart(ctx, tx, func() error { return do(ctx) })
}

// apart does something between savepoints.
func apart(ctx context.Context, tx *sql.Tx, do func() error) error {
	ctx = context.WithoutCancel(ctx)
	if _, err := tx.ExecContext(ctx, setSavepoint); err != nil {
		return lost(err)
	}
	failed := do()
	if failed != nil {
		if _, err := tx.ExecContext(ctx, undoSavepoint); err != nil {
			return errors.Join(failed, lost(err))
		}
	}
	if _, err := tx.ExecContext(ctx, endSavepoint); err != nil {
		return errors.Join(failed, lost(err))
	}
	return failed
}

// lost is the error of a trial whose transaction does not go on.
func lost(err error) error {
	return fmt.Errorf("%w: the trial's transaction is lost: %w", store.ErrUnavailable, err)
}

func (t *trial) current() *sql.Tx {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.tx
}

// rollback undoes everything. When it fails the connection is closed, which is a rollback too.
func (t *trial) rollback() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tx != nil {
		_ = t.tx.Rollback()
		t.tx = nil
	}
}

func (t *trial) end() {
	t.rollback()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
}

// reader is what reads go to, for as long as the lock is held that the caller gives back by unlock.
func (t *trial) reader() (q querier, unlock func(), err error) {
	t.mu.Lock()
	switch {
	case t.over:
		t.mu.Unlock()
		return nil, nil, store.ErrTrialOver
	case t.tx == nil:
		return t.store.readers, t.mu.Unlock, nil
	default:
		return t.tx, t.mu.Unlock, nil
	}
}

// Stream yields an aggregate's events after a version. See [store.Store].
func (t *trial) Stream(
	ctx context.Context, aggregateType string, aggregateID uuid.UUID, afterVersion int,
) iter.Seq2[events.Event, error] {
	return streamAggregate(ctx, t.recorded, aggregateType, aggregateID, afterVersion)
}

func (t *trial) recorded(
	ctx context.Context, most int, query string, args ...any,
) (found []store.Recorded, more bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	q, unlock, err := t.reader()
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	return recorded(context.WithoutCancel(ctx), q, most, query, args...)
}

// Handled returns the names of the handlers that have handled e. See [store.Store].
func (t *trial) Handled(ctx context.Context, e events.Event) ([]string, error) {
	q, unlock, err := t.reader()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return handled(context.WithoutCancel(ctx), q, e)
}

// Parked returns behind which events e has to wait. See [store.Store].
func (t *trial) Parked(ctx context.Context, e events.Event, handlers []string) (map[string]uuid.UUID, error) {
	q, unlock, err := t.reader()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return parked(context.WithoutCancel(ctx), q, e, handlers)
}

// AppendMany appends all events or none. See [store.Store].
func (t *trial) AppendMany(ctx context.Context, batch []events.Event) error {
	if len(batch) == 0 {
		return nil
	}
	const doing = "append"
	if err := store.CheckBatch(batch); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return t.write(ctx, doing, func(ctx context.Context, tx *sql.Tx) error { return insertBatch(ctx, tx, batch) })
}

// Attempt returns the context for one try of a handler. See [store.Store].
func (t *trial) Attempt(ctx context.Context) context.Context { return t.store.Attempt(ctx) }

// Record appends followUps together with the record that handler has handled e. See [store.Store].
func (t *trial) Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error {
	doing := fmt.Sprintf("record that %s has handled event %s", handler, e.ID)
	if err := store.CheckBatch(followUps); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	work := store.TakeWork[*sql.Tx](ctx)
	err := t.write(ctx, doing, func(ctx context.Context, tx *sql.Tx) error {
		if err := insertRecord(ctx, tx, handler, e); err != nil {
			return err
		}
		return insertBatch(ctx, tx, followUps)
	})
	if err != nil {
		return err
	}
	tx := t.current()
	for _, step := range work {
		if err := step(ctx, tx); err != nil {
			return &store.WorkError{Err: err}
		}
	}
	return nil
}

// write does work in the trial's transaction, all of it or nothing.
func (t *trial) write(ctx context.Context, doing string, work func(ctx context.Context, tx *sql.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return store.ErrTrialOver
	}
	if t.tx == nil {
		tx, err := t.begin()
		if err != nil {
			return translate("begin a trial", err)
		}
		t.tx = tx
	}
	ctx = context.WithoutCancel(ctx)
	return translate(doing, apart(ctx, t.tx, func() error { return work(ctx, t.tx) }))
}

var _ store.Trial = (*trial)(nil)

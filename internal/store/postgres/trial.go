package postgres

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// beginTrial lets the events of a trial wake no relay (see the function events_notify), and the server end a trial whose
// process has stopped.
var beginTrial = fmt.Sprintf( //nolint:gochecknoglobals // a constant
	"SET LOCAL worker.trial = 'on'; SET LOCAL idle_in_transaction_session_timeout = %d", (2 * store.TrialLimit).Milliseconds())

// checkConstraints checks what a commit would. Constraints are then deferred again, for the next letter.
const checkConstraints = "SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED"

// Try runs do with a trial, and then undoes all that was done in it; see [store.Trial]. The error is that of do.
func (s *Store) Try(ctx context.Context, do func(context.Context, store.Trial) error) error {
	t := &trial{store: s}
	defer t.end(ctx)
	return do(ctx, t)
}

// trial is a transaction that is never committed.
type trial struct {
	store *Store

	mu   sync.Mutex // one statement at a time
	tx   pgx.Tx     // nil until the first write
	over bool
}

// Apart undoes what do has written if it fails; see [store.Trial].
func (t *trial) Apart(ctx context.Context, do func(context.Context) error) error {
	before := t.current()
	if before == nil {
		err := do(ctx)
		if err != nil {
			t.rollback(ctx)
		}
		return err
	}
	apart, err := before.Begin(ctx)
	if err != nil {
		return lost(ctx, err)
	}
	t.replace(apart)
	defer t.replace(before)
	failed := do(ctx)
	if failed == nil {
		return fault(ctx, "keep the letter's part of a trial", apart.Commit(ctx))
	}
	undoing, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer cancel()
	if err := apart.Rollback(undoing); err != nil {
		return errors.Join(failed, lost(undoing, err))
	}
	return failed
}

// lost is the error of a trial whose transaction does not go on.
func lost(ctx context.Context, err error) error {
	return fmt.Errorf("%w: the trial's transaction is lost: %w", store.ErrUnavailable, fault(ctx, "set a savepoint", err))
}

func (t *trial) current() pgx.Tx {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.tx
}

func (t *trial) replace(tx pgx.Tx) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tx = tx
}

// rollback undoes everything. When it fails the connection is closed, which is a rollback too.
func (t *trial) rollback(ctx context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tx != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
		defer cancel()
		_ = t.tx.Rollback(ctx)
		t.tx = nil
	}
}

func (t *trial) end(ctx context.Context) {
	t.rollback(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
}

// begin begins the transaction if it has not begun. The caller holds the lock.
func (t *trial) begin(ctx context.Context) error {
	if t.tx != nil {
		return nil
	}
	tx, err := t.store.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return fault(ctx, "begin a trial", err)
	}
	if _, err := tx.Exec(ctx, beginTrial); err != nil {
		return errors.Join(fault(ctx, "begin a trial", err), tx.Rollback(context.WithoutCancel(ctx)))
	}
	t.tx = tx
	return nil
}

// reader is what reads go to, for as long as the lock is held that the caller gives back by unlock.
func (t *trial) reader() (q querier, unlock func(), err error) {
	t.mu.Lock()
	switch {
	case t.over:
		t.mu.Unlock()
		return nil, nil, store.ErrTrialOver
	case t.tx == nil:
		return t.store.pool, t.mu.Unlock, nil
	default:
		return t.tx, t.mu.Unlock, nil
	}
}

// Stream yields the events of an aggregate; see [store.Store].
func (t *trial) Stream(
	ctx context.Context, aggregateType string, aggregateID uuid.UUID, afterVersion int,
) iter.Seq2[events.Event, error] {
	return stream(ctx, t.read, aggregateType, aggregateID, afterVersion)
}

func (t *trial) read(ctx context.Context, doing, statement string, args ...any) ([]store.Recorded, error) {
	q, unlock, err := t.reader()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return read(ctx, q, doing, statement, args...)
}

// Handled returns the names of the handlers that have handled e; see [store.Store].
func (t *trial) Handled(ctx context.Context, e events.Event) ([]string, error) {
	q, unlock, err := t.reader()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return handled(ctx, q, e)
}

// Parked returns behind which events e has to wait; see [store.Store].
func (t *trial) Parked(ctx context.Context, e events.Event, handlers []string) (map[string]uuid.UUID, error) {
	q, unlock, err := t.reader()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return parked(ctx, q, e, handlers)
}

// AppendMany appends all events or none; see [store.Store].
func (t *trial) AppendMany(ctx context.Context, batch []events.Event) error {
	if len(batch) == 0 {
		return nil
	}
	if err := store.CheckBatch(batch); err != nil {
		return err
	}
	return t.write(ctx, "append", &unit{batch: batch})
}

// Attempt returns the context for one try of a handler; see [store.Store].
func (t *trial) Attempt(ctx context.Context) context.Context { return t.store.Attempt(ctx) }

// Record appends followUps together with the record that handler has handled e; see [store.Store].
func (t *trial) Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error {
	if err := store.CheckBatch(followUps); err != nil {
		return err
	}
	work := store.TakeWork[pgx.Tx](ctx)
	err := t.write(ctx, "record", recordOf(handler, e, followUps))
	if err != nil || len(work) == 0 {
		return err
	}
	tx := t.current()
	for _, step := range work {
		if err := step(ctx, handlersTx{tx}); err != nil {
			return &store.WorkError{Err: err}
		}
	}
	if _, err := tx.Exec(ctx, checkConstraints); err != nil {
		return &store.WorkError{Err: fmt.Errorf("check the handler's work as a commit does: %w", err)}
	}
	return nil
}

// write writes as [Store.write] does, in the trial's transaction.
func (t *trial) write(ctx context.Context, doing string, u *unit) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return store.ErrTrialOver
	}
	if err := t.begin(ctx); err != nil {
		return err
	}
	return t.store.write(ctx, doing, u, t.tx, func() error {
		err := pgx.BeginFunc(ctx, t.tx, func(tx pgx.Tx) error { return writeUnits(ctx, tx, []*unit{u}) })
		if err != nil {
			return unsentError{err} // whatever it was, it is not there
		}
		return nil
	})
}

var _ store.Trial = (*trial)(nil)

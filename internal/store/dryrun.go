package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

const (
	// DryRunLimit bounds how long a [DryRun] delays others, from its first write on.
	DryRunLimit = 2 * time.Second
	// rollbackTimeout bounds a rollback. Without an answer the connection is closed, which rolls back as well.
	rollbackTimeout = 5 * time.Second
)

// ErrDryRunOver says that a dry run is used after its end.
var ErrDryRunOver = errors.New("the dry run is over: a handler must be done when it returns")

// DryRun runs handlers in a transaction that is rolled back at the end: they find what the store has and what those
// before them in the dry run have done. No other reader ever sees any of it, and the relay is not woken; but numbers that
// sequences have given are not given again.
//
// The transaction begins with the first write. From then on it delays others: on Postgres the relay, for the whole
// database, and those who handle the same event; on SQLite all writers. So a dry run is short; see [DryRunLimit].
//
// A dry run belongs to one goroutine. A handler that it runs may read from several.
type DryRun struct {
	store dryStore
	begin func(context.Context) (Tx, error)
	turn  chan struct{} // holds a value while a statement runs, as a transaction runs one at a time
	tx    Tx            // nil until the first write
	over  bool
}

// Tx is a transaction of a store. The methods are as those of [Store] and [Source].
type Tx interface {
	dryReads
	AppendMany(ctx context.Context, batch []events.Event) error
	Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error
	// Savepoint runs do in a savepoint, and undoes what it has written if it returns an error, also one of a statement. The
	// error is that of do, or that of the savepoint if the transaction is lost.
	Savepoint(ctx context.Context, do func(Tx) error) error
	Rollback(ctx context.Context) error
}

type dryReads interface {
	Select(ctx context.Context, s Selection) (found []Recorded, more bool, err error)
	Handled(ctx context.Context, e events.Event) ([]string, error)
	Parked(ctx context.Context, e events.Event, handlers []string) (map[string]uuid.UUID, error)
}

type dryStore interface {
	dryReads
	Attempt(ctx context.Context) context.Context
}

// RunDry runs do with a dry run on a store, whose transaction begins with begin, and rolls it back. The error is that of
// do.
func RunDry(
	ctx context.Context, s dryStore, begin func(context.Context) (Tx, error), do func(context.Context, *DryRun) error,
) error {
	d := &DryRun{store: s, begin: begin, turn: make(chan struct{}, 1)}
	defer func() {
		d.lock()
		defer d.unlock()
		d.rollback(ctx)
		d.over = true
	}()
	return do(ctx, d)
}

func (d *DryRun) lock()   { d.turn <- struct{}{} }
func (d *DryRun) unlock() { <-d.turn }

// exclusively runs do while no other statement runs.
func (d *DryRun) exclusively(ctx context.Context, do func() error) error {
	select {
	case d.turn <- struct{}{}:
		defer d.unlock()
	case <-ctx.Done():
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case d.over:
		return ErrDryRunOver
	}
	return do()
}

func (d *DryRun) rollback(ctx context.Context) {
	if d.tx != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
		defer cancel()
		_ = d.tx.Rollback(ctx) // if it fails the connection is closed
		d.tx = nil
	}
}

// Savepoint runs do, and undoes what it has written if it returns an error, which it returns. When that cannot be undone,
// as the transaction is lost, the error wraps [ErrUnavailable], and the dry run is of no more use.
func (d *DryRun) Savepoint(ctx context.Context, do func(context.Context) error) error {
	return d.exclusively(ctx, func() error {
		outer := d.tx
		var failed error
		run := func(inner Tx) error {
			d.tx = inner
			d.unlock()
			defer d.lock()
			failed = do(ctx)
			return failed
		}
		if outer == nil { // it begins within do, if it does
			if run(nil) != nil {
				d.rollback(ctx)
			}
			return failed
		}
		err := outer.Savepoint(ctx, run)
		d.tx = outer
		if err == nil || failed != nil && errors.Is(err, failed) {
			return failed
		}
		return fmt.Errorf("%w: the transaction of the dry run is lost: %w", ErrUnavailable, errors.Join(failed, err))
	})
}

// reads are those of the transaction, or of the store before the first write.
func (d *DryRun) reads() dryReads {
	if d.tx != nil {
		return d.tx
	}
	return d.store
}

// Stream yields the events of an aggregate; see [Store].
func (d *DryRun) Stream(
	ctx context.Context, aggregateType string, aggregateID uuid.UUID, afterVersion int,
) iter.Seq2[events.Event, error] {
	read := func(ctx context.Context, s Selection) (found []Recorded, more bool, err error) {
		err = d.exclusively(ctx, func() error {
			found, more, err = d.reads().Select(ctx, s)
			return err
		})
		return found, more, err
	}
	return stream(ctx, read, aggregateType, aggregateID, afterVersion)
}

// Handled returns the names of the handlers that have handled e; see [Store].
func (d *DryRun) Handled(ctx context.Context, e events.Event) (names []string, err error) {
	err = d.exclusively(ctx, func() error {
		names, err = d.reads().Handled(ctx, e)
		return err
	})
	return names, err
}

// Parked returns behind which events e has to wait; see [Store].
func (d *DryRun) Parked(ctx context.Context, e events.Event, handlers []string) (first map[string]uuid.UUID, err error) {
	err = d.exclusively(ctx, func() error {
		first, err = d.reads().Parked(ctx, e, handlers)
		return err
	})
	return first, err
}

// Attempt returns the context for one try of a handler; see [Store].
func (d *DryRun) Attempt(ctx context.Context) context.Context { return d.store.Attempt(ctx) }

// AppendMany appends all events or none; see [Store].
func (d *DryRun) AppendMany(ctx context.Context, batch []events.Event) error {
	if len(batch) == 0 {
		return nil
	}
	return d.write(ctx, batch, func() error { return d.tx.AppendMany(ctx, batch) })
}

// Record appends followUps together with the record that handler has handled e; see [Store].
func (d *DryRun) Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error {
	return d.write(ctx, followUps, func() error { return d.tx.Record(ctx, handler, e, followUps) })
}

func (d *DryRun) write(ctx context.Context, batch []events.Event, statement func() error) error {
	if err := CheckBatch(batch); err != nil {
		return err
	}
	return d.exclusively(ctx, func() (err error) {
		if d.tx == nil {
			if d.tx, err = d.begin(ctx); err != nil {
				return err
			}
		}
		return statement()
	})
}

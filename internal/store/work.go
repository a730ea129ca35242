package store

import (
	"context"
	"errors"
	"sync"
)

// ErrNoTransaction says that there is no transaction of that kind to work in: the caller is not a handler that runs, or
// the worker runs on another store.
var ErrNoTransaction = errors.New("there is no such transaction: call it from a handler, with its context, on this store")

// WorkError is the error of work that a handler has registered, or of the commit of it: no fault of the store's.
type WorkError struct{ Err error }

func (e *WorkError) Error() string { return e.Err.Error() }
func (e *WorkError) Unwrap() error { return e.Err }

// work is what a handler wants done in the transaction of its record.
type work[Tx any] struct {
	mu    sync.Mutex
	taken bool
	steps []func(context.Context, Tx) error
}

type workKey[Tx any] struct{}

// WithWork returns a context in which [AddWork] finds a place to keep work on transactions of type Tx.
func WithWork[Tx any](ctx context.Context) context.Context {
	return context.WithValue(ctx, workKey[Tx]{}, &work[Tx]{})
}

// AddWork keeps a step for [TakeWork]. It is [ErrNoTransaction] where there is no place for it, or no longer.
func AddWork[Tx any](ctx context.Context, step func(context.Context, Tx) error) error {
	w, found := ctx.Value(workKey[Tx]{}).(*work[Tx])
	if !found {
		return ErrNoTransaction
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.taken {
		return ErrNoTransaction
	}
	w.steps = append(w.steps, step)
	return nil
}

// TakeWork returns the steps in the order in which they were added, and lets no more be added.
func TakeWork[Tx any](ctx context.Context) []func(context.Context, Tx) error {
	w, found := ctx.Value(workKey[Tx]{}).(*work[Tx])
	if !found {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.taken = true
	return w.steps
}

package store

import (
	"context"
	"errors"
	"sync"
)

// ErrNoTransaction says that there is no transaction of that kind: the caller is not a handler that runs, or
// the worker runs on another store.
var ErrNoTransaction = errors.New("there is no such transaction: call it from a handler, with its context, on this store")

// WorkError is the error of work that a handler has registered, or of the commit of it: no fault of the store's.
type WorkError struct{ Err error }

func (e *WorkError) Error() string { return e.Err.Error() }
func (e *WorkError) Unwrap() error { return e.Err }

// work is what a handler has registered for the transaction of its record.
type work[Tx any] struct {
	mu    sync.Mutex
	taken bool
	steps []func(context.Context, Tx) error
}

type workKey[Tx any] struct{}

// WithWork returns a context for which [AddWork] can register work on transactions of type Tx.
func WithWork[Tx any](ctx context.Context) context.Context {
	return context.WithValue(ctx, workKey[Tx]{}, &work[Tx]{})
}

// AddWork registers a step for [TakeWork]. It is [ErrNoTransaction] without [WithWork], or after TakeWork.
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

// TakeWork returns the steps in the order in which they were added. After it none can be added.
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

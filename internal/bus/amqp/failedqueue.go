package amqp

import (
	"context"
	"errors"
	"iter"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/healz/worker/internal/deadletter"
)

// FailedQueue is the contract's queue of dead letters.
type FailedQueue struct{ conn *Connection }

var (
	_ deadletter.Queue = (*FailedQueue)(nil)
	_ deadletter.Sink  = (*FailedQueue)(nil)
)

// NewFailedQueue returns the failed queue of a Connection.
func NewFailedQueue(c *Connection) *FailedQueue { return &FailedQueue{conn: c} }

// Put publishes a dead letter.
func (q *FailedQueue) Put(context.Context, *message.Message, deadletter.Failure) error {
	return errors.ErrUnsupported
}

// List yields the letters.
func (q *FailedQueue) List(context.Context) iter.Seq2[deadletter.Letter, error] {
	return func(func(deadletter.Letter, error) bool) {}
}

// Replay republishes letters.
func (q *FailedQueue) Replay(context.Context, deadletter.Filter) iter.Seq2[deadletter.Letter, error] {
	return func(func(deadletter.Letter, error) bool) {}
}

// Purge destroys all letters.
func (q *FailedQueue) Purge(context.Context) (int, error) { return 0, errors.ErrUnsupported }

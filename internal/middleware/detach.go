package middleware

import (
	"context"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"
)

// ErrStopping is the error of a message that is given back because the worker stops: neither a failure nor poison. It
// wraps [context.Canceled], which Watermill's router does not log as an error.
var ErrStopping = fmt.Errorf("the worker is stopping: %w", context.Canceled)

// Lifetime is how long messages may be worked on.
type Lifetime struct {
	// Stopping is closed when the worker begins to stop: what is in hand goes on, nothing new begins.
	Stopping <-chan struct{}
	// Ended is done when the grace period is over: handlers still running are cancelled.
	Ended context.Context //nolint:containedctx // its end is the handlers' cancellation, which no call outlives
}

// stopping tells whether the stop has begun.
func (l Lifetime) stopping() bool {
	select {
	case <-l.Stopping:
		return true
	default:
		return false
	}
}

// Detach frees a message from the context of its subscription, which Watermill's router cancels at the very beginning
// of a shutdown, and ties it to the worker's lifetime instead. A message that arrives after the stop began is given back.
func Detach(l Lifetime) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(m *message.Message) ([]*message.Message, error) {
			if l.stopping() {
				return nil, ErrStopping
			}
			ctx, cancel := context.WithCancelCause(context.WithoutCancel(m.Context()))
			defer cancel(nil)
			defer context.AfterFunc(l.Ended, func() { cancel(ErrStopping) })()
			m.SetContext(ctx)
			return next(m)
		}
	}
}

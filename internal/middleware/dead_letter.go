package middleware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"

	"github.com/healz/worker/internal/deadletter"
)

// maxSinkWait bounds the wait between two tries to put a dead letter.
const maxSinkWait = 5 * time.Second

// DeadLetter turns a message that failed into dead letters, one for each handler that failed for good, and reports
// success, so that it is acked. A sink that is a [deadletter.Postponer] is first asked to have the handler try again
// later. While the sink fails the message stays in hand, and it is tried again, until the worker stops; the message is
// then given back. A message that is given back because the worker stops is no failure.
//
// Watermill's PoisonQueue writes one reason for all handlers and gives up at the sink's first error.
func DeadLetter(sink deadletter.Sink, l Lifetime, logger *slog.Logger) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(m *message.Message) ([]*message.Message, error) {
			ctx := m.Context()
			produced, err := next(m)
			if err == nil || errors.Is(err, ErrStopping) {
				return produced, err
			}
			outcome := Postponed
			for _, f := range failures(err) {
				logger := logger.With("event_id", eventID(m), "handler", f.Handler, "attempts", f.Attempts, "reason", f.Reason)
				postponed, err := settle(ctx, sink, m, f, l, logger)
				if err != nil {
					return nil, err
				}
				if !postponed {
					outcome = DeadLettered
				}
			}
			SetOutcome(ctx, outcome)
			return nil, nil
		}
	}
}

// settle postpones a message, or else makes it a dead letter.
func settle(
	ctx context.Context, sink deadletter.Sink, m *message.Message, f deadletter.Failure, l Lifetime, logger *slog.Logger,
) (postponed bool, err error) {
	var wait time.Duration
	if postponer, ok := sink.(deadletter.Postponer); ok && f.MayPass {
		err := untilTaken(ctx, l, logger, func() (err error) {
			wait, err = postponer.Postpone(ctx, m, f)
			return err
		})
		if err != nil {
			return false, err
		}
	}
	if wait > 0 {
		logger.WarnContext(ctx, "event failed, will try again later", "wait", wait)
		return true, nil
	}
	logger.ErrorContext(ctx, "event failed for good")
	return false, untilTaken(ctx, l, logger, func() error { return sink.Put(ctx, m, f) })
}

func failures(err error) []deadletter.Failure {
	if failed, ok := errors.AsType[*deadletter.FailedError](err); ok {
		return failed.Failures
	}
	now := time.Now().UTC()
	return []deadletter.Failure{{Reason: deadletter.CutReason(err.Error()), Attempts: 1, FirstFailed: now, LastFailed: now}}
}

// untilTaken tries until the sink takes the message, or the worker stops.
func untilTaken(ctx context.Context, l Lifetime, logger *slog.Logger, try func() error) error {
	waits := backoff.NewExponentialBackOff()
	waits.MaxInterval = maxSinkWait
	for {
		err := try()
		if err == nil {
			return nil
		}
		delay := waits.NextBackOff()
		logger.ErrorContext(ctx, "cannot put the failed message away, it stays in hand", "wait", delay, "error", err)
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-l.Stopping:
			timer.Stop()
			return fmt.Errorf("%w: put the failed message away: %w", ErrStopping, err)
		}
	}
}

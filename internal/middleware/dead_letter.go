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
// success, so that it is acked. While the sink fails the message stays in hand, and it is tried again, until the worker
// stops; the message is then given back. A message that is given back because the worker stops is no failure.
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
			for _, failure := range failures(err) {
				if err := put(ctx, sink, m, failure, l, logger); err != nil {
					return nil, err
				}
				attrs := append(describe(m), slog.String("outcome", string(DeadLettered)),
					slog.Int("attempts", failure.Attempts), slog.String("reason", failure.Reason))
				if failure.Handler != "" {
					attrs = append(attrs, slog.String("handler", failure.Handler))
				}
				logger.LogAttrs(ctx, slog.LevelError, "event", attrs...)
			}
			SetOutcome(ctx, DeadLettered)
			return nil, nil
		}
	}
}

func failures(err error) []deadletter.Failure {
	if failed, ok := errors.AsType[*deadletter.FailedError](err); ok {
		return failed.Failures
	}
	now := time.Now().UTC()
	return []deadletter.Failure{{Reason: deadletter.CutReason(err.Error()), Attempts: 1, FirstFailed: now, LastFailed: now}}
}

func put(ctx context.Context, sink deadletter.Sink, m *message.Message, f deadletter.Failure, l Lifetime, logger *slog.Logger) error {
	waits := backoff.NewExponentialBackOff()
	waits.MaxInterval = maxSinkWait
	for {
		err := sink.Put(ctx, m, f)
		if err == nil {
			return nil
		}
		delay := waits.NextBackOff()
		logger.LogAttrs(ctx, slog.LevelError, "cannot put the dead letter, the message stays in hand",
			append(describe(m), slog.Duration("wait", delay), slog.Any("error", err))...)
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-l.Stopping:
			timer.Stop()
			return fmt.Errorf("%w: put dead letter: %w", ErrStopping, err)
		}
	}
}

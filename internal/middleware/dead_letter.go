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
			for _, failure := range failures(err) {
				wait, err := settle(ctx, sink, m, failure, l, logger)
				if err != nil {
					return nil, err
				}
				attrs := append(describe(m), slog.Int("attempt", failure.Attempts), slog.String("reason", failure.Reason))
				if failure.Handler != "" {
					attrs = append(attrs, slog.String("handler", failure.Handler))
				}
				if wait > 0 {
					attrs = append(attrs, slog.String("outcome", string(Postponed)), slog.Duration("wait", wait))
					logger.LogAttrs(ctx, slog.LevelWarn, "event", attrs...)
					continue
				}
				outcome = DeadLettered
				logger.LogAttrs(ctx, slog.LevelError, "event", append(attrs, slog.String("outcome", string(DeadLettered)))...)
			}
			SetOutcome(ctx, outcome)
			return nil, nil
		}
	}
}

// settle postpones a message, and returns for how long, or else makes it a dead letter.
func settle(
	ctx context.Context, sink deadletter.Sink, m *message.Message, f deadletter.Failure, l Lifetime, logger *slog.Logger,
) (wait time.Duration, err error) {
	err = untilTaken(ctx, m, l, logger, func() error {
		if postponer, ok := sink.(deadletter.Postponer); ok && f.MayPass {
			if wait, err = postponer.Postpone(ctx, m, f); err != nil || wait > 0 {
				return err
			}
		}
		return sink.Put(ctx, m, f)
	})
	return wait, err
}

func failures(err error) []deadletter.Failure {
	if failed, ok := errors.AsType[*deadletter.FailedError](err); ok {
		return failed.Failures
	}
	now := time.Now().UTC()
	return []deadletter.Failure{{Reason: deadletter.CutReason(err.Error()), Attempts: 1, FirstFailed: now, LastFailed: now}}
}

// untilTaken tries until the sink takes the message, or the worker stops.
func untilTaken(ctx context.Context, m *message.Message, l Lifetime, logger *slog.Logger, try func() error) error {
	waits := backoff.NewExponentialBackOff()
	waits.MaxInterval = maxSinkWait
	for {
		err := try()
		if err == nil {
			return nil
		}
		delay := waits.NextBackOff()
		logger.LogAttrs(ctx, slog.LevelError, "cannot put the failed message away, it stays in hand",
			append(describe(m), slog.Duration("wait", delay), slog.Any("error", err))...)
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-l.Stopping:
			timer.Stop()
			return fmt.Errorf("%w: put the failed message away: %w", ErrStopping, err)
		}
	}
}

package middleware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/observe"
)

// maxSinkWait bounds the wait between two tries to put a dead letter.
const maxSinkWait = 5 * time.Second

// PoisonQueue turns a message that failed into dead letters, one for each handler that failed for good, and reports
// success, so that it is acked. A sink that is a [deadletter.Postponer] is first asked to have the handler try again
// later. While the sink fails the message is not acked, and the sink is tried again, until the worker stops; the message
// is then given back. A message that is given back because the worker stops is no failure.
//
// That the sink fails is logged once when it begins, and once when it fails for no message any more.
//
// Watermill's PoisonQueue writes one reason for all handlers and gives up at the sink's first error.
func PoisonQueue(sink deadletter.Sink, l Lifetime, o observe.Observer, logger *slog.Logger) message.HandlerMiddleware {
	s := &watchedSink{Sink: sink, logger: logger}
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(m *message.Message) ([]*message.Message, error) {
			ctx := m.Context()
			produced, err := next(m)
			if err == nil || errors.Is(err, ErrStopping) {
				return produced, err
			}
			outcome := observe.Postponed
			for _, failure := range FailuresOf(err) {
				wait, err := s.put(ctx, m, failure, l)
				if err != nil {
					return nil, err
				}
				o.Failed(m, failure.Handler, wait)
				var attrs []slog.Attr
				if failure.Attempts > 0 { // a parked event has none
					attrs = append(attrs, slog.Int("attempt", EarlierAttempts(m)+failure.Attempts))
				}
				attrs = append(attrs, slog.String("reason", failure.Reason))
				if failure.Handler != "" {
					attrs = append(attrs, slog.String("handler", failure.Handler))
				}
				if wait > 0 {
					attrs = append(attrs, slog.String("outcome", string(observe.Postponed)), slog.Duration("wait", wait))
					logger.LogAttrs(ctx, slog.LevelWarn, "event", attrs...)
					continue
				}
				outcome = observe.DeadLettered
				logger.LogAttrs(ctx, slog.LevelError, "event", append(attrs, slog.String("outcome", string(outcome)))...)
			}
			SetOutcome(ctx, outcome)
			return nil, nil
		}
	}
}

// FailuresOf are the failures that an error tells of: those of a *[deadletter.FailedError], or else one of no handler.
func FailuresOf(err error) []deadletter.Failure {
	if failed, ok := errors.AsType[*deadletter.FailedError](err); ok {
		return failed.Failures
	}
	return []deadletter.Failure{FailureOf("", err)}
}

// FailureOf is the failure of a handler ("" if it is none's) whose error is err, with the attempts of an *[ExhaustedError].
func FailureOf(handler string, err error) deadletter.Failure {
	now := time.Now().UTC()
	f := deadletter.Failure{Handler: handler, Attempts: 1, FirstFailed: now, LastFailed: now}
	if exhausted, ok := errors.AsType[*ExhaustedError](err); ok {
		f.Attempts, f.FirstFailed, f.LastFailed = exhausted.Attempts, exhausted.FirstFailed, exhausted.LastFailed
		err = exhausted.Err
		f.MayPass = handler != "" && !IsPermanent(err)
	}
	f.Reason = deadletter.CutReason(err.Error())
	return f
}

// watchedSink is a sink that counts the messages for which it fails.
type watchedSink struct {
	deadletter.Sink

	logger  *slog.Logger
	failing atomic.Int64
	outage  observe.Outage
}

// put postpones a message, and returns for how long, or else makes it a dead letter. It tries until the sink takes the
// message, or the worker stops.
func (s *watchedSink) put(ctx context.Context, m *message.Message, f deadletter.Failure, l Lifetime) (wait time.Duration, err error) {
	try := func() error {
		if postponer, ok := s.Sink.(deadletter.Postponer); ok && f.MayPass {
			if wait, err = postponer.Postpone(ctx, m, f); err != nil || wait > 0 {
				return err
			}
		}
		return s.Put(ctx, m, f)
	}
	waits := backoff.NewExponentialBackOff()
	waits.MaxInterval = maxSinkWait
	for failing := false; ; {
		err := try()
		if err == nil {
			if failing && s.failing.Add(-1) == 0 {
				s.outage.Over(ctx, s.logger, "messages can be put into the poison queue again")
			}
			return wait, nil
		}
		if !failing {
			s.failing.Add(1)
		}
		failing = true
		s.outage.Fails(ctx, s.logger, slog.LevelError, "cannot put messages into the poison queue, will try again", "error", err)
		timer := time.NewTimer(waits.NextBackOff())
		select {
		case <-timer.C:
		case <-l.Stopping:
			timer.Stop()
			s.failing.Add(-1)
			return 0, fmt.Errorf("%w: put the message into the poison queue: %w", ErrStopping, err)
		}
	}
}

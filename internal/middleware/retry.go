package middleware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/store"
)

// Retry tries again what fails, with exponentially growing, jittered waits between the attempts.
//
// An error marked with [backoff.Permanent] is not tried again. An error that wraps [store.ErrUnavailable] is not the
// event's fault: it is tried again for as long as the outage lasts and does not count as an attempt. When the worker
// stops, the wait ends at once and the error is [ErrStopping].
//
// Watermill's own Retry knows none of these three, and does not tell when it first failed and how often it tried.
type Retry struct {
	// Attempts is how often something is tried at most; at least 1.
	Attempts int
	// Earlier is how many attempts there were before, by which the numbers of the attempts are higher.
	Earlier int
	// Initial bounds the first wait, Max every wait. The bound of each wait is twice the one before; the wait is random, from
	// half its bound to its bound.
	Initial, Max time.Duration
	Lifetime     Lifetime
	Logger       *slog.Logger
	// Outages, if not nil, tracks the operations that wait for the store.
	Outages *Outages
}

// ExhaustedError says that a handler failed for good.
type ExhaustedError struct {
	Attempts    int
	FirstFailed time.Time
	LastFailed  time.Time
	// Err is the error of the last attempt.
	Err error
}

func (e *ExhaustedError) Error() string {
	return fmt.Sprintf("failed for good at attempt %d: %s", e.Attempts, e.Err)
}

func (e *ExhaustedError) Unwrap() error { return e.Err }

// Middleware is the Retry as a middleware of the router. The error is an *[ExhaustedError] or wraps [ErrStopping].
func (r Retry) Middleware(next message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) (produced []*message.Message, err error) {
		err = r.Do(m.Context(), func(int) error {
			produced, err = next(m)
			return err
		})
		return produced, err
	}
}

// Do is the Retry around any operation, which is given the number of its attempt, from 1 or after the earlier ones. An
// attempt that an outage of the store ended does not count: the next has its number. The error is an *[ExhaustedError] or wraps [ErrStopping].
func (r Retry) Do(ctx context.Context, operation func(attempt int) error) error {
	var failed ExhaustedError
	waits, outageWaits := r.newWaits(), r.newWaits()
	waiting := r.Outages.begin()
	defer waiting.end()
	answered := func() {
		if summary := waiting.end(); summary != nil {
			r.Logger.InfoContext(ctx, "the store can do it again", summary...)
		}
	}
	for {
		err := operation(r.Earlier + failed.Attempts + 1)
		if err == nil {
			answered()
			return nil
		}
		if errors.Is(err, ErrStopping) {
			return err // a wait within the operation was ended
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ErrStopping, err)
		}
		wait := outageWaits
		if IsPermanent(err) || !errors.Is(err, store.ErrUnavailable) {
			answered()
			now := time.Now().UTC()
			if failed.Attempts++; failed.Attempts == 1 {
				failed.FirstFailed = now
			}
			failed.LastFailed, failed.Err = now, err
			if failed.Attempts >= r.Attempts || IsPermanent(err) {
				return &failed
			}
			wait = waits
		}
		delay := jittered(wait.NextBackOff())
		if wait == outageWaits {
			r.Logger.Log(ctx, waiting.note(err), "the store cannot do it, will try again", "wait", delay, "error", err)
		} else {
			r.Logger.WarnContext(ctx, "attempt failed, will retry", "attempt", r.Earlier+failed.Attempts, "wait", delay, "error", err)
		}
		if err := r.wait(ctx, delay); err != nil {
			return err
		}
	}
}

func (r Retry) newWaits() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier = r.Initial, r.Max, 2
	b.RandomizationFactor = 0 // its jitter would exceed the maximum
	b.Reset()
	return b
}

// jittered returns a random wait from half the bound to the bound.
func jittered(bound time.Duration) time.Duration { return bound - rand.N(bound/2+1) }

func (r Retry) wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-r.Lifetime.Stopping:
		return ErrStopping
	case <-ctx.Done():
		return ErrStopping
	}
}

// EarlierAttempts is how many attempts the handler that m is for has had in earlier rounds of --retry-later.
func EarlierAttempts(m *message.Message) int {
	earlier, _ := strconv.Atoi(m.Metadata.Get(bus.EarlierAttemptsKey)) // 0 if it is no number
	return max(earlier, 0)
}

// IsPermanent tells whether err is, or wraps, an error marked with [backoff.Permanent].
func IsPermanent(err error) bool {
	_, permanent := errors.AsType[*backoff.PermanentError](err)
	return permanent
}

package middleware_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/middleware"
	"github.com/healz/worker/internal/store"
)

var errTransient = errors.New("the printer is out of paper")

// failing returns an operation that returns the errors one after another, then nil, and counts its calls.
func failing(calls *int, errs ...error) func(int) error {
	return func(int) error {
		*calls++
		if *calls <= len(errs) {
			return errs[*calls-1]
		}
		return nil
	}
}

func newRetry(attempts int) middleware.Retry {
	return middleware.Retry{
		Attempts: attempts, Initial: time.Millisecond, Max: 4 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
	}
}

func TestRetryDo(t *testing.T) {
	t.Parallel()
	outage := fmt.Errorf("append: %w", store.ErrUnavailable)
	for name, test := range map[string]struct {
		errs      []error
		wantCalls int
		// wantAttempts is that of the *ExhaustedError; 0 is success.
		wantAttempts int
		wantErr      error
	}{
		"success at once":               {nil, 1, 0, nil},
		"success at the last attempt":   {[]error{errTransient, errTransient}, 3, 0, nil},
		"exhausted":                     {[]error{errTransient, errTransient, errTransient}, 3, 3, errTransient},
		"permanent":                     {[]error{backoff.Permanent(errTransient)}, 1, 1, errTransient},
		"permanent after a transient":   {[]error{errTransient, backoff.Permanent(errTransient)}, 2, 2, errTransient},
		"permanent within":              {[]error{fmt.Errorf("handler: %w", backoff.Permanent(errTransient))}, 1, 1, errTransient},
		"an outage does not count":      {[]error{outage, outage, outage, outage, outage}, 6, 0, nil},
		"an outage between transients":  {[]error{errTransient, outage, outage, outage, errTransient}, 6, 0, nil},
		"exhausted, outage not counted": {[]error{outage, errTransient, outage, errTransient, errTransient}, 5, 3, errTransient},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calls := 0
			began := time.Now()
			err := newRetry(3).Do(t.Context(), failing(&calls, test.errs...))
			require.Equal(t, test.wantCalls, calls)
			if test.wantAttempts == 0 {
				require.NoError(t, err)
				return
			}
			exhausted, ok := errors.AsType[*middleware.ExhaustedError](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, test.wantAttempts, exhausted.Attempts)
			require.ErrorIs(t, err, test.wantErr)
			require.False(t, exhausted.FirstFailed.Before(began.UTC()))
			require.False(t, exhausted.LastFailed.Before(exhausted.FirstFailed))
		})
	}
}

func TestRetryWaitsNoLongerThanItsMaximum(t *testing.T) {
	t.Parallel()
	for name, failure := range map[string]error{"failure": errTransient, "outage": store.ErrUnavailable} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRetry(50)
				r.Initial, r.Max = time.Second, 8*time.Second
				bound, last, calls := r.Initial, time.Now(), 0
				_ = r.Do(t.Context(), func(attempt int) error {
					calls++
					if errors.Is(failure, errTransient) {
						require.Equal(t, calls, attempt)
					} else {
						require.Equal(t, 1, attempt, "the store has ended each before")
					}
					if calls > 1 {
						require.LessOrEqual(t, time.Since(last), bound)
						require.GreaterOrEqual(t, time.Since(last), bound/2)
						bound = min(2*bound, r.Max)
					}
					if last = time.Now(); calls == 50 {
						return nil
					}
					return failure
				})
			})
		})
	}
}

func TestRetryEndsItsWaitWhenTheWorkerStops(t *testing.T) {
	t.Parallel()
	stopping := make(chan struct{})
	r := newRetry(5)
	r.Initial, r.Max = time.Hour, time.Hour
	r.Lifetime.Stopping = stopping
	err := r.Do(t.Context(), func(int) error {
		close(stopping) // a second call would panic
		return errTransient
	})
	require.ErrorIs(t, err, middleware.ErrStopping)
	require.ErrorIs(t, err, context.Canceled, "or the router would log it as an error")
}

// logLines can be read while others write.
type logLines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logLines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// An outage is logged once when it lasts and once when it is over, however many messages wait for its end.
func TestOutageOfTheStoreIsLoggedAtItsBeginAndItsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var lines logLines
		r := middleware.Retry{
			Attempts: 3, Initial: 100 * time.Millisecond, Max: time.Second, Outages: &middleware.Outages{Patience: 5 * time.Second},
			Logger: slog.New(slog.NewTextHandler(&lines, nil)),
		}
		count := func(level string) int { return strings.Count(lines.String(), "level="+level) }
		for outage := 1; outage <= 2; outage++ {
			began := time.Now()
			var messages sync.WaitGroup
			for range 20 {
				messages.Go(func() {
					assert.NoError(t, r.Do(t.Context(), func(int) error {
						if time.Since(began) < time.Minute {
							return store.ErrUnavailable
						}
						return nil
					}))
				})
			}
			time.Sleep(10 * time.Second) //nolint:forbidigo // the bubble's time
			warnings := count("WARN")
			time.Sleep(40 * time.Second) //nolint:forbidigo // the bubble's time
			require.Equal(t, outage, count("ERROR"))
			require.Equal(t, warnings, count("WARN"), "no line for each retry")
			require.Equal(t, outage-1, count("INFO"))
			messages.Wait()
			require.Equal(t, outage, count("ERROR"))
			require.Equal(t, outage, count("INFO"))
			require.NoError(t, r.Outages.Err())
		}
	})
}

func TestRetryTakesAStopWithinForNoFailure(t *testing.T) {
	t.Parallel()
	stop := fmt.Errorf("record: %w", middleware.ErrStopping)
	require.Equal(t, stop, newRetry(1).Do(t.Context(), func(int) error { return stop }))
}

func TestRetryTakesACancelledMessageForNoFailure(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	err := newRetry(5).Do(ctx, func(int) error {
		cancel()
		return fmt.Errorf("query: %w", ctx.Err())
	})
	require.ErrorIs(t, err, middleware.ErrStopping)
	_, exhausted := errors.AsType[*middleware.ExhaustedError](err)
	require.False(t, exhausted)
}

func TestRetryMiddleware(t *testing.T) {
	t.Parallel()
	failed := backoff.Permanent(&deadletter.FailedError{Failures: []deadletter.Failure{{Handler: "h", Reason: "no"}}})
	for name, test := range map[string]struct {
		errs  []error
		calls int
		want  []deadletter.Failure
	}{
		"an outage, then success":               {slices.Repeat([]error{store.ErrUnavailable}, 5), 6, nil},
		"handlers have had their attempts":      {[]error{failed}, 1, []deadletter.Failure{{Handler: "h", Reason: "no"}}},
		"an outage, then handlers have failed":  {[]error{store.ErrUnavailable, failed}, 2, []deadletter.Failure{{Handler: "h", Reason: "no"}}},
		"an error outside of handlers may pass": {[]error{errTransient}, 2, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := message.NewMessage("1", nil)
			m.SetContext(t.Context())
			calls := 0
			operation := failing(&calls, test.errs...)
			_, err := newRetry(3).Middleware(func(*message.Message) ([]*message.Message, error) { return nil, operation(0) })(m)
			require.Equal(t, test.calls, calls)
			if test.want == nil {
				require.NoError(t, err)
			} else {
				require.Equal(t, test.want, middleware.FailuresOf(err))
			}
		})
	}
}

package worker_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/worker"
)

func TestHandlingThatOutlastsTheConsumerTimeout(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change   func(*worker.Tuning)
		handlers int
		want     time.Duration
	}{
		"defaults":      {func(*worker.Tuning) {}, 1, 4*30*time.Second + 700*time.Millisecond},
		"many handlers": {func(*worker.Tuning) {}, 15, 15 * (4*30*time.Second + 700*time.Millisecond)},
		"slow handler":  {func(t *worker.Tuning) { t.RetryAttempts, t.HandlerTimeout = 1, time.Hour }, 1, time.Hour},
		"many attempts": {func(t *worker.Tuning) {
			t.RetryAttempts, t.RetryInitial, t.RetryMax = 10, 2*time.Second, 10*time.Minute
		}, 1, 5*time.Minute + 1022*time.Second},
		"at the maximum": {func(t *worker.Tuning) {
			t.RetryAttempts, t.RetryInitial, t.RetryMax = 6, time.Minute, 4*time.Minute
		}, 1, 3*time.Minute + (1+2+4+4+4)*time.Minute},
	} {
		tuning := worker.DefaultTuning()
		test.change(&tuning)
		require.Equal(t, test.want, tuning.LongestHandling(test.handlers), name)
		require.Equal(t, test.want > worker.ConsumerTimeout, tuning.OutlastsConsumerTimeout(test.handlers) != "", name)
	}
	tuning := worker.DefaultTuning()
	tuning.RetryAttempts, tuning.HandlerTimeout, tuning.RetryMax = math.MaxInt, 1<<60, 1<<60
	require.NotEmpty(t, tuning.OutlastsConsumerTimeout(math.MaxInt), "no overflow")
}

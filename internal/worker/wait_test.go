package worker

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The wait for all servers together ends when --wait says.
func TestTheWaitForServersIsBounded(t *testing.T) {
	t.Parallel()
	errDown := errors.New("down")
	refused := func(context.Context) error { return errDown }
	var tries int
	thenHanging := func(ctx context.Context) error {
		if tries++; tries > 1 {
			<-ctx.Done()
			return ctx.Err()
		}
		return errDown
	}
	for name, test := range map[string]struct {
		try  func(context.Context) error
		want error
	}{
		"a server that refuses":           {refused, errDown},
		"a server that answers no longer": {thenHanging, errDown},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const bound = 3 * time.Second
				began := time.Now()
				w := newWait(OpenOptions{Wait: bound, Logger: slog.New(slog.DiscardHandler)})
				err := w.until(t.Context(), errDown, test.try)
				require.ErrorIs(t, err, test.want)
				require.GreaterOrEqual(t, time.Since(began), bound-lastTry)
				require.LessOrEqual(t, time.Since(began), bound)
				require.ErrorIs(t, w.until(t.Context(), errDown, refused), errDown, "the next server")
				require.LessOrEqual(t, time.Since(began), bound)
				require.NoError(t, w.until(t.Context(), errDown, func(ctx context.Context) error { return ctx.Err() }), "one that is available")
			})
		})
	}
	t.Run("without a wait", func(t *testing.T) {
		t.Parallel()
		w := newWait(OpenOptions{})
		require.ErrorIs(t, w.until(t.Context(), errDown, refused), errDown)
	})
}

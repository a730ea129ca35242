package tracing

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A collector that takes every second batch is two lines a minute.
func TestOutagesInTurnAreFewLines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		d := &delivery{logger: slog.New(slog.NewTextHandler(&log, nil))}
		for range 300 { // ten minutes
			d.note(t.Context(), 2, errors.New("refused"))
			time.Sleep(time.Second) //nolint:forbidigo // the time of the bubble
			d.note(t.Context(), 2, nil)
			time.Sleep(time.Second) //nolint:forbidigo // the time of the bubble
		}
		require.Equal(t, 10, strings.Count(log.String(), "cannot export traces"))
		require.Equal(t, 10, strings.Count(log.String(), "traces are exported again"))
		log.Reset()
		d.stopped(t.Context(), nil)
		require.Contains(t, log.String(), "dropped=600")
	})
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/tracing"
	"github.com/healz/worker/internal/worker"
)

const (
	// flushCommand is how long the end of a command waits for the export of its last spans: a person or a script waits for it.
	flushCommand = time.Second
	// FlushWorker is that of a worker.
	FlushWorker = 5 * time.Second
)

// withTracer calls do with the tracer that the variables of OpenTelemetry configure, which may be nil, and exports the last
// spans at the end, within a time. It logs if it cannot.
func withTracer(
	ctx context.Context, s worker.Settings, flush time.Duration, logger *slog.Logger, do func(*tracing.Tracer) error,
) error {
	tracing.LogErrors(ctx, logger)
	t, stop, err := tracing.Start(ctx, Version(), s.Places(), os.Getenv, logger)
	if errors.Is(err, tracing.ErrSetting) {
		return usageError{err}
	}
	if err != nil {
		return fmt.Errorf("export traces: %w", err)
	}
	err = do(t)
	flushing, cancel := context.WithTimeout(context.WithoutCancel(ctx), flush)
	defer cancel()
	stop(flushing)
	return err
}

// observers contains the tracer, unless it is nil.
func observers(t *tracing.Tracer) observe.All {
	if t == nil {
		return nil
	}
	return observe.All{t}
}

// stderrLogger is the log of a short command: warnings and errors.
func stderrLogger(c *cobra.Command) *slog.Logger {
	return slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

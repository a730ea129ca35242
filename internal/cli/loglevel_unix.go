//go:build unix

package cli

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

const levelStep = slog.LevelInfo - slog.LevelDebug

// changeLevel makes the log one level more verbose at each SIGUSR1 and resets it at SIGUSR2, until ctx is done. Only the user
// of the worker process and root can send these signals.
func changeLevel(ctx context.Context, level *slog.LevelVar, logger *slog.Logger) {
	set := level.Level()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGUSR2 {
				level.Set(set)
			} else {
				level.Set(max(level.Level()-levelStep, slog.LevelDebug))
			}
			logger.Log(ctx, max(level.Level(), slog.LevelInfo), "the log level was changed", "level", level.Level())
		case <-ctx.Done():
			return
		}
	}
}

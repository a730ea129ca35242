//go:build unix

package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// levelStep is between two levels of slog.
const levelStep = slog.LevelInfo - slog.LevelDebug

// changeLevel makes the log a level more verbose at each SIGUSR1, and at SIGUSR2 what it was, until ctx is done. Only the
// user that the worker runs as, and root, can send them.
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

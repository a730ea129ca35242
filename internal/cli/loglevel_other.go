//go:build !unix

package cli

import (
	"context"
	"log/slog"
)

// changeLevel does nothing: this system has no SIGUSR1.
func changeLevel(context.Context, *slog.LevelVar, *slog.Logger) {}

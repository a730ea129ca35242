//go:build !unix

package main

import (
	"context"
	"log/slog"
)

// changeLevel does nothing: there are no signals for it.
func changeLevel(context.Context, *slog.LevelVar, *slog.Logger) {}

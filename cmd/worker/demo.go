package main

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/demo"
	"github.com/healz/worker/internal/tracing"
)

func demoCommand() *cobra.Command {
	var once bool
	f := runFlags{migrate: true, chaos: true, console: consoleFlags{write: true}}
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run a worker on sample traffic, in a temporary folder, and say what to look for",
		Long: `demo runs a worker on the sample traffic of three clinics until it is stopped, and says where to look at it and what
there is to find: an appointment that failed, why it did, and how it is mended and replayed. With --once it plays the main
job step by step instead and ends: events are appended and handled, one is retried, one becomes a dead letter, is looked at
and replayed. It needs no server and leaves nothing.`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if once {
				return demo.Run(c.Context(), c.OutOrStdout())
			}
			if err := f.check(); err != nil {
				return usageError{err}
			}
			return demo.Live(c.Context(), c.OutOrStdout(), func(ctx context.Context, s demo.Stage) error {
				var level slog.LevelVar
				logger := slog.New(slog.NewTextHandler(s.Log, &slog.HandlerOptions{Level: &level}))
				f.serving = s.Serving
				return whileLevelChanges(ctx, &level, logger, func(ctx context.Context) error {
					return withTracer(ctx, s.Settings, logger, func(t *tracing.Tracer) error {
						return runWorker(ctx, s.Settings, f, demo.Register, t, logger)
					})
				})
			})
		},
	}
	c.Flags().BoolVar(&once, "once", false, "play the main job step by step, and end")
	c.Flags().StringVar(&f.httpAddr, "http-addr", "127.0.0.1:8080", "where the worker serves; port 0 takes a free one")
	return c
}

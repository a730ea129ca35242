package cli

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/console"
	"github.com/healz/worker/internal/demo"
	"github.com/healz/worker/internal/tracing"
)

// Demo is the command that shows a worker at work on sample traffic.
func Demo() *cobra.Command {
	var once bool
	f := runFlags{migrate: true, chaos: true, console: console.Access{Write: true}}
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run a worker on sample traffic, with a guided tour",
		Long: `demo runs a worker on the sample traffic of three clinics until it is stopped. It prints the address of the console, and
guides through one failure: find out why an appointment failed, fix the cause, and replay it. With --once it runs a short
script instead and ends: events are appended and handled, one is retried, one becomes a dead letter and is replayed. demo
needs no server, and deletes its files at the end.`,
		Args: noArguments,
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
					return withTracer(ctx, s.Settings, FlushWorker, logger, func(t *tracing.Tracer) error {
						return runWorker(ctx, s.Settings, f, demo.Register, t, logger)
					})
				})
			})
		},
	}
	c.Flags().BoolVar(&once, "once", false, "run a short script and end")
	c.Flags().StringVar(&f.httpAddr, "http-addr", "127.0.0.1:8080", "address of the console; port 0 selects a free port")
	return c
}

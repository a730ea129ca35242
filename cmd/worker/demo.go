package main

import (
	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/demo"
)

func demoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show the main job on sample traffic, in a temporary folder",
		Long: `demo plays the worker's main job on sample traffic of a clinic and tells what happens: events are appended and
handled, one is retried, one becomes a dead letter, is looked at and replayed. It needs no server and leaves nothing.`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return demo.Run(c.Context(), c.OutOrStdout())
		},
	}
}

package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/causation"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/worker"
)

func traceCommand(s *worker.Settings) *cobra.Command {
	c := &cobra.Command{
		Use:   "trace CORRELATION_ID",
		Short: "Show the events of a correlation id as a tree of causes",
		Long: `trace shows all events with a correlation id as a tree: each event below its cause, with the time of its creation, the
handlers that have handled it (✓) and how long after, and its dead letters with their ids and errors: ✗ waiting, – in another
state. The argument may also be the id of one of the events. trace never shows event_data.

The handlers of an event are known as long as the inbox keeps their records (--inbox-retention of the worker).`,
		Example: `  worker trace 0198c9f0-7d1b-7c4e-a0f4-5a1f6f0f3b11
  worker trace 0198c9f0-7d1b-7c4e-a0f4-5a1f6f0f3b11 -o dot | dot -Tsvg`,
		Args: oneID,
	}
	f := addFormats(c, "output format: a tree that fits the terminal, or all of it (wide); json prints one object, dot a graph for Graphviz", formatTree, formatWide, formatJSON, formatDOT)
	c.RunE = func(c *cobra.Command, args []string) error {
		id, err := events.ParseCorrelationID(args[0])
		if err != nil {
			return usageError{fmt.Errorf("the ID is %w", err)}
		}
		return withStore(c, s, s.OpenExisting, func(b worker.Backend) error {
			tree, err := causation.Load(c.Context(), b, id, deadletter.NewTable(b.SQL()))
			if err != nil {
				return err
			}
			switch *f {
			case formatJSON:
				return tree.WriteJSON(c.OutOrStdout())
			case formatDOT:
				return tree.WriteDOT(c.OutOrStdout())
			default:
				return tree.WriteText(c.OutOrStdout(), widthFor(c, *f))
			}
		})
	}
	return c
}

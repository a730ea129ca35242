package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/causation"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/worker"
)

func traceCommand(s *worker.Settings) *cobra.Command {
	f := formatTree
	c := &cobra.Command{
		Use:   "trace CORRELATION_ID",
		Short: "Show a chain of causes as a tree: what followed from what, who handled it, what failed",
		Long: `trace shows the chain of causes with this correlation id, or the one that the event with this id belongs to, as a
tree: when each event was created, which handlers have handled it and how long after that, with ✗ what failed and waits in
the dead letters, why, and under which id, and with – what of that is archived or replayed. It never shows event_data.

Who has handled an event is known for as long as the inbox keeps it (--inbox-retention of the worker).`,
		Example: `  worker trace 0198c9f0-7d1b-7c4e-a0f4-5a1f6f0f3b11
  worker trace import-0198c9f0-7d1b-7c4e-a0f4-5a1f6f0f3b11 --format dot | dot -Tsvg > chain.svg`,
		Args: oneID, ValidArgsFunction: cobra.NoFileCompletions,
	}
	c.Flags().Var(&f, "format", "how to print; json is one object, dot a graph for Graphviz")
	complete(c, "format", string(formatTree), string(formatJSON), string(formatDOT))
	c.RunE = func(c *cobra.Command, args []string) error {
		id, err := events.ParseCorrelationID(args[0])
		if err != nil {
			return usageError{fmt.Errorf("the ID is %w", err)}
		}
		return withStore(c.Context(), s, s.OpenExisting, func(b worker.Backend) error {
			tree, err := causation.Load(c.Context(), b, id, deadletter.NewTable(b.SQL()))
			if err != nil {
				return err
			}
			return f.print(c.OutOrStdout(), tree)
		})
	}
	return c
}

// treeFormat is how a tree is printed.
type treeFormat string

const (
	formatTree treeFormat = "tree"
	formatDOT  treeFormat = "dot"
)

// String, Set and Type implement pflag.Value.
func (f *treeFormat) String() string { return string(*f) }
func (f *treeFormat) Type() string   { return "tree|json|dot" }

// Set takes a table for a tree: the variable WORKER_FORMAT is all commands' own.
func (f *treeFormat) Set(s string) error {
	switch s {
	case string(formatTree), string(formatTable):
		*f = formatTree
	case string(formatJSON), string(formatDOT):
		*f = treeFormat(s)
	default:
		return fmt.Errorf("must be tree, json or dot, not %q", s)
	}
	return nil
}

func (f *treeFormat) print(w io.Writer, tree causation.Tree) error {
	switch *f {
	case treeFormat(formatJSON):
		return tree.WriteJSON(w)
	case formatDOT:
		return tree.WriteDOT(w)
	default:
		return tree.WriteText(w)
	}
}

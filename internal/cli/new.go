package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/scaffold"
)

func newCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "new NAME",
		Short: "Write a Go module that builds on the worker, into a new folder",
		Long: `new writes a Go module that builds on the worker: a program with an aggregate, a handler and their tests, a Makefile, and
files for Docker. NAME is the path of the module, whose last part names the folder and the program. It changes nothing else.`,
		Example: `  worker new example.org/billing`,
		Args:    arguments(1, 1, "one NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			folder, names, err := scaffold.Write(".", args[0], Version())
			if errors.Is(err, scaffold.ErrName) {
				return usageError{err}
			}
			if err != nil {
				return err
			}
			out := c.OutOrStdout()
			for _, name := range names {
				fmt.Fprintf(out, "%s/%s\n", folder, name)
			}
			fmt.Fprintf(out, "\nNow: cd %s && go mod tidy && make test run; README.md is the first chapter.\n", folder)
			return nil
		},
	}
}

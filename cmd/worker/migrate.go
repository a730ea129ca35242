package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/worker"
)

func migrateCommand(s *worker.Settings) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "migrate",
		Short: "Bring the database's schema up to date, show it, or take a step back",
	})
	c.AddCommand(migrateUp(s), migrateStatus(s), migrateDown(s))
	return c
}

func migrateUp(s *worker.Settings) *cobra.Command {
	return &cobra.Command{
		Use:   "up",
		Short: "Apply what is missing; a table of events that another service made is adopted with its rows",
		Args:  noArguments, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), s, s.OpenStore, func(b worker.Backend) error {
				if err := b.Migrate(c.Context()); err != nil {
					return err
				}
				fmt.Fprintln(c.OutOrStdout(), "the schema is up to date")
				return nil
			})
		},
	}
}

func migrateStatus(s *worker.Settings) *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "List the schema's versions and when they were applied",
		Args:  noArguments, ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := addFormat(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return withStore(c.Context(), s, s.OpenExisting, func(b worker.Backend) error { return printStatus(c, *f, b) })
	}
	return c
}

func migrateDown(s *worker.Settings) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Take the newest version back; refused when anything would be lost",
		Args:  noArguments, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), s, s.OpenExisting, func(b worker.Backend) error {
				if err := b.MigrateDown(c.Context()); err != nil {
					return err
				}
				fmt.Fprintln(c.OutOrStdout(), "rolled back by one version")
				return nil
			})
		},
	}
}

func printStatus(c *cobra.Command, f format, b worker.Backend) error {
	list, err := b.MigrationStatus(c.Context())
	if err != nil {
		return err
	}
	if f == formatJSON {
		for _, m := range list {
			if err := printJSON(c.OutOrStdout(), m); err != nil {
				return err
			}
		}
		return nil
	}
	t := newTable(c.OutOrStdout(), "VERSION", "NAME", "APPLIED")
	for _, m := range list {
		t.row(fmt.Sprint(m.Version), m.Name, localTime(m.AppliedAt))
	}
	return t.flush()
}

// withStore opens the store for one command.
func withStore(
	ctx context.Context, s *worker.Settings, open func(context.Context) (worker.Backend, error), do func(worker.Backend) error,
) (err error) {
	if err := s.Check(); err != nil {
		return usageError{err}
	}
	b, err := open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return do(b)
}

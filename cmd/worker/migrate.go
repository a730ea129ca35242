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
	run := func(use, short string, do func(c *cobra.Command, b worker.Backend) error) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Args: exactly(0), RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), s, func(b worker.Backend) error { return do(c, b) })
		}}
	}
	status := run("status", "List the schema's versions and when they were applied", nil)
	f := addFormat(status)
	status.RunE = func(c *cobra.Command, _ []string) error {
		return withStore(c.Context(), s, func(b worker.Backend) error { return printStatus(c, *f, b) })
	}
	c.AddCommand(
		run("up", "Apply what is missing; a table of events that another service made is adopted with its rows", func(c *cobra.Command, b worker.Backend) error {
			if err := b.Migrate(c.Context()); err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), "the schema is up to date")
			return nil
		}),
		status,
		run("down", "Take the newest version back; events are never destroyed", func(c *cobra.Command, b worker.Backend) error {
			if err := b.MigrateDown(c.Context()); err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), "the schema is one version older")
			return nil
		}),
	)
	return c
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
func withStore(ctx context.Context, s *worker.Settings, do func(worker.Backend) error) (err error) {
	if err := s.Check(); err != nil {
		return usageError{err}
	}
	b, err := s.OpenStore(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return do(b)
}

// withSchema opens the store for one command that needs its tables: the embedded default makes them by itself.
func withSchema(ctx context.Context, s *worker.Settings, do func(worker.Backend) error) error {
	return withStore(ctx, s, func(b worker.Backend) error {
		if s.Embedded() {
			if err := b.Migrate(ctx); err != nil {
				return err
			}
		}
		return do(b)
	})
}

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
		Short: "Migrate the database schema up or down, or show its versions",
	})
	up := migrateStep(s, "up", "Apply missing migrations; an existing events table of another service is adopted with its rows",
		"the schema is up to date", worker.Settings.OpenStore, worker.Backend.Migrate)
	down := migrateStep(s, "down", "Roll back the newest migration; refused if data would be lost",
		"rolled back by one version", worker.Settings.OpenExisting, worker.Backend.MigrateDown)
	c.AddCommand(up, migrateStatus(s), down)
	return c
}

func migrateStep(
	s *worker.Settings, use, short, done string,
	open func(worker.Settings, context.Context) (worker.Backend, error), migrate func(worker.Backend, context.Context) error,
) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			open := func(ctx context.Context) (worker.Backend, error) { return open(*s, ctx) }
			return withStore(c, s, open, func(b worker.Backend) error {
				if err := migrate(b, c.Context()); err != nil {
					return err
				}
				fmt.Fprintln(c.OutOrStdout(), done)
				return nil
			})
		},
	}
}

func migrateStatus(s *worker.Settings) *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "List the migrations and when they were applied",
		Args:  noArguments,
	}
	f := addFormat(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return withStore(c, s, s.OpenExisting, func(b worker.Backend) error {
			list, err := b.MigrationStatus(c.Context())
			if err != nil {
				return err
			}
			p := newPrinter(c.OutOrStdout(), *f, "VERSION", "NAME", "APPLIED")
			for _, m := range list {
				if err := p.print(m, fmt.Sprint(m.Version), m.Name, localTime(m.AppliedAt)); err != nil {
					return err
				}
			}
			return p.flush()
		})
	}
	return c
}

// withStore checks the settings, and opens the store for one command.
func withStore(
	c *cobra.Command, s *worker.Settings, open func(context.Context) (worker.Backend, error), do func(worker.Backend) error,
) (err error) {
	if err := s.Check(); err != nil {
		return usageError{err}
	}
	b, err := open(c.Context())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return do(b)
}

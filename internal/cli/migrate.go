package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/store"
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
	c.AddCommand(up, migrateStatus(s), down, migrateRestored(s))
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

func migrateRestored(s *worker.Settings) *cobra.Command {
	return &cobra.Command{
		Use:   "restored",
		Short: "Make a database usable that was restored from a dump of another Postgres cluster",
		Long: `Make a database usable that was restored from a dump of another Postgres cluster.

The events then have transaction ids of that cluster, by which the relay cannot read them in commit order. This command
replaces them. The relay continues behind what it has published, with the events that were restored, and then with those
that were appended since. It needs the owner of the tables. Readers and writers wait while it rewrites the events.
It does nothing to a database that was not restored, or of which the ids are replaced already.`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c, s, s.OpenExisting, func(b worker.Backend) error {
				done, err := b.MigrateRestored(c.Context())
				switch {
				case err != nil:
					return err
				case done == store.Renumbered{}:
					fmt.Fprintln(c.OutOrStdout(), "nothing to do: the database is not restored from a dump of another cluster")
				default:
					fmt.Fprintf(c.OutOrStdout(), "restored events: %d, of which %d are not relayed yet; appended since: %d\n",
						done.Events, done.Waiting, done.New)
				}
				return nil
			})
		},
	}
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

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/worker"
	"github.com/healz/worker/migrations"
)

func migrateCommand(s *worker.Settings, all registrations) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "migrate",
		Short: "Migrate the database schema up or down, or show its versions",
	})
	c.AddCommand(migrateUp(s, all), migrateStatus(s, all), migrateDown(s, all), migrateRestored(s))
	return c
}

func migrateUp(s *worker.Settings, all registrations) *cobra.Command {
	return &cobra.Command{
		Use:   "up",
		Short: "Apply missing migrations",
		Long: `up applies the missing migrations, the program's own (worker.Migrations) last. An existing events table of another service is
adopted with its rows.`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c, s, s.OpenStore, func(b worker.Backend) error {
				if err := worker.MigrateAll(c.Context(), b, all); err != nil {
					return err
				}
				fmt.Fprintln(c.OutOrStdout(), "the schema is up to date")
				return nil
			})
		},
	}
}

func migrateDown(s *worker.Settings, all registrations) *cobra.Command {
	var of string
	var yes bool
	c := &cobra.Command{
		Use:   "down",
		Short: "Roll back the newest migration",
		Long: `down rolls back the newest migration, and asks before that; without a terminal it needs --yes. It refuses to if data of the
worker would be lost.`,
		Args: noArguments,
	}
	addYes(c, &yes)
	c.Flags().StringVar(&of, "of", "", "the NAME of the program's own migrations (worker.Migrations); empty: the worker's schema")
	c.RunE = func(c *cobra.Command, _ []string) error {
		down, status := worker.Backend.MigrateDown, worker.Backend.MigrationStatus
		if of != "" {
			sets := handlers.MigrationsOf(all.registry())
			i := slices.IndexFunc(sets, func(set migrations.Set) bool { return set.Name == of })
			if i < 0 {
				var known []string
				for _, set := range sets {
					known = append(known, set.Name)
				}
				return meant(fmt.Sprintf("--of: the program has no migrations of the name %q", of), "", of, known)
			}
			down = func(b worker.Backend, ctx context.Context) error {
				return b.WithMigrations(ctx, sets[i], func(ctx context.Context, m *migrations.Migrator) error { return m.Down(ctx) })
			}
			status = func(b worker.Backend, ctx context.Context) (list []migrations.Status, err error) {
				err = b.WithMigrations(ctx, sets[i], func(ctx context.Context, m *migrations.Migrator) error {
					list, err = m.Status(ctx)
					return err
				})
				return list, err
			}
		}
		return withStore(c, s, s.OpenExisting, func(b worker.Backend) error {
			list, err := status(b, c.Context())
			if err != nil {
				return err
			}
			what := ""
			for _, m := range list {
				if !m.AppliedAt.IsZero() {
					what = fmt.Sprintf("version %d (%s) of %s in %s", m.Version, m.Name, cmp.Or(of, "the schema"), s.StoreName())
				}
			}
			if what == "" {
				return errors.New("no version is applied")
			}
			if err := confirm(c, yes, "roll back "+what); err != nil {
				return err
			}
			if err := down(b, c.Context()); err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), "rolled back "+what)
			return nil
		})
	}
	return c
}

func migrateStatus(s *worker.Settings, all registrations) *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "List the migrations and when they were applied",
		Args:  noArguments,
	}
	f := addFormat(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return withStore(c, s, s.OpenExisting, func(b worker.Backend) error {
			list, err := b.MigrationStatus(c.Context())
			for _, set := range handlers.MigrationsOf(all.registry()) {
				err = errors.Join(err, b.WithMigrations(c.Context(), set, func(ctx context.Context, m *migrations.Migrator) error {
					own, err := m.Status(ctx)
					list = append(list, own...)
					return err
				}))
			}
			if err != nil {
				return err
			}
			p := newPrinter(c, *f, column{name: "OF"}, column{name: "VERSION"}, column{name: "NAME", least: 20}, column{name: "APPLIED"})
			for _, m := range list {
				if err := p.print(m, cmp.Or(m.Of, "worker"), fmt.Sprint(m.Version), m.Name, localTime(m.AppliedAt)); err != nil {
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
		Short: "Make a database usable that was restored from a dump",
		Long: `restored makes a database usable that was restored from a dump of another Postgres cluster. The events then have transaction
ids of that cluster, by which the relay cannot read them in commit order. This command replaces them. The relay continues behind what it has published, with the events that were restored, and then with those
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

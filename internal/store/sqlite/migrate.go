package sqlite

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/migrations"
)

// Migrate brings the schema up to date; nothing happens when it is. Of several processes that begin at once one does
// it. It is [store.ErrForeignTable] if the file has a table events of another program.
func (s *Store) Migrate(ctx context.Context) error {
	return s.migrate(ctx, "migrate up", func(m *migrations.Migrator, ctx context.Context) error {
		if err := migrations.CheckForeign(ctx, s.migrating); err != nil {
			return err
		}
		return m.Up(ctx)
	})
}

// Create makes the schema in a new file. It leaves any other file as it is: a worker of an older version may be running on
// it. It is [store.ErrForeignTable] and [store.ErrNewerSchema] as [Store.Migrate] is.
func (s *Store) Create(ctx context.Context) error {
	return s.migrate(ctx, "create the schema", func(m *migrations.Migrator, ctx context.Context) error {
		if err := migrations.CheckForeign(ctx, s.migrating); err != nil {
			return err
		}
		var used bool
		err := s.migrating.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name NOT IN (?, 'sqlite_sequence'))",
			migrations.Table).Scan(&used)
		if err != nil {
			return err
		}
		if used {
			if err := s.checkSchema(ctx); errors.Is(err, store.ErrNewerSchema) {
				return err
			}
			return nil
		}
		return m.Up(ctx)
	})
}

// MigrateDown reverts the newest version of the schema. It is [store.ErrNoSchema] when there is none, and
// [store.ErrWouldLose] when anything would be destroyed.
func (s *Store) MigrateDown(ctx context.Context) error {
	return s.migrate(ctx, "migrate down", (*migrations.Migrator).Down)
}

// MigrateRestored does nothing: a copy of the file is as the file was.
func (s *Store) MigrateRestored(context.Context) (store.Renumbered, error) {
	return store.Renumbered{}, nil
}

// MigrationStatus lists the versions of the schema, oldest first.
func (s *Store) MigrationStatus(ctx context.Context) (list []migrations.Status, err error) {
	err = s.migrate(ctx, "read the migrations", func(m *migrations.Migrator, ctx context.Context) error {
		list, err = m.Status(ctx)
		return err
	})
	return list, err
}

// WithMigrations calls do with the migrator of a set.
func (s *Store) WithMigrations(ctx context.Context, set migrations.Set, do func(context.Context, *migrations.Migrator) error) error {
	return s.migrate(ctx, "migrations of "+set.Name, func(m *migrations.Migrator, ctx context.Context) error {
		m, err := m.Of(set)
		if err != nil {
			return err
		}
		return do(ctx, m)
	})
}

func (s *Store) migrate(
	ctx context.Context, doing string, work func(*migrations.Migrator, context.Context) error,
) error {
	err := s.exclusively(ctx, func() error { return work(s.migrator, ctx) })
	if err != nil && strings.Contains(err.Error(), "the_tables_hold_events") {
		return fmt.Errorf("%s: %w", doing, store.ErrWouldLose)
	}
	return translate(doing, err)
}

package sqlite

import (
	"context"
	"fmt"
	"strings"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/migrations"
)

// Migrate brings the schema up to date; nothing happens when it is. Of several processes that begin at once one does
// it.
func (s *Store) Migrate(ctx context.Context) error {
	return s.migrate(ctx, "migrate up", (*migrations.Migrator).Up)
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

func (s *Store) migrate(
	ctx context.Context, doing string, work func(*migrations.Migrator, context.Context) error,
) error {
	err := s.exclusively(ctx, func() error { return work(s.migrator, ctx) })
	if err != nil && strings.Contains(err.Error(), "the_tables_hold_events") {
		return fmt.Errorf("%s: %w", doing, store.ErrWouldLose)
	}
	return translate(doing, err)
}

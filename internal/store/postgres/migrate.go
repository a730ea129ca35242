package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/migrations"
)

// Migrate brings the schema up to date; nothing happens when it is. It adopts a table events that another service has
// made, with its rows, if its columns are those of the contract.
func (s *Store) Migrate(ctx context.Context) error {
	return migrationFault(ctx, "migrate up", s.migrator.Up(ctx))
}

// MigrateDown reverts the newest version of the schema, and never destroys events. It is [store.ErrNoSchema] when
// there is none, and [store.ErrWouldLose] when anything would be lost.
func (s *Store) MigrateDown(ctx context.Context) error {
	return migrationFault(ctx, "migrate down", s.migrator.Down(ctx))
}

// MigrationStatus lists the versions of the schema, oldest first.
func (s *Store) MigrationStatus(ctx context.Context) ([]migrations.Status, error) {
	status, err := s.migrator.Status(ctx)
	return status, migrationFault(ctx, "read the migrations", err)
}

// migrationFault leaves out the statement, which goose adds to the server's message.
func migrationFault(ctx context.Context, doing string, err error) error {
	pgErr, found := errors.AsType[*pgconn.PgError](err)
	if !found {
		return fault(ctx, doing, err)
	}
	if pgErr.Code == objectInUse {
		return fmt.Errorf("%s: %w (%s)", doing, store.ErrWouldLose, pgErr.Message)
	}
	if pgErr.Code == datatypeMismatch {
		return fmt.Errorf("%s: %s", doing, pgErr.Message)
	}
	return fault(ctx, doing, pgErr)
}

// objectInUse is how the migrations refuse to lose anything.
const objectInUse = "55006"

// datatypeMismatch is how the migrations refuse a table that is not the contract's.
const datatypeMismatch = "42804"

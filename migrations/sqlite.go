package migrations

import (
	"context"
	"database/sql"
	"embed"
	"fmt"

	"github.com/pressly/goose/v3"

	"github.com/healz/worker/internal/store"
)

//go:embed sqlite/0*.sql
var sqlite embed.FS

// SQLite returns the migrator of an SQLite database. The caller sees to it that no other process migrates meanwhile.
func SQLite(db *sql.DB) (*Migrator, error) {
	letters := lettersMigration(sqliteLettersVersion, store.SQLite, sqliteLettersUp, sqliteLettersDown)
	return newMigrator(goose.DialectSQLite3, db, sqlite, "sqlite", goose.WithGoMigrations(letters))
}

// CheckForeign is [store.ErrForeignTable] if the file has no schema of the worker, and a table events.
func CheckForeign(ctx context.Context, db *sql.DB) error {
	const selectTable = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = ?)"
	var migrated, events bool
	if err := db.QueryRowContext(ctx, selectTable, Table).Scan(&migrated); err != nil {
		return err
	}
	if migrated { // the table of versions is made before the first of them
		var s Schema
		if err := db.QueryRowContext(ctx, SelectSQLite).Scan(&s.Version, &s.Breaking); err != nil || s.Version > 0 {
			return err
		}
	}
	if err := db.QueryRowContext(ctx, selectTable, "events").Scan(&events); err != nil || !events {
		return err
	}
	return fmt.Errorf("%w: another program has made it, and in SQLite no table is adopted; choose another file, with --sqlite-path",
		store.ErrForeignTable)
}

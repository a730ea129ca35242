package migrations

import (
	"database/sql"
	"embed"

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

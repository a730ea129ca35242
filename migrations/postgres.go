package migrations

import (
	"database/sql"
	"embed"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/healz/worker/internal/store"
)

//go:embed postgres/0*.sql
var postgres embed.FS

// The wait for another process that migrates: one try each second, for five minutes.
const (
	lockPeriod   = 1
	lockAttempts = 300
)

// Postgres returns the migrator of a Postgres database. The schema is that of the connections' search_path. While one
// process migrates, others wait.
func Postgres(db *sql.DB) (*Migrator, error) {
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(lockPeriod, lockAttempts))
	if err != nil {
		return nil, err
	}
	letters := lettersMigration(postgresLettersVersion, store.Postgres, postgresLettersUp, postgresLettersDown)
	return newMigrator(goose.DialectPostgres, db, postgres, "postgres", goose.WithSessionLocker(locker), goose.WithGoMigrations(letters))
}

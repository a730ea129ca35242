package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"path"
	"regexp"
	"strings"

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

// PostgresLock is the advisory lock of the session that migrates.
const PostgresLock = lock.DefaultLockID

// Postgres returns the migrator of a Postgres database. The schema is that of the connections' search_path. While one
// process migrates, others wait.
//
// Programs that use the tables wait for a migration for no longer than lock_timeout, with SQLSTATE 55P03 for the migration,
// and the moment of one statement. So indexes are built concurrently; an index that was interrupted is built anew.
func Postgres(db *sql.DB) (*Migrator, error) {
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(lockPeriod, lockAttempts))
	if err != nil {
		return nil, err
	}
	letters := lettersMigration(postgresLettersVersion, store.Postgres, postgresLettersUp, postgresLettersDown)
	return newMigrator(goose.DialectPostgres, db, postgres, "postgres", goose.WithSessionLocker(postgresLocker{locker}), goose.WithGoMigrations(letters))
}

type postgresLocker struct{ lock.SessionLocker }

// SessionLock implements [lock.SessionLocker]. It also prepares the session.
func (l postgresLocker) SessionLock(ctx context.Context, conn *sql.Conn) error {
	if err := l.SessionLocker.SessionLock(ctx, conn); err != nil {
		return err
	}
	if err := prepare(ctx, conn); err != nil {
		return errors.Join(err, l.SessionUnlock(context.WithoutCancel(ctx), conn))
	}
	return nil
}

// prepare drops the indexes whose concurrent build was interrupted, and sets the lock_timeout of the migrations.
func prepare(ctx context.Context, conn *sql.Conn) error {
	names, err := concurrentIndexes()
	if err != nil {
		return err
	}
	var broken string
	err = conn.QueryRowContext(ctx, `SELECT coalesce(string_agg(name, ','), '')
		FROM unnest(string_to_array($1, ',')) AS name JOIN pg_index ON indexrelid = to_regclass(name)
		WHERE NOT indisvalid`, strings.Join(names, ",")).Scan(&broken)
	if err != nil {
		return err
	}
	statements := []string{"SET lock_timeout = '1min'"} // as in the migrations
	if broken != "" {
		for name := range strings.SplitSeq(broken, ",") {
			statements = append(statements, "DROP INDEX CONCURRENTLY IF EXISTS "+name)
		}
	}
	for _, statement := range append(statements, "SET lock_timeout = '300ms'") {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// concurrentIndexes are the names of the indexes that migrations build concurrently.
func concurrentIndexes() (names []string, err error) {
	files, err := postgres.ReadDir("postgres")
	for _, file := range files {
		text, err := postgres.ReadFile(path.Join("postgres", file.Name()))
		if err != nil {
			return nil, err
		}
		for _, found := range regexp.MustCompile(`(?m)^CREATE (?:UNIQUE )?INDEX CONCURRENTLY (?:IF NOT EXISTS )?(\w+)`).FindAllSubmatch(text, -1) {
			names = append(names, string(found[1]))
		}
	}
	return names, err
}

package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/healz/worker/internal/store"
)

//go:embed postgres/0*.sql
var postgres embed.FS

// The wait for another process that migrates: one try each second, for five minutes.
const (
	lockPeriod   = time.Second
	lockAttempts = 300
)

// errMigrating says that another process has been migrating for too long.
var errMigrating = errors.New("another process is migrating the schema")

// locker has one process migrate at a time. Its lock is that of goose, but held by a transaction of its own: a session may
// be another one at the next statement, behind a pooler.
type locker struct {
	db *sql.DB
	tx *sql.Tx
}

// SessionLock implements [lock.SessionLocker]. It polls, as a statement that waits would hold a snapshot, for which
// CREATE INDEX CONCURRENTLY waits. Each try is a transaction of its own: that statement waits for the end of a transaction
// that has a snapshot when it looks, be it for a moment only. It also prepares the database.
func (l *locker) SessionLock(ctx context.Context, conn *sql.Conn) error {
	for attempt := 0; ; attempt++ {
		locked, err := l.try(ctx)
		if err == nil && locked {
			err = dropBroken(ctx, conn)
		}
		switch {
		case err != nil:
			return errors.Join(err, l.SessionUnlock(ctx, nil))
		case locked:
			return nil
		case attempt == lockAttempts:
			return errMigrating
		}
		select {
		case <-time.After(lockPeriod):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// try begins the transaction that holds the lock, or ends it again.
func (l *locker) try(ctx context.Context) (locked bool, err error) {
	if l.tx, err = l.db.BeginTx(ctx, nil); err != nil {
		return false, err
	}
	if err := l.tx.QueryRowContext(ctx, "SELECT pg_try_advisory_xact_lock($1)", lock.DefaultLockID).Scan(&locked); err != nil {
		return false, err
	}
	if !locked {
		return false, l.SessionUnlock(ctx, nil)
	}
	// A statement of the simple protocol: it also ends the portal of the query, which holds a snapshot.
	_, err = l.tx.ExecContext(ctx, "SET LOCAL idle_in_transaction_session_timeout = 0")
	return locked, err
}

// SessionUnlock implements [lock.SessionLocker].
func (l *locker) SessionUnlock(context.Context, *sql.Conn) error {
	if l.tx == nil {
		return nil // none was begun
	}
	if err := l.tx.Rollback(); !errors.Is(err, sql.ErrTxDone) {
		return err
	}
	return nil
}

// Postgres returns the migrator of a Postgres database. The schema is that of the connections' search_path. While one
// process migrates, others wait.
//
// Programs that use the tables wait for a migration for no longer than its lock_timeout, with SQLSTATE 55P03 for the
// migration, and the moment of one statement. So indexes are built concurrently; one that was interrupted is built anew.
func Postgres(db *sql.DB) (*Migrator, error) {
	letters := lettersMigration(postgresLettersVersion, store.Postgres, postgresLettersUp, postgresLettersDown)
	return newMigrator(goose.DialectPostgres, db, postgres, "postgres", goose.WithSessionLocker(&locker{db: db}), goose.WithGoMigrations(letters))
}

// dropBroken drops the indexes whose concurrent build was interrupted.
func dropBroken(ctx context.Context, conn *sql.Conn) error {
	names, err := concurrentIndexes()
	if err != nil {
		return err
	}
	var broken string
	err = conn.QueryRowContext(ctx, `SELECT coalesce(string_agg(name, ','), '')
		FROM unnest(string_to_array($1, ',')) AS name JOIN pg_index ON indexrelid = to_regclass(name)
		WHERE NOT indisvalid`, strings.Join(names, ",")).Scan(&broken)
	if err != nil || broken == "" {
		return err
	}
	for name := range strings.SplitSeq(broken, ",") {
		if _, err := conn.ExecContext(ctx, "DROP INDEX CONCURRENTLY IF EXISTS "+name); err != nil {
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

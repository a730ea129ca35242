package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
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
// CREATE INDEX CONCURRENTLY waits.
func (l *locker) SessionLock(ctx context.Context, _ *sql.Conn) (err error) {
	if l.tx, err = l.db.BeginTx(ctx, nil); err != nil {
		return err
	}
	_, err = l.tx.ExecContext(ctx, "SET LOCAL idle_in_transaction_session_timeout = 0")
	for attempt := 0; err == nil; attempt++ {
		var locked bool
		err = l.tx.QueryRowContext(ctx, "SELECT pg_try_advisory_xact_lock($1)", lock.DefaultLockID).Scan(&locked)
		switch {
		case err == nil && locked:
			return nil
		case err == nil && attempt == lockAttempts:
			err = errMigrating
		case err == nil:
			select {
			case <-time.After(lockPeriod):
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
	}
	return errors.Join(err, l.SessionUnlock(ctx, nil))
}

// SessionUnlock implements [lock.SessionLocker].
func (l *locker) SessionUnlock(context.Context, *sql.Conn) error {
	if err := l.tx.Rollback(); !errors.Is(err, sql.ErrTxDone) {
		return err
	}
	return nil
}

// Postgres returns the migrator of a Postgres database. The schema is that of the connections' search_path. While one
// process migrates, others wait.
func Postgres(db *sql.DB) (*Migrator, error) {
	letters := lettersMigration(postgresLettersVersion, store.Postgres, postgresLettersUp, postgresLettersDown)
	return newMigrator(goose.DialectPostgres, db, postgres, "postgres", goose.WithSessionLocker(&locker{db: db}), goose.WithGoMigrations(letters))
}

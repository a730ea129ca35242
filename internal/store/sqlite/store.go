package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/migrations"
)

var _ store.Store = (*Store)(nil)

// Store is the event store in one SQLite file. It is safe for concurrent use, by several processes too.
type Store struct {
	store.Reads
	queries
	path      string
	file      os.FileInfo // of the file when it was opened
	disk      disk
	freeSpace func(folder string) (int64, error)
	// busyTimeout is how long a write waits for those of other processes.
	busyTimeout time.Duration
	writer      *sql.DB // of one connection
	readers     *sql.DB
	migrating   *sql.DB
	migrator    *migrations.Migrator
	wakers      wakers
}

// Close waits for the calls that run and closes the file.
func (s *Store) Close() error {
	// The writer is last: closing the last connection moves the log into the file.
	return errors.Join(s.migrating.Close(), s.readers.Close(), s.writer.Close())
}

// write runs work in a transaction that has the right to write from its beginning, so that it cannot fail half-way for
// want of it. The statements in it do not end early with ctx: a statement that is interrupted costs the connection.
func (s *Store) write(ctx context.Context, doing string, work func(ctx context.Context, tx *sql.Tx) error) error {
	err := translate(doing, s.transact(ctx, work))
	s.disk.note(err)
	return err
}

func (s *Store) transact(ctx context.Context, work func(ctx context.Context, tx *sql.Tx) error) error {
	tx, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback() // after a commit it does nothing
	if err = work(context.WithoutCancel(ctx), tx); err == nil {
		err = unknownIfIO(tx.Commit())
	}
	if errors.Is(err, sql.ErrTxDone) { // the end of ctx has ended the transaction
		err = ctx.Err()
	}
	return err
}

// begin waits for the writers of other processes by many short waits. In one long wait SQLite polls ever more
// seldom, and never gets the lock while another process writes continuously.
func (s *Store) begin(ctx context.Context) (*sql.Tx, error) {
	for deadline := time.Now().Add(s.busyTimeout); ; {
		tx, err := s.writer.BeginTx(ctx, nil)
		if resultCode(err) != sqlite3.SQLITE_BUSY || time.Now().After(deadline) {
			return tx, err
		}
	}
}

// exec writes by one statement, and returns how many rows it has changed.
func (s *Store) exec(ctx context.Context, doing, query string, args ...any) (changed int64, err error) {
	err = s.write(ctx, doing, func(ctx context.Context, tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, query, args...)
		if err == nil {
			changed, err = result.RowsAffected()
		}
		return err
	})
	return changed, err
}

// SQL is the database. Writes of all processes run one after the other.
func (s *Store) SQL() store.SQL {
	return store.SQL{
		Dialect: store.SQLite, DB: s.readers, Write: s.write,
		Fault: func(_ context.Context, doing string, err error) error { return translate(doing, err) },
	}
}

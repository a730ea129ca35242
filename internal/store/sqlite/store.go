package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/migrations"
)

var (
	_ store.Store      = (*Store)(nil)
	_ deadletter.Shelf = (*Store)(nil)
)

// Store is the event store in one SQLite file. It is safe for concurrent use, by several processes too.
type Store struct {
	path        string
	options     Options
	writer      *pool
	readers     *pool
	migrationDB *sql.DB
	migrator    *migrations.Migrator
	wakers      wakers
}

// Close waits for what is under way and closes the file.
func (s *Store) Close() error {
	// The writer is last: closing the last connection moves the log into the file.
	return errors.Join(s.migrationDB.Close(), s.readers.Close(), s.writer.Close())
}

// write runs work in a transaction that has the right to write from its beginning, so that it cannot fail half-way for
// want of it. The statements in it do not end early with ctx: a statement that is interrupted costs the connection.
func (s *Store) write(ctx context.Context, doing string, work func(ctx context.Context, tx *transaction) error) error {
	tx, err := s.begin(ctx)
	if err != nil {
		return translate(doing, err)
	}
	defer tx.tx.Rollback() // after a commit it does nothing
	if err = work(context.WithoutCancel(ctx), tx); err == nil {
		err = unknownIfIO(tx.tx.Commit())
	}
	if errors.Is(err, sql.ErrTxDone) { // the end of ctx has ended the transaction
		err = ctx.Err()
	}
	return translate(doing, err)
}

// begin waits for the writers of other processes by many short waits. In one long wait SQLite looks ever more seldom
// whether it is its turn, and is never lucky while another process writes one thing after the other.
func (s *Store) begin(ctx context.Context) (*transaction, error) {
	for deadline := time.Now().Add(s.options.BusyTimeout); ; {
		prepared, err := s.writer.statements(ctx)
		if err == nil {
			var tx *sql.Tx
			if tx, err = s.writer.BeginTx(ctx, nil); err == nil {
				return &transaction{tx: tx, prepared: prepared}, nil
			}
		}
		if resultCode(err) != sqlite3.SQLITE_BUSY || time.Now().After(deadline) {
			return nil, err
		}
	}
}

// exec writes by one statement, and returns how many rows it has changed.
func (s *Store) exec(ctx context.Context, doing, query string, args ...any) (changed int64, err error) {
	err = s.write(ctx, doing, func(ctx context.Context, tx *transaction) error {
		result, err := tx.exec(ctx, query, args...)
		if err == nil {
			changed, err = result.RowsAffected()
		}
		return err
	})
	return changed, err
}

// transaction runs prepared statements in a transaction.
type transaction struct {
	tx       *sql.Tx
	prepared map[string]*sql.Stmt
}

func (t *transaction) exec(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return t.tx.StmtContext(ctx, t.prepared[query]).ExecContext(ctx, args...)
}

func (t *transaction) queryRow(ctx context.Context, query string, args ...any) *sql.Row {
	return t.tx.StmtContext(ctx, t.prepared[query]).QueryRowContext(ctx, args...)
}

// pool is a pool of connections with the statements that are run on it, prepared when the first is needed: before the
// schema stands they cannot be.
type pool struct {
	*sql.DB
	queries []string

	mu       sync.Mutex
	prepared map[string]*sql.Stmt
}

func newPool(dsn string, connections int, queries []string) (*pool, error) {
	db, err := openDB(dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return &pool{DB: db, queries: queries}, nil
}

func (p *pool) statements(ctx context.Context) (map[string]*sql.Stmt, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.prepared != nil {
		return p.prepared, nil
	}
	prepared := make(map[string]*sql.Stmt, len(p.queries))
	for _, query := range p.queries {
		statement, err := p.PrepareContext(ctx, query)
		if err != nil {
			for _, s := range prepared {
				err = errors.Join(err, s.Close())
			}
			return nil, fmt.Errorf("prepare: %w", err)
		}
		prepared[query] = statement
	}
	p.prepared = prepared
	return prepared, nil
}

func (p *pool) query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	prepared, err := p.statements(ctx)
	if err != nil {
		return nil, err
	}
	return prepared[query].QueryContext(ctx, args...)
}

func (p *pool) queryRow(ctx context.Context, into any, query string, args ...any) error {
	prepared, err := p.statements(ctx)
	if err != nil {
		return err
	}
	return prepared[query].QueryRowContext(ctx, args...).Scan(into)
}

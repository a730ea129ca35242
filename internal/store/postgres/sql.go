package postgres

import (
	"context"
	"database/sql"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/healz/worker/internal/store"
)

// SQL is the database, over the connections that the store's calls share.
func (s *Store) SQL() store.SQL {
	return store.SQL{
		Dialect: store.Postgres, DB: s.db, Replan: []any{pgx.QueryExecModeCacheDescribe}, Write: s.writeSQL, Fault: fault,
	}
}

func (s *Store) writeSQL(ctx context.Context, doing string, work func(ctx context.Context, tx *sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fault(ctx, doing, err)
	}
	defer tx.Rollback() // for a panic; after the end of the transaction it does nothing
	if err := work(ctx, tx); err != nil {
		return errors.Join(fault(ctx, doing, err), ended(tx.Rollback()))
	}
	return writeFault(ctx, doing, commitFault(tx.Commit()))
}

// ended is the error of a rollback, if the transaction is not over already.
func ended(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

package postgres

import (
	"context"
	_ "embed"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/healz/worker/internal/store"
)

//go:embed statements/backlog.sql
var backlogSQL string

// backlog is what the tail has not read yet; see [store.Tail].
func (s *Store) backlog(ctx context.Context, c store.TailConfig) (store.Backlog, error) {
	statement := backlogSQL
	if c.OnlyOwn {
		statement = onlyOwn(statement)
	}
	if err := CheckRestored(ctx, s.pool); err != nil {
		return store.Backlog{}, err
	}
	var b store.Backlog
	err := s.pool.QueryRow(ctx, statement, store.MaxCount).Scan(
		&b.Position.Transaction, &b.Position.ID, &b.Events, &b.Last.Transaction, &b.Last.ID)
	if errors.Is(err, pgx.ErrNoRows) {
		err = store.ErrNoPosition
	}
	return b, fault(ctx, "read the relay's backlog", err)
}

// onlyOwn makes a statement skip the rows of other programs.
func onlyOwn(statement string) string {
	return strings.ReplaceAll(statement, "true /* or own */", "own")
}

// Pools is the state of the connections that the store's calls share.
func (s *Store) Pools() []store.Pool {
	stat := s.pool.Stat()
	return []store.Pool{{
		Name: "store", InUse: int(stat.AcquiredConns()), Idle: int(stat.IdleConns()), Max: int(stat.MaxConns()),
		Waits: stat.EmptyAcquireCount(), Waited: stat.EmptyAcquireWaitTime(),
	}}
}

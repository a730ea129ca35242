package sqlite

import (
	"context"
	"database/sql"

	"github.com/healz/worker/internal/store"
)

const (
	countBacklog = `SELECT count(*), coalesce(
			(SELECT id FROM events WHERE id > ?1 AND (own = 1 OR NOT ?2) ORDER BY id DESC LIMIT 1), ?1
		) FROM (SELECT 1 FROM events WHERE id > ?1 AND (own = 1 OR NOT ?2) LIMIT ?3)`
)

// backlog is what the tail has not read yet. See [store.Tail].
func (s *Store) backlog(ctx context.Context, c store.TailConfig) (store.Backlog, error) {
	const doing = "read the relay's backlog"
	behind, err := position(ctx, s.readers)
	if err != nil {
		return store.Backlog{}, translate(doing, err)
	}
	b := store.Backlog{Position: store.Position{ID: behind}}
	err = s.readers.QueryRowContext(ctx, countBacklog, behind, c.OnlyOwn, store.MaxCount).Scan(&b.Events, &b.Last.ID)
	return b, translate(doing, err)
}

// Pools is the state of the connections that read and of the one that writes.
func (s *Store) Pools() []store.Pool {
	pool := func(name string, db *sql.DB) store.Pool {
		stats := db.Stats()
		return store.Pool{
			Name: name, InUse: stats.InUse, Idle: stats.Idle, Max: stats.MaxOpenConnections,
			Waits: stats.WaitCount, Waited: stats.WaitDuration,
		}
	}
	return []store.Pool{pool("readers", s.readers), pool("writer", s.writer)}
}

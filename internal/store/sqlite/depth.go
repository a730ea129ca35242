package sqlite

import (
	"context"
	"database/sql"
	"time"

	"github.com/healz/worker/internal/store"
)

const (
	// countBacklog relies on SQLite's bare column: beside min(id) it is that of the row with the least id.
	countBacklog = `SELECT count(*), coalesce(created_at, 0), min(id) FROM (
			SELECT id, created_at FROM events
			WHERE id > ? AND (own = 1 OR NOT ?) ORDER BY id LIMIT ?
		)`
)

// backlog is what the tail has not read yet. See [store.Tail].
func (s *Store) backlog(ctx context.Context, c store.TailConfig) (store.Backlog, error) {
	const doing = "read the relay's backlog"
	behind, err := position(ctx, s.readers)
	if err != nil {
		return store.Backlog{}, translate(doing, err)
	}
	var b store.Backlog
	var first int64
	err = s.readers.QueryRowContext(ctx, countBacklog, behind, c.OnlyOwn, store.MaxCount).Scan(&b.Events, &first, new(sql.NullInt64))
	if b.Events > 0 {
		b.Age = max(0, time.Since(time.UnixMicro(first)))
	}
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

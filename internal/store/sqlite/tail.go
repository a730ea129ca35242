package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/healz/worker/internal/store"
)

const (
	// watchInterval is how often the tail looks for what other processes have appended: a look takes microseconds.
	watchInterval = 50 * time.Millisecond

	selectPosition = `SELECT event FROM relay_position`
	selectTail     = `SELECT ` + columns + ` FROM events WHERE id > ? AND (own = 1 OR NOT ?) ORDER BY id LIMIT ?`
	// initPosition does not replace a position that was deleted after a relay had run, and so had a lease. Ids that another
	// program has chosen may be negative.
	initPosition = `INSERT OR IGNORE INTO relay_position (singleton, event)
		SELECT 1, coalesce(CASE WHEN ? THEN (SELECT max(id) FROM events) END, -9223372036854775808)
		WHERE NOT EXISTS (SELECT 1 FROM leases WHERE task = 'relay')`
	updatePosition = `UPDATE relay_position SET event = ?
		WHERE EXISTS (SELECT 1 FROM leases WHERE task = 'relay' AND holder = ? AND fence = ?)`

	// takeLease returns no row while another holds the lease. One that ends later than any can is of a time when the clock
	// was ahead, and counts as ended.
	takeLease = `INSERT INTO leases (task, holder, fence, expires_at) VALUES (?1, ?2, 1, ` + now + ` + ?3)
		ON CONFLICT (task) DO UPDATE
		SET holder = excluded.holder, fence = fence + (holder <> excluded.holder), expires_at = excluded.expires_at
		WHERE holder IN (excluded.holder, '') OR expires_at NOT BETWEEN ` + now + ` AND ` + now + ` + 60000000
		RETURNING fence`
	giveLease = `UPDATE leases SET holder = '' WHERE task = ? AND holder = ?`
	now       = `CAST(unixepoch('subsec') * 1000000 AS INTEGER)`
)

// Tail returns the store's side of the relay. It fixes where a first relay begins, for good.
func (s *Store) Tail(ctx context.Context, c store.TailConfig) (*store.Tail, error) {
	const doing = "tail the events"
	if c.BatchSize < 1 {
		return nil, fmt.Errorf("%s: batch size must be 1 or more, not %d", doing, c.BatchSize)
	}
	switch c.Start {
	case "", store.StartAuto, store.StartBeginning, store.StartEnd:
	default:
		return nil, fmt.Errorf("%s: unknown start %q", doing, c.Start)
	}
	if _, err := s.exec(ctx, doing, initPosition, c.Start == store.StartEnd); err != nil {
		return nil, err
	}
	var last int64
	if err := s.readers.QueryRowContext(ctx, selectLastID).Scan(&last); err != nil {
		return nil, translate(doing, err)
	}
	db, err := openDB(s.dsn(reading), 1)
	if err != nil {
		return nil, translate(doing, err)
	}
	wake := make(chan struct{}, 1)
	s.wakers.add(wake)
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(ctx, last, wake) })
	return &store.Tail{
		Next: func(ctx context.Context, after *store.Position) (store.Batch, error) { return next(ctx, db, c, after) },
		Move: s.movePosition, TakeLease: s.takeLease, GiveLease: s.giveLease,
		Wake:    wake,
		Backlog: func(ctx context.Context) (store.Backlog, error) { return s.backlog(ctx, c) },
		Close: func() error {
			cancel()
			watching.Wait()
			s.wakers.remove(wake)
			return translate("stop tailing the events", db.Close())
		},
	}, nil
}

// watch wakes the tail when the last event is another than before, until ctx ends.
func (s *Store) watch(ctx context.Context, last int64, wake chan<- struct{}) {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		var now int64
		if err := s.readers.QueryRowContext(ctx, selectLastID).Scan(&now); err != nil || now == last {
			continue // the relay's own poll meets the error too, and reports it
		}
		last = now
		signal(wake)
	}
}

// wakers are the tails of this process, which an append wakes.
type wakers struct {
	mu    sync.Mutex
	wakes map[chan<- struct{}]struct{}
}

func (w *wakers) add(wake chan<- struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wakes == nil {
		w.wakes = make(map[chan<- struct{}]struct{})
	}
	w.wakes[wake] = struct{}{}
}

func (w *wakers) remove(wake chan<- struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.wakes, wake)
}

func (w *wakers) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for wake := range w.wakes {
		signal(wake)
	}
}

// signal leaves a value in a channel that has room for one.
func signal(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default: // one is waiting already
	}
}

// next reads the batch behind the position, or behind after: as many events as the batch size and store.PageBytes allow, but at least one.
func next(ctx context.Context, db *sql.DB, c store.TailConfig, after *store.Position) (store.Batch, error) {
	const doing = "read a batch of events"
	behind, err := position(ctx, db)
	if err != nil {
		return store.Batch{}, translate(doing, err)
	}
	if after != nil {
		behind = after.ID
	}
	rows, err := db.QueryContext(ctx, selectTail, behind, c.OnlyOwn, c.BatchSize)
	if err != nil {
		return store.Batch{}, translate(doing, err)
	}
	defer rows.Close()
	var b store.Batch
	for rows.Next() {
		r, err := scan(rows)
		var body []byte
		if err == nil {
			body, err = r.MarshalJSON()
		}
		if err != nil && b.Events == nil {
			return store.Batch{}, fmt.Errorf("%s: row %d of events: %w", doing, r.Position.ID, err)
		}
		if err != nil || b.Events != nil && len(b.Events)+len(body) > store.PageBytes {
			break // the next batch begins with this row
		}
		separator := byte(',')
		if b.Events == nil {
			separator = '['
		}
		b.Events = append(append(b.Events, separator), body...)
		b.Position.ID = r.Position.ID
	}
	if b.Events != nil {
		b.Events = append(b.Events, ']')
	}
	return b, translate(doing, rows.Err())
}

// position is the id of the last event that is published.
func position(ctx context.Context, db *sql.DB) (id int64, err error) {
	err = db.QueryRowContext(ctx, selectPosition).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = store.ErrNoPosition
	}
	return id, err
}

func (s *Store) movePosition(ctx context.Context, behind store.Position, fence store.Fence) error {
	moved, err := s.exec(ctx, "move the relay's position", updatePosition, behind.ID, fence.Holder, fence.Number)
	if err == nil && moved == 0 {
		return store.ErrNotLeader
	}
	return err
}

func (s *Store) takeLease(ctx context.Context, task, holder string, ttl time.Duration) (store.Fence, error) {
	fence := store.Fence{Holder: holder}
	err := s.write(ctx, "take the lease of "+task, func(ctx context.Context, tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, takeLease, task, holder, ttl.Microseconds()).Scan(&fence.Number)
		if errors.Is(err, sql.ErrNoRows) {
			return store.ErrNotLeader
		}
		return err
	})
	return fence, err
}

func (s *Store) giveLease(ctx context.Context, task, holder string) error {
	_, err := s.exec(ctx, "give back the lease of "+task, giveLease, task, holder)
	return err
}

package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/gofrs/flock"

	"github.com/healz/worker/internal/store"
)

const (
	// watchInterval is how often the tail looks for what other processes have appended: a look takes microseconds.
	watchInterval = 50 * time.Millisecond

	selectTail = `SELECT ` + columns + ` FROM events
		WHERE id > coalesce((SELECT event FROM relay_position), 0) AND (own = 1 OR NOT ?) ORDER BY id LIMIT ?`
	initPosition = `INSERT OR IGNORE INTO relay_position (singleton, event)
		SELECT 1, CASE WHEN ? THEN coalesce(max(id), 0) ELSE 0 END FROM events`
	updatePosition = `UPDATE relay_position SET event = ?`
)

// Tail returns the store's side of the relay. It fixes where a first relay begins, for good.
//
// The relay among several is the process that holds the lock on a file beside the database, which the system releases
// when the process ends, however it ends. It is taken at the first poll that finds it free, and kept until Close.
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
	connector, err := newConnector(s.dsn(reading))
	if err != nil {
		return nil, translate(doing, err)
	}
	lock := flock.New(s.path + relayLockSuffix)
	db := sql.OpenDB(tailConnector{connector: connector, store: s, lock: lock})
	db.SetMaxOpenConns(1)

	wake := make(chan struct{}, 1)
	s.wakers.add(wake)
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(ctx, last, wake) })
	return &store.Tail{
		DB:      db,
		Schema:  tailSchema{config: c},
		Offsets: tailOffsets{},
		Wake:    wake,
		Backlog: func(ctx context.Context) (store.Backlog, error) { return s.backlog(ctx, c) },
		Close: func() error {
			cancel()
			watching.Wait()
			s.wakers.remove(wake)
			return translate("stop tailing the events", errors.Join(db.Close(), lock.Unlock()))
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

// tailSchema is the reading side of watermill-sql's subscriber.
type tailSchema struct{ config store.TailConfig }

func (t tailSchema) SelectQuery(string, string, wsql.OffsetsAdapter) wsql.Query {
	return wsql.Query{Query: selectTail, Args: []any{t.config.OnlyOwn, t.config.BatchSize}}
}

// UnmarshalMessage makes one message of all the rows, or of as many as fit: the subscriber passes its rows, so that
// their Next can be called here. Closing them ends the read before the message is handled, and lets the subscriber see
// no further row.
func (tailSchema) UnmarshalMessage(row wsql.Scanner) (wsql.Row, error) {
	const doing = "read a batch of events"
	rows, ok := row.(*sql.Rows)
	if !ok {
		return wsql.Row{}, fmt.Errorf("%s: the subscriber passed a %T, not its rows", doing, row)
	}
	defer rows.Close()
	var offset int64
	payload := []byte{'['}
	for more := true; more; more = rows.Next() {
		r, err := scan(rows)
		if err != nil {
			return wsql.Row{}, fmt.Errorf("%s: the one after position %d: %w", doing, offset, err)
		}
		body, err := r.MarshalJSON()
		if err != nil {
			return wsql.Row{}, fmt.Errorf("%s: encode event %s: %w", doing, r.Event.ID, err)
		}
		if offset > 0 {
			if len(payload)+len(body) > streamBytes {
				break
			}
			payload = append(payload, ',')
		}
		payload = append(payload, body...)
		offset = r.Position.ID
	}
	if err := rows.Err(); err != nil {
		return wsql.Row{}, translate(doing, err)
	}
	return wsql.Row{Offset: offset, Msg: message.NewMessage(watermill.NewUUID(), append(payload, ']'))}, nil
}

func (tailSchema) SubscribeIsolationLevel() sql.IsolationLevel { return sql.LevelDefault }

func (tailSchema) SchemaInitializingQueries(string) []wsql.Query { return nil }

func (tailSchema) InsertQuery(string, message.Messages) (wsql.Query, error) {
	return wsql.Query{}, errors.New("a tail cannot be published to: append to the store")
}

// tailOffsets is the acknowledging side of watermill-sql's subscriber.
type tailOffsets struct{}

func (tailOffsets) AckMessageQuery(_ string, row wsql.Row, _ string) wsql.Query {
	return wsql.Query{Query: updatePosition, Args: []any{row.Offset}}
}

func (tailOffsets) ConsumedMessageQuery(string, wsql.Row, string, []byte) wsql.Query {
	return wsql.Query{}
}

func (tailOffsets) NextOffsetQuery(string, string) wsql.Query { return wsql.Query{} }

func (tailOffsets) SchemaInitializingQueries(string) []wsql.Query { return nil }

func (tailOffsets) BeforeSubscribingQueries(string, string) []wsql.Query { return nil }

// tailConnector makes the connections of a tail. The subscriber reads a batch, waits until it is handled, and moves the
// position, all in one transaction. As a transaction of SQLite's that could not end well: while it is open the log
// cannot be emptied, and once a handler has appended something it may no longer write. Here each statement stands for
// itself; what the transaction was to ensure, that nobody else moves the position meanwhile, the lock does.
type tailConnector struct {
	connector
	store *Store
	lock  *flock.Flock
}

func (c tailConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.open(ctx)
	if err != nil {
		return nil, translate("open a connection", err)
	}
	return tailConn{conn: conn, store: c.store, lock: c.lock}, nil
}

// tailConn reads by a connection of its own and writes as the store does, in turn.
type tailConn struct {
	*conn
	store *Store
	lock  *flock.Flock
}

// BeginTx only takes the lock, and is [store.ErrNotLeader] when another has it.
func (c tailConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	locked, err := c.lock.TryLock()
	if err != nil {
		return nil, translate("lock "+c.lock.Path(), err)
	}
	if !locked {
		return nil, store.ErrNotLeader
	}
	return noTransaction{}, nil
}

func (c tailConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := c.conn.QueryContext(ctx, query, args)
	return rows, translate("read a batch of events", err)
}

func (c tailConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	values := make([]any, len(args))
	for i, a := range args {
		values[i] = a.Value
	}
	changed, err := c.store.exec(ctx, "move the relay's position", query, values...)
	return driver.RowsAffected(changed), err
}

// noTransaction is a transaction of statements that each stand for themselves.
type noTransaction struct{}

func (noTransaction) Commit() error   { return nil }
func (noTransaction) Rollback() error { return nil }

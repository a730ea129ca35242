package postgres

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/healz/worker/internal/store"
)

// tailConns is how many connections a tail has besides its listener: one that reads and moves, and one for each lease.
const tailConns = 3

// Waits of the listener before it connects again.
const (
	minReconnect = 100 * time.Millisecond
	maxReconnect = 10 * time.Second
	// listenCheck is how long a listener hears nothing before it asks whether the server is still there.
	listenCheck = 30 * time.Second
)

var (
	//go:embed statements/begin_tail.sql
	beginTailSQL string
	//go:embed statements/plan_tail.sql
	planTailSQL string
	//go:embed statements/tail.sql
	tailSQL string
	//go:embed statements/move.sql
	moveSQL string
	//go:embed statements/take_lease.sql
	takeLeaseSQL string
	//go:embed statements/give_lease.sql
	giveLeaseSQL string
	//go:embed statements/listen.sql
	listenSQL string
)

// Tail returns the store's side of the relay; see [store.Tail]. It fixes where a first relay begins, for good. The
// context bounds this call, not the tail.
func (s *Store) Tail(ctx context.Context, c store.TailConfig) (*store.Tail, error) {
	const doing = "tail the events"
	if c.BatchSize < 1 {
		return nil, fmt.Errorf("%s: the batch size must be at least 1, but is %d", doing, c.BatchSize)
	}
	switch c.Start {
	case "":
		c.Start = store.StartAuto
	case store.StartAuto, store.StartBeginning, store.StartEnd:
	default:
		return nil, fmt.Errorf("%s: there is no start %q", doing, c.Start)
	}
	if err := CheckRestored(ctx, s.pool); err != nil {
		return nil, err
	}
	if _, err := s.pool.Exec(ctx, beginTailSQL, string(c.Start)); err != nil {
		return nil, fault(ctx, doing, err)
	}

	config := s.poolConfig()
	config.MaxConns, config.MinConns, config.MinIdleConns = tailConns, 0, 0
	// A statement whose context ends costs its connection, and nothing waits for a server that hangs to cancel it: the
	// next statement may be in time to keep a lease.
	config.ConnConfig.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.DeadlineContextWatcherHandler{Conn: conn.Conn()}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		cancel()
		return nil, fault(ctx, doing, err)
	}
	wake := make(chan struct{}, 1)
	var listening sync.WaitGroup
	if !s.pooler { // behind one, notifications may not arrive
		listening.Go(func() { s.listen(ctx, wake) })
	}
	t := tail{pool: pool, batchSize: c.BatchSize, statement: tailSQL}
	if c.OnlyOwn {
		t.statement = onlyOwn(tailSQL)
	}
	return &store.Tail{
		Next: t.next, Move: t.move, TakeLease: t.takeLease, GiveLease: t.giveLease,
		Wake:    wake,
		Backlog: func(ctx context.Context) (store.Backlog, error) { return s.backlog(ctx, c) },
		Close: func() error {
			cancel()
			listening.Wait()
			pool.Close()
			return nil
		},
	}, nil
}

// tail runs the statements of a [store.Tail].
type tail struct {
	pool      *pgxpool.Pool
	statement string
	batchSize int
}

func (t tail) next(ctx context.Context, after *store.Position) (store.Batch, error) {
	const doing = "read a batch of events"
	batch := &pgx.Batch{} // one round trip, and one transaction
	batch.Queue(planTailSQL)
	batch.Queue(isRestoredSQL)
	var transaction pgtype.Uint64
	var id pgtype.Int8
	if after != nil {
		transaction, id = pgtype.Uint64{Uint64: after.Transaction, Valid: true}, pgtype.Int8{Int64: after.ID, Valid: true}
	}
	batch.Queue(t.statement, t.batchSize, transaction, id)
	results := t.pool.SendBatch(ctx, batch)
	defer results.Close()
	var begun, restored bool
	err := results.QueryRow().Scan(nil, nil, nil, nil, &begun)
	if err == nil {
		err = results.QueryRow().Scan(&restored)
	}
	switch {
	case err != nil:
	case restored:
		err = store.ErrRestored
	case !begun:
		err = store.ErrNoPosition
	}
	if err != nil {
		return store.Batch{}, fault(ctx, doing, err)
	}
	var b store.Batch
	var behind string
	err = results.QueryRow().Scan(&b.Events, &behind, &b.Position.ID)
	if errors.Is(err, pgx.ErrNoRows) {
		return store.Batch{}, nil
	}
	if err == nil {
		b.Position.Transaction, err = strconv.ParseUint(behind, 10, 64)
	}
	return b, fault(ctx, doing, err)
}

func (t tail) move(ctx context.Context, behind store.Position, fence store.Fence) error {
	moved, err := t.pool.Exec(ctx, moveSQL, fmt.Sprint(behind.Transaction), behind.ID, fence.Holder, fence.Number)
	if err == nil && moved.RowsAffected() == 0 {
		err = store.ErrNotLeader
	}
	return fault(ctx, "move the relay's position", err)
}

func (t tail) takeLease(ctx context.Context, task, holder string, ttl time.Duration) (store.Fence, error) {
	fence := store.Fence{Holder: holder}
	err := t.pool.QueryRow(ctx, takeLeaseSQL, task, holder, ttl).Scan(&fence.Number)
	if errors.Is(err, pgx.ErrNoRows) {
		err = store.ErrNotLeader
	}
	return fence, fault(ctx, "take the lease of "+task, err)
}

func (t tail) giveLease(ctx context.Context, task, holder string) error {
	_, err := t.pool.Exec(ctx, giveLeaseSQL, task, holder)
	return fault(ctx, "give back the lease of "+task, err)
}

// listen wakes the tail when events were inserted, by any program, until ctx ends. Its faults go no further: the relay's polls
// meet the same server, and report it.
func (s *Store) listen(ctx context.Context, wake chan<- struct{}) {
	for wait := minReconnect; ; wait = min(2*wait, maxReconnect) {
		heard := s.listenOnce(ctx, wake)
		if heard {
			wait = minReconnect
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// listenOnce wakes the tail until its connection breaks, and tells whether it had one.
func (s *Store) listenOnce(ctx context.Context, wake chan<- struct{}) (connected bool) {
	conn, err := s.connect(ctx)
	if err != nil {
		return false
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, listenSQL); err != nil {
		return false
	}
	for {
		select {
		case wake <- struct{}{}: // at first for what was missed before
		default:
		}
		if !hears(ctx, conn) {
			return true
		}
	}
}

// hears waits for a notification, and tells whether the connection still is one.
func hears(ctx context.Context, conn *pgx.Conn) bool {
	for {
		quiet, cancel := context.WithTimeout(ctx, listenCheck)
		_, err := conn.WaitForNotification(quiet)
		cancel()
		if err == nil {
			return true
		}
		if quiet.Err() == nil || ctx.Err() != nil {
			return false
		}
		check, cancel := context.WithTimeout(ctx, listenCheck)
		err = conn.Ping(check)
		cancel()
		if err != nil {
			return false
		}
	}
}

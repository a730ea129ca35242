package postgres

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

var (
	//go:embed statements/handled.sql
	handledSQL string
	//go:embed statements/park.sql
	parkSQL string
	//go:embed statements/parked.sql
	parkedSQL string
	//go:embed statements/prune.sql
	pruneSQL string
)

// maxLookups bounds a batch of lookups.
const maxLookups = 256

// lookup asks who has handled an event.
type lookup struct {
	eventID uuid.UUID
	found   []store.HandledBy
}

// Handled returns the names of the handlers that have handled e; see [store.Store].
func (s *Store) Handled(ctx context.Context, e events.Event) ([]string, error) {
	l := &lookup{eventID: e.ID}
	shared, err := s.lookups.do(ctx, l)
	if shared && err != nil {
		return s.queries.Handled(ctx, e)
	}
	return l.handlers(ctx, e, err)
}

// Handled is [Store.Handled] in a statement of its own.
func (q queries) Handled(ctx context.Context, e events.Event) ([]string, error) {
	l := &lookup{eventID: e.ID}
	err := q.lookUp(ctx, []*lookup{l})
	return l.handlers(ctx, e, err)
}

func (l *lookup) handlers(ctx context.Context, e events.Event, err error) (names []string, _ error) {
	if err == nil {
		names, err = store.HandlersOf(e, l.found)
	}
	return names, fault(ctx, "read who has handled an event", err)
}

// fitLookups bounds the batch, and keeps out a second lookup of the same event.
func fitLookups(first *lookup) func(*lookup) bool {
	asked := map[uuid.UUID]struct{}{first.eventID: {}}
	return func(l *lookup) bool {
		if _, found := asked[l.eventID]; found || len(asked) == maxLookups {
			return false
		}
		asked[l.eventID] = struct{}{}
		return true
	}
}

// lookUp runs the lookups, which are of different events, as one statement.
func (q queries) lookUp(ctx context.Context, lookups []*lookup) error {
	ids := make([]pgtype.UUID, len(lookups))
	byID := make(map[uuid.UUID]*lookup, len(lookups))
	for i, l := range lookups {
		ids[i], byID[l.eventID] = uuidOf(l.eventID), l
	}
	rows, _ := q.Query(ctx, handledSQL, ids) // ForEachRow returns the error
	var id pgtype.UUID
	var h store.HandledBy
	_, err := pgx.ForEachRow(rows, []any{&id, &h.Handler, &h.Fingerprint}, func() error {
		l := byID[id.Bytes]
		l.found = append(l.found, h)
		return nil
	})
	return err
}

// InTx registers SQL of a handler's own for the transaction in which the worker records that the handler has handled
// its event and appends what follows. A handler calls it with its context, as often as it likes, on a worker whose store
// is Postgres; anywhere else it is [store.ErrNoTransaction]. It only registers: once the handler has returned without an
// error, the transaction begins, record and follow-ups are written, and the work runs in the order of registration. The
// effect of all of it is exactly once, however often the event is delivered.
//
// An error of the work, or of the commit, rolls everything back and is the handler's: the next try runs the handler
// anew, and all that it registers. When the store cannot be reached or the connection is lost, the work alone runs again,
// until the store answers. Work does not run when another delivery of the event was first.
//
// While it runs, the transaction holds back the relay, for the whole database and for all who read in commit order:
// keep the work to a few fast statements, and do all else in the handler itself. Besides, it costs two round
// trips more than a handler without it. The transaction is READ COMMITTED. The work may begin nested transactions, and
// cannot end the one it is given. It does not append events: those are what the handler returns. Nor does it call the
// store: when all connections are in such transactions, each would wait for another connection.
func InTx(ctx context.Context, work func(ctx context.Context, tx pgx.Tx) error) error {
	return store.AddWork(ctx, work)
}

// Attempt returns the context for one attempt of a handler; see [store.Store].
func (s *Store) Attempt(ctx context.Context) context.Context { return store.WithWork[pgx.Tx](ctx) }

// Record appends followUps together with the record that handler has handled e; see [store.Store].
func (s *Store) Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error {
	if err := store.CheckBatch(followUps); err != nil {
		return err
	}
	u := recordOf(handler, e, followUps)
	statement := func() error { return s.writeShared(ctx, u) }
	var failed error // of the work, not of the record
	if work := store.TakeWork[pgx.Tx](ctx); len(work) > 0 {
		statement = func() error {
			return s.onConnection(ctx, func(conn *pgxpool.Conn) (err error) {
				failed, err = recordWith(ctx, conn, u, work)
				return err
			})
		}
	}
	err := s.write(ctx, "record", u, s.pool, statement)
	if err != nil {
		return err
	}
	return failed
}

// recordWith records and then does the work, in one transaction. The record is the transaction's first statement, so
// that the transaction's id is younger than all that the record's statement has seen; see write.sql. When the work
// has failed, nothing is written; u.written then only means that the statement is not repeated.
func recordWith(
	ctx context.Context, conn *pgxpool.Conn, u *unit, work []func(context.Context, pgx.Tx) error,
) (failed, err error) {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return nil, err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) // after a commit it does nothing
	if err := writeUnits(ctx, tx, []*unit{u}); err != nil || !u.written {
		return nil, err
	}
	if failed := runWork(ctx, tx, work); failed != nil {
		return failed, nil
	}
	err = tx.Commit(ctx)
	if failed := refusedCommit(err); failed != nil {
		return failed, nil
	}
	return nil, err
}

// refusedCommit is err as a *[store.WorkError], if the commit failed by a deferred constraint, or as a statement had
// failed; else nil.
func refusedCommit(err error) error {
	const doing = "commit the handler's work"
	if pgErr, answered := errors.AsType[*pgconn.PgError](err); answered && isRefusal(pgErr) {
		return &store.WorkError{Err: fmt.Errorf("%s: %w", doing, refused(pgErr))}
	}
	if errors.Is(err, pgx.ErrTxCommitRollback) {
		return &store.WorkError{Err: fmt.Errorf("%s: %w", doing, err)}
	}
	return nil
}

// runWork runs a handler's work. The error is a *[store.WorkError], or [store.ErrUnavailable] when the connection broke.
func runWork(ctx context.Context, tx pgx.Tx, work []func(context.Context, pgx.Tx) error) error {
	for _, step := range work {
		err := step(ctx, handlersTx{tx})
		ended := ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
		switch {
		case err == nil:
		case tx.Conn().IsClosed() && !ended:
			return fmt.Errorf("do the handler's work: %w: %w", store.ErrUnavailable, err)
		default:
			return &store.WorkError{Err: err}
		}
	}
	return nil
}

// errNotYours is the error of work that would end the transaction.
var errNotYours = errors.New("the transaction of a handler is committed or rolled back by the worker: return an error to undo it")

// handlersTx is the transaction as a handler's work has it.
type handlersTx struct{ pgx.Tx }

func (handlersTx) Commit(context.Context) error   { return errNotYours }
func (handlersTx) Rollback(context.Context) error { return errNotYours }

// Park records that e is a dead letter of handler; see [store.Store].
func (s *Store) Park(ctx context.Context, handler string, e events.Event) error {
	_, err := s.pool.Exec(ctx, parkSQL, e.ID, handler, e.AggregateID, e.AggregateVersion)
	return fault(ctx, "park an event", err)
}

// Parked returns behind which events e has to wait; see [store.Store].
func (q queries) Parked(ctx context.Context, e events.Event, handlers []string) (map[string]uuid.UUID, error) {
	rows, _ := q.Query(ctx, parkedSQL, e.AggregateID, e.AggregateVersion, handlers) // ForEachRow returns the error
	firsts := make(map[string]uuid.UUID)
	var handler string
	var first uuid.UUID
	_, err := pgx.ForEachRow(rows, []any{&handler, &first}, func() error {
		firsts[handler] = first
		return nil
	})
	return firsts, fault(ctx, "read parked events", err)
}

// PruneHandled deletes records that are older than age; see [store.Store].
func (s *Store) PruneHandled(ctx context.Context, age time.Duration, limit int) (int, error) {
	var pruned int
	err := s.pool.QueryRow(ctx, pruneSQL, age, limit).Scan(&pruned)
	return pruned, fault(ctx, "prune the inbox", err)
}

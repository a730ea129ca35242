package postgres

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/healz/worker/internal/store"
)

// tailConns is how many connections a tail polls on: one is at work, and one may still be ending.
const tailConns = 2

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
	//go:embed statements/lead.sql
	leadSQL string
	//go:embed statements/tail.sql
	tailSQL string
	//go:embed statements/move.sql
	moveSQL string
	//go:embed statements/listen.sql
	listenSQL string
)

// Tail returns the store's side of the relay; see [store.Tail]. It fixes where a first relay begins, for good. The
// context bounds this call, not the tail.
//
// The transaction in which a batch is handled holds an advisory lock, and no transaction id: however long the handlers
// take, it delays nobody. The server notices within some ten seconds when the relay's machine is gone.
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
	if _, err := s.pool.Exec(ctx, beginTailSQL, string(c.Start)); err != nil {
		return nil, fault(ctx, doing, err)
	}

	config := s.config.Copy()
	beImpatient(config)
	maps.Copy(config.RuntimeParams, tailParams())
	db := stdlib.OpenDB(*config)
	db.SetMaxOpenConns(tailConns)

	wake := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var listening sync.WaitGroup
	listening.Go(func() { s.listen(ctx, wake) })
	return &store.Tail{
		DB:      leader{db},
		Schema:  newTailSchema(c),
		Offsets: tailOffsets{},
		Wake:    wake,
		Backlog: func(ctx context.Context) (store.Backlog, error) { return s.backlog(ctx, c) },
		Close: func() error {
			cancel()
			listening.Wait()
			return db.Close()
		},
	}, nil
}

// tailParams are the session's settings on a tail's connections.
func tailParams() map[string]string {
	return map[string]string{
		// A leader's machine that is gone is noticed, and its lock given up, in some ten seconds.
		"tcp_keepalives_idle":     "5",
		"tcp_keepalives_interval": "2",
		"tcp_keepalives_count":    "3",
		"tcp_user_timeout":        "10000",
		// Selecting a batch is a scan of an index however little is known of the table, and planned once.
		"plan_cache_mode":   "force_generic_plan",
		"enable_seqscan":    "off",
		"enable_bitmapscan": "off",
		"jit":               "off",
	}
}

// leader begins transactions that only one process has at a time.
type leader struct{ *sql.DB }

// BeginTx is [store.ErrNotLeader] while another process has such a transaction.
func (l leader) BeginTx(ctx context.Context, o *sql.TxOptions) (*sql.Tx, error) {
	const doing = "begin to relay"
	tx, err := l.DB.BeginTx(ctx, o)
	if err != nil {
		return nil, fault(ctx, doing, err)
	}
	var leads bool
	err = tx.QueryRowContext(ctx, leadSQL).Scan(&leads)
	if err == nil && leads {
		return tx, nil
	}
	if rollbackErr := tx.Rollback(); rollbackErr != nil && !errors.Is(rollbackErr, sql.ErrTxDone) {
		err = errors.Join(err, rollbackErr)
	}
	if err != nil {
		return nil, fault(ctx, doing, err)
	}
	return nil, store.ErrNotLeader
}

// positionKey is where a row carries its position.
const positionKey = "position"

// tailSchema reads batches.
type tailSchema struct{ query wsql.Query }

func newTailSchema(c store.TailConfig) tailSchema {
	statement := tailSQL
	if c.OnlyOwn {
		statement = onlyOwn(statement)
	}
	return tailSchema{query: wsql.Query{Query: statement, Args: []any{c.BatchSize}}}
}

// SelectQuery selects the next batch.
func (s tailSchema) SelectQuery(string, string, wsql.OffsetsAdapter) wsql.Query {
	return s.query
}

// UnmarshalMessage makes a message of a batch.
func (s tailSchema) UnmarshalMessage(row wsql.Scanner) (wsql.Row, error) {
	var (
		payload     []byte
		transaction string
		id          int64
	)
	if err := row.Scan(&payload, &transaction, &id); err != nil {
		return wsql.Row{}, fmt.Errorf("read a batch: %w", err)
	}
	position, err := store.ParsePosition(fmt.Sprintf("%s:%d", transaction, id))
	if err != nil {
		return wsql.Row{}, fmt.Errorf("read a batch: %w", err)
	}
	return wsql.Row{
		Offset:    id, // the subscriber only asks whether it is 0
		Msg:       message.NewMessage(position.String(), payload),
		ExtraData: map[string]any{positionKey: position},
	}, nil
}

// SubscribeIsolationLevel lets the batch be selected from what the relay before this one has committed.
func (s tailSchema) SubscribeIsolationLevel() sql.IsolationLevel { return sql.LevelReadCommitted }

// InsertQuery is not for a tail.
func (s tailSchema) InsertQuery(string, message.Messages) (wsql.Query, error) {
	return wsql.Query{}, errors.New("a tail is only read: events are appended by the store")
}

// SchemaInitializingQueries are none: the migrations make the schema.
func (s tailSchema) SchemaInitializingQueries(string) []wsql.Query { return nil }

// tailOffsets moves the position.
type tailOffsets struct{}

// AckMessageQuery moves the position behind the row's batch.
func (tailOffsets) AckMessageQuery(_ string, row wsql.Row, _ string) wsql.Query {
	position, _ := row.ExtraData[positionKey].(store.Position)
	return wsql.Query{Query: moveSQL, Args: []any{fmt.Sprint(position.Transaction), position.ID}}
}

// ConsumedMessageQuery is none.
func (tailOffsets) ConsumedMessageQuery(string, wsql.Row, string, []byte) wsql.Query {
	return wsql.Query{}
}

// NextOffsetQuery is none: the statement that selects the batch finds the position itself.
func (tailOffsets) NextOffsetQuery(string, string) wsql.Query { return wsql.Query{} }

// SchemaInitializingQueries are none: the migrations make the schema.
func (tailOffsets) SchemaInitializingQueries(string) []wsql.Query { return nil }

// BeforeSubscribingQueries are none.
func (tailOffsets) BeforeSubscribingQueries(string, string) []wsql.Query { return nil }

// listen wakes the tail when anybody has inserted events, until ctx ends. Its faults go no further: the relay's polls
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
	conn, err := pgx.ConnectConfig(ctx, s.config)
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

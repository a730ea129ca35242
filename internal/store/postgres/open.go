package postgres

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/migrations"
)

const (
	// connectTimeout bounds an attempt to connect where the URL does not.
	connectTimeout = 10 * time.Second
	// answerTimeout is how long the server may take to answer. It detects dead connections.
	answerTimeout = time.Minute
	// cancelTimeout is how long a statement whose context ended may take to be canceled, before its outcome is unknown.
	cancelTimeout = 5 * time.Second
)

// Options are the settings of a store. The zero value is fit for use.
type Options struct {
	// MaxConns is the most connections that the store's calls share; 0 is what the URL says in pool_max_conns, or else
	// pgxpool's default. A tail has up to four more of its own.
	MaxConns int
	// Pool, if it is not nil, takes the place of the URL. Without MaxConns the store's calls share its connections, and do not close
	// it. All other connections are made as its are, with its hooks BeforeConnect and AfterConnect.
	Pool *pgxpool.Pool
}

// Store is an event store in one schema of a Postgres database.
type Store struct {
	store.Reads
	queries
	pool      *pgxpool.Pool
	ownedPool bool
	db        *sql.DB // over the pool
	// config is what connections outside the pool begin from; see connect.
	config *pgxpool.Config
	// pooler says that a pooler stands before the server; see behindPooler.
	pooler      bool
	migrationDB *sql.DB
	migrator    *migrations.Migrator

	// writes and lookups combine concurrent calls into one statement.
	writes  batcher[*unit]
	lookups batcher[*lookup]
}

var _ store.Store = (*Store)(nil)

// Open connects to a database, given as a URL or as libpq's keywords and values. It makes no tables: that is
// [Store.Migrate]. The error wraps [store.ErrUnavailable] when the server cannot be reached, and never contains the
// password.
func Open(ctx context.Context, url string, o Options) (*Store, error) {
	const doing = "open Postgres"
	config, err := configOf(url, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	configure(config.ConnConfig)
	s := &Store{config: config}
	if s.pooler, err = s.behindPooler(ctx); err != nil {
		return nil, fault(ctx, doing, err)
	}
	if s.pooler && o.Pool != nil && config.ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeDescribeExec {
		return nil, fmt.Errorf("%s: behind a pooler the pool's default_query_exec_mode must not be describe_exec: "+
			"its two steps may get two sessions", doing)
	}
	if s.pooler && (o.Pool != nil || !strings.Contains(url, "default_query_exec_mode")) {
		config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	migrating := config.ConnConfig.Copy()
	if !s.pooler { // which refuses it
		migrating.RuntimeParams["lock_timeout"] = "1min" // for the locks that nobody waits behind
	}
	s.migrationDB = stdlib.OpenDB(*migrating, stdlib.OptionBeforeConnect(s.beforeConnect), stdlib.OptionAfterConnect(s.afterConnect))
	s.migrationDB.SetMaxIdleConns(0)
	if s.migrator, err = migrations.Postgres(s.migrationDB); err != nil {
		return nil, err
	}
	if s.pool = o.Pool; s.pool == nil || o.MaxConns > 0 {
		if s.pool, err = pgxpool.NewWithConfig(ctx, s.poolConfig()); err != nil {
			return nil, fault(ctx, doing, err)
		}
		s.ownedPool = true
	}
	s.db, s.queries = stdlib.OpenDBFromPool(s.pool), queries{s.pool}
	s.Reads = store.NewReads(s.queries)
	s.writes.execute, s.writes.fitter, s.writes.linger = s.writeTogether, fitWrites, true
	s.lookups.execute, s.lookups.fitter = s.lookUp, fitLookups
	return s, nil
}

// configOf is the configuration of a pool. The error does not show the URL, as it may hold a password.
func configOf(url string, o Options) (*pgxpool.Config, error) {
	if o.Pool != nil {
		config := o.Pool.Config()
		if o.MaxConns > 0 {
			config.MaxConns, config.MinConns, config.MinIdleConns = int32(min(o.MaxConns, maxConns)), 0, 0
		}
		if err := checkMode(config.ConnConfig); err != nil {
			return nil, fmt.Errorf("the pool's %w", err)
		}
		return config, nil
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("the database URL cannot be read (it is not shown, as it may hold a password)")
	}
	if o.MaxConns > 0 {
		config.MaxConns = int32(min(o.MaxConns, maxConns))
	}
	return config, nil
}

// checkMode refuses the modes in which the server is not asked for the types of a statement's parameters.
func checkMode(c *pgx.ConnConfig) error {
	switch mode := c.DefaultQueryExecMode; mode {
	case pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec:
		return nil
	default:
		return fmt.Errorf("default_query_exec_mode must be cache_statement, cache_describe or describe_exec, not %q", mode)
	}
}

// beforeConnect is the hook of the pool, which may set a password that is valid for minutes only.
func (s *Store) beforeConnect(ctx context.Context, c *pgx.ConnConfig) error {
	if s.config.BeforeConnect == nil {
		return nil
	}
	return s.config.BeforeConnect(ctx, c)
}

// afterConnect is the hook of the pool, which may set a search_path.
func (s *Store) afterConnect(ctx context.Context, conn *pgx.Conn) error {
	if s.config.AfterConnect == nil {
		return nil
	}
	if err := s.config.AfterConnect(ctx, conn); err != nil {
		return fmt.Errorf("AfterConnect of the pool: %w", err)
	}
	return nil
}

// poolConfig is that of a pool of the store's own.
func (s *Store) poolConfig() *pgxpool.Config {
	config := s.config.Copy()
	setTimeouts(config.ConnConfig)
	return config
}

// connect opens a connection outside the pool.
func (s *Store) connect(ctx context.Context) (*pgx.Conn, error) {
	config := s.config.ConnConfig.Copy()
	if err := s.beforeConnect(ctx, config); err != nil {
		return nil, fmt.Errorf("BeforeConnect of the pool: %w", err)
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	if err := s.afterConnect(ctx, conn); err != nil {
		return nil, errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
	}
	return conn, nil
}

// behindPooler reports whether a connection leads to a pooler such as pgbouncer: the process id that it told is not that of
// the session. A pooler may give each transaction another session, so nothing may outlive one: no prepared statement,
// LISTEN, SET or lock of a session.
func (s *Store) behindPooler(ctx context.Context) (bool, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var pid uint32
	err = conn.QueryRow(ctx, "SELECT pg_backend_pid()", pgx.QueryExecModeCacheDescribe).Scan(&pid)
	return pid != conn.PgConn().PID(), err
}

// maxConns is more than a server has.
const maxConns = 1 << 18

// configure sets what all connections of the store share. One that leads to a read-only server is closed: the next may find
// the primary.
func configure(c *pgx.ConnConfig) {
	survives := c.OnPgError
	c.OnPgError = func(conn *pgconn.PgConn, err *pgconn.PgError) bool {
		return err.Code != readOnlyTransaction && survives(conn, err)
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTimeout
	}
	c.DescriptionCacheCapacity = max(c.DescriptionCacheCapacity, 512) // some statements need it; see [store.SQL]
	if _, set := c.RuntimeParams["application_name"]; !set {
		c.RuntimeParams["application_name"] = "worker"
	}
}

// setTimeouts fails statements without an answer in time, and cancels statements whose context ends, so that their
// outcome is known.
func setTimeouts(c *pgx.ConnConfig) {
	c.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: cancelTimeout}
	}
	dial := c.DialFunc
	c.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return timeoutConn{conn}, nil
	}
}

// timeoutConn is a connection on which what is sent must be answered in time.
type timeoutConn struct{ net.Conn }

func (c timeoutConn) Write(b []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// Close waits for the calls that run and closes the connections, but for those of a pool that it was given.
func (s *Store) Close() error {
	err := s.db.Close()
	if s.ownedPool {
		s.pool.Close()
	}
	return errors.Join(err, s.migrationDB.Close())
}

//go:embed statements/ping.sql
var pingSQL string

// Ping says whether the server answers and has a schema that this version of the worker can work with:
// [store.ErrNoSchema] when it has none or an older one, [store.ErrNewerSchema] when a newer one breaks it,
// [store.ErrReadOnly] when it takes no writes; then the connections are made again, as they may find another server.
func (s *Store) Ping(ctx context.Context) error {
	var schema migrations.Schema
	var readOnly bool
	err := s.pool.QueryRow(ctx, pingSQL).Scan(&schema.Version, &schema.Breaking, &readOnly)
	if err == nil && readOnly {
		s.pool.Reset()
		err = store.ErrReadOnly
	}
	if err != nil {
		return fault(ctx, "ping", err)
	}
	return s.migrator.Check(schema)
}

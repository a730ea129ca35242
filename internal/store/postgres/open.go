package postgres

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"net"
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
}

// Store is an event store in one schema of a Postgres database.
type Store struct {
	store.Reads
	queries
	pool *pgxpool.Pool
	db   *sql.DB // over the pool
	// config is what connections outside the pool begin from.
	config      *pgx.ConnConfig
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
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("open Postgres: the database URL cannot be read (it is not shown, as it may hold a password)")
	}
	if o.MaxConns > 0 {
		config.MaxConns = int32(min(o.MaxConns, maxConns))
	}
	configure(config.ConnConfig)
	s := &Store{config: config.ConnConfig.Copy()}
	s.migrationDB = stdlib.OpenDB(*s.config)
	s.migrationDB.SetMaxIdleConns(0)
	if s.migrator, err = migrations.Postgres(s.migrationDB); err != nil {
		return nil, err
	}
	beImpatient(config.ConnConfig)
	if s.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, fault(ctx, "open Postgres", err)
	}
	s.db, s.queries = stdlib.OpenDBFromPool(s.pool), queries{s.pool}
	s.Reads = store.NewReads(s.queries)
	s.writes.execute, s.writes.fitter, s.writes.linger = s.writeTogether, fitWrites, true
	s.lookups.execute, s.lookups.fitter = s.lookUp, fitLookups
	if err := s.pool.Ping(ctx); err != nil {
		return nil, errors.Join(fault(ctx, "open Postgres", err), s.Close())
	}
	return s, nil
}

// maxConns is more than a server has.
const maxConns = 1 << 18

// configure sets what all connections of the store share.
func configure(c *pgx.ConnConfig) {
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTimeout
	}
	c.DescriptionCacheCapacity = max(c.DescriptionCacheCapacity, 512) // some statements need it; see [store.SQL]
	if _, set := c.RuntimeParams["application_name"]; !set {
		c.RuntimeParams["application_name"] = "worker"
	}
}

// beImpatient fails statements without an answer in time, and cancels statements whose context ends, so that their
// outcome is known.
func beImpatient(c *pgx.ConnConfig) {
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

// Close waits for the calls that run and closes the connections.
func (s *Store) Close() error {
	err := s.db.Close()
	s.pool.Close()
	return errors.Join(err, s.migrationDB.Close())
}

// Ping says whether the server answers and has a schema that this version of the worker can work with:
// [store.ErrNoSchema] when it has none or an older one, [store.ErrNewerSchema] when a newer one breaks it.
func (s *Store) Ping(ctx context.Context) error {
	var schema migrations.Schema
	if err := s.pool.QueryRow(ctx, migrations.SelectPostgres).Scan(&schema.Version, &schema.Breaking); err != nil {
		return fault(ctx, "ping", err)
	}
	return s.migrator.Check(schema)
}

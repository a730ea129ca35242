package bench

import (
	"context"
	"crypto/rand"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/worker"
)

// callers is how many goroutines the raw contenders and the callers of ours have where a row says many.
const callers = 32

// contractSQL makes the contract's table with the contract's indexes, and nothing else.
//
//go:embed contract.sql
var contractSQL string

// rig is what all rows share.
type rig struct {
	config           Config
	out              io.Writer
	database, broker string
	closers          []func() error
}

func (r *rig) open(ctx context.Context) error {
	r.database, r.broker = r.config.DatabaseURL, r.config.BrokerURL
	for _, s := range []struct {
		address *string
		start   func(context.Context) (*testservers.Server, error)
	}{{&r.database, testservers.StartPostgres}, {&r.broker, testservers.StartRabbitMQ}} {
		if *s.address != "" {
			continue
		}
		server, err := s.start(ctx)
		if err != nil {
			return err
		}
		r.closers = append(r.closers, server.Stop)
		*s.address = server.URL()
	}
	return nil
}

func (r *rig) close() error { return closeAll(r.closers) }

// closeAll closes the last first.
func closeAll(closers []func() error) error {
	var errs []error
	for i := len(closers) - 1; i >= 0; i-- {
		errs = append(errs, closers[i]())
	}
	return errors.Join(errs...)
}

// describe begins the result.
func (r *rig) describe(ctx context.Context) (*Result, error) {
	conn, err := pgx.Connect(ctx, r.database)
	if err != nil {
		return nil, err
	}
	var version, fsync string
	err = conn.QueryRow(ctx, "SELECT current_setting('server_version'), current_setting('fsync')").Scan(&version, &fsync)
	if err := errors.Join(err, conn.Close(ctx)); err != nil {
		return nil, err
	}
	version, _, _ = strings.Cut(version, " ")
	broker, err := amqp091.Dial(r.broker)
	if err != nil {
		return nil, err
	}
	rabbit := fmt.Sprint(broker.Properties["version"])
	load, _, _ := strings.Cut(readLoad(), " ")
	return &Result{
		Date: time.Now().UTC().Format(time.DateOnly), CPUs: runtime.NumCPU(), Go: runtime.Version(), Postgres: version,
		Fsync: fsync, RabbitMQ: rabbit, Rounds: r.config.Rounds, Turn: r.config.Turn.String(), Load: load,
	}, broker.Close()
}

// readLoad is the system's load averages, or "unknown".
func readLoad() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return string(text)
}

// stage is what a group of rows has for itself, on the rig.
type stage struct {
	*rig
	result  *Result
	closers []func() error
}

func (s *stage) onEnd(f func() error) { s.closers = append(s.closers, f) }
func (s *stage) end() error           { return closeAll(s.closers) }

// newDatabase makes an empty database.
func (s *stage) newDatabase(ctx context.Context) (address string, err error) {
	server, err := url.Parse(s.database)
	if err != nil {
		return "", errors.New("the database's URL is not one")
	}
	name := uniqueName()
	if err := execute(ctx, s.database, "CREATE DATABASE "+name); err != nil {
		return "", err
	}
	s.onEnd(func() error {
		return execute(context.WithoutCancel(ctx), s.database, "DROP DATABASE "+name+" WITH (FORCE)")
	})
	server.Path = "/" + name
	return server.String(), nil
}

func execute(ctx context.Context, address, statement string) error {
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	return errors.Join(err, conn.Close(ctx))
}

// rawDatabase makes a database with the contract's table.
func (s *stage) rawDatabase(ctx context.Context) (*pgxpool.Pool, error) {
	address, err := s.newDatabase(ctx)
	if err != nil {
		return nil, err
	}
	if err := execute(ctx, address, contractSQL); err != nil {
		return nil, err
	}
	return s.pool(ctx, address)
}

// pool opens connections for all callers.
func (s *stage) pool(ctx context.Context, address string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(address)
	if err != nil {
		return nil, err
	}
	config.MaxConns = callers
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	s.onEnd(func() error { pool.Close(); return nil })
	return pool, nil
}

// stockDatabase makes a database for watermill-sql.
func (s *stage) stockDatabase(ctx context.Context) (*sql.DB, error) {
	address, err := s.newDatabase(ctx)
	if err != nil {
		return nil, err
	}
	pool, err := s.pool(ctx, address)
	if err != nil {
		return nil, err
	}
	db := stdlib.OpenDBFromPool(pool)
	s.onEnd(db.Close)
	return db, nil
}

// newStore makes a database with the worker's schema and opens it as the worker does.
func (s *stage) newStore(ctx context.Context) (worker.Settings, worker.Backend, error) {
	settings := worker.DefaultSettings()
	var err error
	if settings.DatabaseURL, err = s.newDatabase(ctx); err != nil {
		return settings, nil, err
	}
	backend, err := settings.OpenStore(ctx)
	if err != nil {
		return settings, nil, err
	}
	s.onEnd(backend.Close)
	return settings, backend, backend.Migrate(ctx)
}

// newTopology declares the contract's topology under a name of its own, which is returned.
func (s *stage) newTopology(ctx context.Context) (prefix string, err error) {
	prefix = uniqueName()
	conn, err := amqp.Dial(ctx, amqp.Config{URL: s.broker, Prefix: prefix})
	if err != nil {
		return "", err
	}
	s.onEnd(func() error {
		return s.onBroker(func(channel *amqp091.Channel) error {
			var errs []error
			for _, queue := range []string{".consumer", ".failed"} {
				_, err := channel.QueueDelete(prefix+queue, false, false, false)
				errs = append(errs, err)
			}
			for _, exchange := range []string{"", ".dlx"} {
				errs = append(errs, channel.ExchangeDelete(prefix+exchange, false, false))
			}
			return errors.Join(errs...)
		})
	})
	return prefix, conn.Close()
}

// channel opens a channel on a connection of its own.
func (s *stage) channel() (*amqp091.Channel, error) {
	conn, err := amqp091.Dial(s.broker)
	if err != nil {
		return nil, err
	}
	s.onEnd(conn.Close)
	return conn.Channel()
}

func (s *stage) onBroker(do func(*amqp091.Channel) error) error {
	conn, err := amqp091.Dial(s.broker)
	if err != nil {
		return err
	}
	channel, err := conn.Channel()
	if err == nil {
		err = do(channel)
	}
	return errors.Join(err, conn.Close())
}

// empty takes everything out of a queue.
func (s *stage) empty(queue string) error {
	return s.onBroker(func(channel *amqp091.Channel) error {
		_, err := channel.QueuePurge(queue, false)
		return err
	})
}

// logger logs at info: its lines are made, and thrown away.
//
//nolint:sloglint // the one that is meant makes no lines
func logger() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// until asks again and again until it is so.
func until(ctx context.Context, interval time.Duration, so func() (bool, error)) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		if done, err := so(); done || err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// uniqueName is the name of something that a run makes on the servers.
func uniqueName() string { return "bench_" + strings.ToLower(rand.Text()) }

// stockLogger logs as [logger] does.
func stockLogger() watermill.LoggerAdapter { return watermill.NewSlogLogger(logger()) }

package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"

	modernc "modernc.org/sqlite"
)

// openDB opens a pool of so many connections, without opening one yet.
func openDB(dsn string, connections int) (*sql.DB, error) {
	c, err := newConnector(dsn)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(c)
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return db, nil
}

// connector makes connections that keep their prepared statements. As part of a [sql.DB] it lets the DB's Close, which does
// not wait for the connections in use, wait for them.
type connector struct {
	driver.Connector
	inUse *sync.RWMutex // read-locked by each connection until it is closed
}

func newConnector(dsn string) (connector, error) {
	c, err := modernc.NewConnector(dsn)
	return connector{c, new(sync.RWMutex)}, err
}

func (c connector) Connect(ctx context.Context) (driver.Conn, error) { return c.open(ctx) }

func (c connector) open(ctx context.Context) (*conn, error) {
	opened, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	inner, ok := opened.(innerConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the driver's %T lacks what the store needs", opened), opened.Close())
	}
	c.inUse.RLock()
	return &conn{innerConn: inner, inUse: c.inUse, prepared: make(map[string]driver.Stmt)}, nil
}

// Close waits until all connections are closed.
func (c connector) Close() error {
	c.inUse.Lock()
	defer c.inUse.Unlock()
	return nil
}

type innerConn interface {
	driver.Conn
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.SessionResetter
	driver.Validator
	// IsReadOnly reports whether the database of the connection, by its name there, cannot be written.
	IsReadOnly(database string) (bool, error)
}

// conn prepares each statement once, at its first use, and keeps it: to parse an INSERT takes longer than to run it. No
// statement may run twice at once on one connection, so a transaction closes its rows before it goes on.
type conn struct {
	innerConn
	inUse    *sync.RWMutex
	prepared map[string]driver.Stmt
}

func (c *conn) statement(ctx context.Context, query string) (driver.Stmt, error) {
	if s, ok := c.prepared[query]; ok {
		return s, nil
	}
	s, err := c.PrepareContext(ctx, query)
	if err == nil {
		c.prepared[query] = s
	}
	return s, err
}

func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	s, err := c.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	return s.(driver.StmtExecContext).ExecContext(ctx, args)
}

func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	s, err := c.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	return s.(driver.StmtQueryContext).QueryContext(ctx, args)
}

func (c *conn) Close() error {
	defer c.inUse.RUnlock()
	var errs []error
	for _, s := range c.prepared {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, c.innerConn.Close())...)
}

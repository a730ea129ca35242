package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/migrations"
)

const (
	// faultMemory is how long a failed write counts although later ones succeed: on a full disk the small ones still do, as
	// they overwrite the write-ahead log.
	faultMemory = 15 * time.Second
	// noSpace is the free disk space, in bytes, below which a write may fail.
	noSpace = 1 << 20
)

// Ping says whether the file can be read and written and has a schema that this version of the worker can work with:
// otherwise it is [store.ErrNoSchema] or [store.ErrNewerSchema].
func (s *Store) Ping(ctx context.Context) error {
	const doing = "check the database file"
	if err := s.checkFile(); err != nil {
		return translate(doing, err)
	}
	if err := s.disk.err(); err != nil {
		return err
	}
	if free, err := s.freeSpace(filepath.Dir(s.path)); err == nil && free < noSpace {
		return fmt.Errorf("%s: %w: its disk is full, with %s free", doing, store.ErrUnavailable, humanize.IBytes(uint64(max(0, free))))
	}
	return s.checkSchema(ctx)
}

func (s *Store) checkSchema(ctx context.Context) error {
	const checking = "check the schema"
	var schema migrations.Schema
	err := s.readers.QueryRowContext(ctx, migrations.SelectSQLite).Scan(&schema.Version, &schema.Breaking)
	if err != nil {
		return translate(checking, err)
	}
	return translate(checking, s.migrator.Check(schema))
}

// checkFile says whether the path still names the file that was opened. SQLite goes on with one that was moved or deleted,
// in which no other process finds the events.
func (s *Store) checkFile() error {
	now, err := os.Stat(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %s was moved or deleted while it was in use; put it back, or restart the worker", store.ErrUnavailable, s.path)
	case err != nil:
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	case !os.SameFile(now, s.file):
		return fmt.Errorf("%w: %s was replaced by another file while it was in use; restart the worker to use that", store.ErrUnavailable, s.path)
	}
	return nil
}

// disk remembers the writes that have failed by a fault of the disk.
type disk struct {
	memory time.Duration

	mu     sync.Mutex
	fault  error // of the last write that failed so
	failed time.Time
	over   bool // a later write has succeeded
}

// note notes the result of a write.
func (d *disk) note(err error) {
	fault := false
	switch resultCode(err) {
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
		fault = true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if fault {
		d.fault, d.failed, d.over = err, time.Now(), false
	} else if err == nil || errors.Is(err, store.ErrNotLeader) { // a standby does no more than try to take leases
		d.over = true
	}
}

// err is the fault, while no write has succeeded since, or only a short time ago.
func (d *disk) err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over && time.Since(d.failed) >= d.memory {
		return nil
	}
	return d.fault
}

package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/migrations"
)

const (
	// busyTimeout is how long a write waits for those of other processes. After it the write fails with
	// [store.ErrUnavailable].
	busyTimeout = 10 * time.Second
	// readerConnections is how many reads run at once; more wait. They are short, and each has a cache of 2 MB.
	readerConnections = 4
	// logSizeLimit is the size in bytes to which the log is truncated after a large transaction.
	logSizeLimit = 64 << 20
	// shortWait is how long SQLite itself waits for other writers, see [Store.begin].
	shortWait = 4 * time.Millisecond
	// lockRetry is how often a file lock that another process holds is tried again.
	lockRetry = 10 * time.Millisecond

	setupLockSuffix = "-setup.lock"
)

// Open opens the store in the file at path, and makes the file, and the folders that it is in, where there are none.
// They are readable for their owner alone. Open makes no tables: that is [Store.Migrate].
//
// The error wraps [store.ErrUnavailable] when the fault can pass: the file, its folder or its disk cannot be written.
func Open(ctx context.Context, path string) (*Store, error) {
	return open(ctx, path, busyTimeout)
}

func open(ctx context.Context, path string, timeout time.Duration) (*Store, error) {
	doing := fmt.Sprintf("open SQLite database %q", path)
	if path == "" {
		return nil, fmt.Errorf("%s: the path is empty", doing)
	}
	path, err := resolve(path)
	if err != nil {
		return nil, translate(doing, err)
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: it is not a regular file", doing)
	} else if err == nil && links(info) > 1 {
		return nil, fmt.Errorf("%s: the file has %d names (hard links), and SQLite keeps a log for each name, so that what is "+
			"written under one name is lost under the other: delete all names but one while no worker runs", doing, links(info))
	}
	s := &Store{path: path, busyTimeout: timeout, disk: disk{memory: faultMemory}, freeSpace: FreeSpace}
	if err := s.exclusively(ctx, func() error { return s.prepareFile(ctx) }); err != nil {
		return nil, translate(doing, err)
	}
	if s.writer, err = openDB(s.dsn(writing), 1); err != nil {
		return nil, translate(doing, err)
	}
	if s.readers, err = openDB(s.dsn(reading), readerConnections); err != nil {
		return nil, translate(doing, err)
	}
	s.queries = queries{s.readers}
	s.Reads = store.NewReads(s.queries)
	if s.migrating, err = openDB(s.dsn(migrating), 1); err != nil {
		return nil, translate(doing, err)
	}
	s.migrating.SetMaxIdleConns(0)
	if s.migrator, err = migrations.SQLite(s.migrating); err != nil {
		return nil, errors.Join(translate(doing, err), s.Close())
	}
	return s, nil
}

// resolve returns the absolute path of the file without symbolic links, so that all workers use the same files beside it,
// whatever name they open it by. It makes the folders that are missing.
//
// The folder is resolved before what follows it, and the text of a path is not cleaned before: behind a link, ".." is another
// folder than in the text.
func resolve(path string) (string, error) {
	const maxLinks = 40 // as Linux
	path = strings.TrimRight(path, string(filepath.Separator))
	for range maxLinks + 1 { // to the file, which need not exist yet
		folder, name := filepath.Split(path)
		folder, err := resolveFolder(folder + ".")
		if err != nil {
			return "", err
		}
		path = filepath.Join(folder, name)
		info, err := os.Lstat(path)
		if isLink := err == nil && info.Mode()&fs.ModeSymlink != 0; !isLink {
			return path, nil
		}
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(target) {
			target = folder + string(filepath.Separator) + target
		}
		path = target
	}
	return "", fmt.Errorf("more than %d symbolic links", maxLinks)
}

func resolveFolder(folder string) (string, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return "", err
	}
	folder, err := filepath.EvalSymlinks(folder)
	if err != nil {
		return "", err
	}
	return filepath.Abs(folder)
}

// exclusively runs work while no other process, nor another Store of this one, is opening or migrating the database.
func (s *Store) exclusively(ctx context.Context, work func() error) error {
	lock := flock.New(s.path + setupLockSuffix)
	if _, err := lock.TryLockContext(ctx, lockRetry); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Path(), err)
	}
	return errors.Join(work(), lock.Unlock())
}

// prepareFile makes the file, turns on its write-ahead log, and checks that it can be written.
func (s *Store) prepareFile(ctx context.Context) error {
	db, err := openDB(s.dsn(creating), 1)
	if err != nil {
		return err
	}
	defer db.Close()
	var mode string
	if err := db.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return err
	}
	if s.file, err = os.Stat(s.path); err != nil {
		return err
	}
	if err := checkWritable(ctx, db); err != nil || mode == walMode {
		return err
	}
	if err := db.QueryRowContext(ctx, "PRAGMA journal_mode = "+walMode).Scan(&mode); err != nil {
		return err
	}
	if mode != walMode {
		return fmt.Errorf("it cannot have a write-ahead log there: journal_mode remains %q", mode)
	}
	return nil
}

const walMode = "wal"

// checkWritable is needed as SQLite opens a file that it may not write, for reading only.
func checkWritable(ctx context.Context, db *sql.DB) error {
	c, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Raw(func(c any) error {
		readOnly, err := c.(*conn).IsReadOnly("main")
		if err == nil && readOnly {
			err = fmt.Errorf("%w: the file is read-only", store.ErrUnavailable)
		}
		return err
	})
}

// access is what a connection is for.
type access int

const (
	creating access = iota
	migrating
	writing
	reading
)

// dsn is the URI of the file, as a plain path could not hold a question mark. Of its parameters
//
//   - mode and modeof let only Open make the file, with the permissions of the lock file, its owner's. Were the file
//     made here and closed again, that would drop the locks which this process has on it.
//   - synchronous lets a commit return once the log is on the disk.
//   - txlock lets a transaction be a writing one from its beginning, which it cannot become once another has written.
//     A reader has mode rw too: it writes to the memory that it shares with the others.
func (s *Store) dsn(a access) string {
	q := url.Values{
		"mode":          {"rw"},
		"_busy_timeout": {milliseconds(s.busyTimeout)},
		"_synchronous":  {"FULL"},
		"_defensive":    {"1"},
		"_dqs":          {"0"},
		"_error_rc":     {"1"},
	}
	switch a {
	case creating:
		q.Set("mode", "rwc")
		q.Set("modeof", s.path+setupLockSuffix)
	case migrating:
		q.Set("_txlock", "immediate")
	case writing:
		q.Set("_txlock", "immediate")
		q.Set("_busy_timeout", milliseconds(shortWait))
		q.Set("_pragma", fmt.Sprintf("journal_size_limit(%d)", logSizeLimit))
	case reading:
		q.Set("_query_only", "1")
	}
	query := strings.ReplaceAll(q.Encode(), "+", "%20") // to SQLite a plus is no space
	return (&url.URL{Scheme: "file", Path: s.path, RawQuery: query}).String()
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

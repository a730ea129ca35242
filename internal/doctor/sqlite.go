package doctor

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/worker"
	"github.com/healz/worker/migrations"
)

const fileCheck = "sqlite"

const (
	// littleSpace and noSpace are limits of the free disk space, in bytes.
	littleSpace = 1 << 30
	noSpace     = 100 << 20
	// longLog is the size of a write-ahead log, in bytes, that a long read transaction prevents from being truncated.
	longLog = 512 << 20
)

// sqliteDoctor checks the file of a SQLite store on read-only connections.
type sqliteDoctor struct{ settings worker.Settings }

func sqliteChecks(s worker.Settings) []Check {
	d := sqliteDoctor{settings: s}
	checks := []Check{
		{fileCheck, settingsCheck, func(context.Context) ([]Finding, error) { return d.file() }},
		{"disk", fileCheck, func(context.Context) ([]Finding, error) { return d.disk() }},
		{schemaCheck, fileCheck, d.schema},
	}
	for _, c := range []struct {
		name string
		run  func(context.Context, *sql.DB) ([]Finding, error)
	}{
		{"append-only", d.appendOnly}, {relayCheck, d.relay}, {lettersCheck, d.letters}, {inboxCheck, d.inbox},
	} {
		checks = append(checks, Check{c.name, schemaCheck, func(ctx context.Context) (findings []Finding, err error) {
			err = d.on(func(db *sql.DB) error {
				findings, err = c.run(ctx, db)
				return err
			})
			return findings, err
		}})
	}
	return checks
}

// on calls do with a read-only connection.
func (d sqliteDoctor) on(do func(*sql.DB) error) error {
	path, err := filepath.Abs(d.settings.SQLitePath)
	if err != nil {
		return err
	}
	dsn := url.URL{Scheme: "file", Path: path, RawQuery: "mode=ro&_query_only=1&_busy_timeout=5000"}
	db, err := sql.Open("sqlite", dsn.String())
	if err != nil {
		return err
	}
	defer db.Close()
	return do(db)
}

// file checks the file without opening it as a database.
func (d sqliteDoctor) file() ([]Finding, error) {
	info, err := os.Stat(d.settings.SQLitePath)
	if errors.Is(err, fs.ErrNotExist) {
		return []Finding{wrongly("there is no file "+d.settings.SQLitePath,
			"`worker run` and `worker append` create it; or correct --sqlite-path, or set DATABASE_URL")}, nil
	}
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return []Finding{wrongly(d.settings.SQLitePath+" is not a regular file", "correct --sqlite-path")}, nil
	}
	file, err := os.OpenFile(d.settings.SQLitePath, os.O_RDWR, 0)
	if err != nil {
		return []Finding{wrongly(oneLine(err), "give the user of the worker read and write access: chown and chmod 600")}, nil
	}
	defer file.Close()
	findings := judgeMode(info.Mode())
	// The header of a database has the format, and two bytes that say whether it uses a write-ahead log.
	header := make([]byte, 20)
	if _, err := io.ReadFull(file, header); err != nil || !bytes.HasPrefix(header, []byte("SQLite format 3\x00")) {
		return append(findings, wrongly(d.settings.SQLitePath+" is not an SQLite database", "correct --sqlite-path")), nil
	}
	if header[18] != 2 || header[19] != 2 {
		findings = append(findings, warning("the file has no write-ahead log: readers and writers block each other",
			"start `worker run`, which enables it"))
	}
	if log, err := os.Stat(d.settings.SQLitePath + "-wal"); err == nil && log.Size() > longLog {
		findings = append(findings, warning("the write-ahead log has grown to "+size(log.Size()),
			"end the program with the long read transaction"))
	}
	if len(findings) == 0 {
		findings = append(findings, fine("%s, %s", d.settings.SQLitePath, size(info.Size())))
	}
	return findings, nil
}

func judgeMode(mode fs.FileMode) []Finding {
	if mode.Perm()&0o077 != 0 {
		return []Finding{warning(fmt.Sprintf("users other than the owner may open the file, which contains patient data (%s)", mode), "chmod 600")}
	}
	return nil
}

func (d sqliteDoctor) disk() ([]Finding, error) {
	free, err := freeSpace(filepath.Dir(d.settings.SQLitePath))
	if errors.Is(err, errors.ErrUnsupported) {
		return []Finding{fine("the free space is unknown on this system")}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("check the disk: %w", err)
	}
	return []Finding{judgeSpace(free)}, nil
}

func judgeSpace(free int64) Finding {
	what := size(free) + " free"
	switch {
	case free < noSpace:
		return wrongly(what, "free disk space before appends fail")
	case free < littleSpace:
		return warning(what, "free disk space")
	default:
		return fine("%s", what)
	}
}

func (d sqliteDoctor) schema(ctx context.Context) (findings []Finding, err error) {
	return findings, d.on(func(db *sql.DB) error {
		migrator, err := migrations.SQLite(db)
		if err != nil {
			return err
		}
		var migrated bool
		err = db.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = ?)", migrations.Table).Scan(&migrated)
		if err != nil {
			return err
		}
		var version int64
		if migrated {
			err = db.QueryRowContext(ctx, "SELECT coalesce(max(version_id), 0) FROM "+migrations.Table+" WHERE is_applied").Scan(&version)
		}
		findings = append(findings, judgeSchema(version, migrator.Latest()))
		return err
	})
}

func (sqliteDoctor) appendOnly(ctx context.Context, db *sql.DB) ([]Finding, error) {
	var guards int
	err := db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_master
		WHERE type = 'trigger' AND name IN ('events_no_update', 'events_no_delete', 'events_no_replace')`).Scan(&guards)
	if err != nil {
		return nil, err
	}
	if guards < 3 {
		return []Finding{wrongly("events can be changed or deleted: a trigger is missing",
			"restore events_no_update, events_no_delete and events_no_replace from migrations/sqlite/00001_events.sql")}, nil
	}
	return []Finding{fine("events cannot be changed or deleted")}, nil
}

func (d sqliteDoctor) relay(ctx context.Context, db *sql.DB) ([]Finding, error) {
	read := func() (l lag, position int64, err error) {
		var created sql.NullInt64
		var relayed bool
		err = db.QueryRowContext(ctx, `
			WITH position AS (SELECT event FROM relay_position),
			waiting AS (SELECT created_at, own FROM events WHERE id > (SELECT event FROM position) ORDER BY id LIMIT ?)
			SELECT coalesce((SELECT event FROM position), -1), EXISTS (SELECT 1 FROM leases WHERE task = 'relay'), count(*), min(created_at) FROM waiting WHERE own = 1 OR NOT ?`,
			most+1, d.settings.Relay.OnlyOwn).Scan(&position, &relayed, &l.Waiting, &created)
		l.Begun, l.Own = position >= 0, l.Waiting
		if err == nil && relayed && !l.Begun {
			err = store.ErrNoPosition
		}
		if created.Valid {
			age := time.Since(time.UnixMicro(created.Int64)).Seconds()
			l.Oldest = &age
		}
		return l, position, err
	}
	l, before, err := read()
	if err == nil && l.Oldest != nil && *l.Oldest >= lagWarning.Seconds() {
		if err = wait(ctx, recheck); err == nil {
			var after int64
			if l, after, err = read(); after == before {
				unknown := math.Inf(1) // SQLite does not record when the position moved
				l.Moved = &unknown
			}
		}
	}
	if err != nil {
		return nil, err
	}
	return []Finding{l.judge(d.settings.Relay.OnlyOwn)}, nil
}

func (d sqliteDoctor) letters(ctx context.Context, db *sql.DB) ([]Finding, error) {
	var count int
	err := db.QueryRowContext(ctx, "SELECT count(*) FROM (SELECT 1 FROM dead_letters WHERE state = 'waiting' LIMIT ?)", most+1).Scan(&count)
	if err != nil {
		return nil, err
	}
	return []Finding{judgeLetters(count)}, nil
}

func (d sqliteDoctor) inbox(ctx context.Context, db *sql.DB) ([]Finding, error) {
	var count int
	var oldest sql.NullInt64
	err := db.QueryRowContext(ctx, "SELECT count(*), (SELECT min(handled_at) FROM handled) FROM (SELECT 1 FROM handled LIMIT ?)", most+1).
		Scan(&count, &oldest)
	if err != nil {
		return nil, err
	}
	var age time.Duration
	if oldest.Valid {
		age = time.Since(time.UnixMicro(oldest.Int64))
	}
	return []Finding{judgeInbox(count, age, d.settings.InboxRetention)}, nil
}

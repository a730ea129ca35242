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
	"strings"
	"time"

	driver "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/sqlite"
	"github.com/healz/worker/internal/worker"
	"github.com/healz/worker/migrations"
)

const (
	fileCheck = "sqlite"
	diskCheck = "disk"
)

const (
	// littleSpace and noSpace are limits of the free disk space, in bytes.
	littleSpace = 1 << 30
	noSpace     = 100 << 20
	// longLog is the size of a write-ahead log, in bytes, that a long read transaction prevents from being truncated.
	longLog = 512 << 20
)

// sqliteDoctor checks the file of a SQLite store on read-only connections.
type sqliteDoctor struct{ settings worker.Settings }

func sqliteChecks(s worker.Settings) (file Check, others []Check) {
	d := sqliteDoctor{settings: s}
	check := func(name, needs string, run func(context.Context, *sql.DB, *Report) error) Check {
		return Check{Name: name, Needs: needs, Run: func(ctx context.Context, r *Report) error {
			return d.on(func(db *sql.DB) error { return run(ctx, db, r) })
		}}
	}
	relay := check(relayCheck, schemaCheck, d.relay)
	relay.Causes = []string{diskCheck, rabbitMQCheck, publishingCheck}
	return Check{Name: fileCheck, Needs: settingsCheck, Run: d.file}, []Check{
		{Name: diskCheck, Needs: fileCheck, Run: d.disk},
		check("integrity", fileCheck, d.integrity),
		check(schemaCheck, fileCheck, d.schema),
		check("append-only", schemaCheck, d.appendOnly),
		relay,
		check(lettersCheck, schemaCheck, d.letters),
		check(inboxCheck, schemaCheck, d.inbox),
	}
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
func (d sqliteDoctor) file(_ context.Context, r *Report) error {
	info, err := os.Stat(d.settings.SQLitePath)
	if errors.Is(err, fs.ErrNotExist) {
		r.wrong("there is no file "+d.settings.SQLitePath,
			"`worker run` and `worker append` create it; or correct --sqlite-path, or set DATABASE_URL")
		return nil
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		r.wrong(d.settings.SQLitePath+" is not a regular file", "correct --sqlite-path")
		return nil
	}
	file, err := os.OpenFile(d.settings.SQLitePath, os.O_RDWR, 0)
	if err != nil {
		r.wrong(oneLine(err), "give the user of the worker read and write access: chown and chmod 600")
		return nil
	}
	defer file.Close()
	if mode := info.Mode(); mode.Perm()&0o077 != 0 {
		r.warn(fmt.Sprintf("users other than the owner may open the file, which contains patient data (%s)", mode), "chmod 600")
	}
	// The header of a database has the format, and two bytes that say whether it uses a write-ahead log.
	header := make([]byte, 20)
	if _, err := io.ReadFull(file, header); err != nil || !bytes.HasPrefix(header, []byte("SQLite format 3\x00")) {
		r.wrong(d.settings.SQLitePath+" is not an SQLite database", "correct --sqlite-path")
		return nil
	}
	if header[18] != 2 || header[19] != 2 {
		r.warn("the file has no write-ahead log: readers and writers block each other", "start `worker run`, which enables it")
	}
	if log, err := os.Stat(d.settings.SQLitePath + "-wal"); err == nil && log.Size() > longLog {
		r.warn("the write-ahead log has grown to "+size(log.Size()), "end the program with the long read transaction")
	}
	r.otherwise("%s, %s", d.settings.SQLitePath, size(info.Size()))
	return nil
}

func (d sqliteDoctor) disk(_ context.Context, r *Report) error {
	free, err := sqlite.FreeSpace(filepath.Dir(d.settings.SQLitePath))
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		r.unknown("the free space is unknown on this system", "")
	case err != nil:
		return fmt.Errorf("check the disk: %w", err)
	default:
		r.add(judgeSpace(free))
	}
	return nil
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

// integrity reads the whole file, for as long as a check may take. Writers do not wait for it.
func (d sqliteDoctor) integrity(ctx context.Context, db *sql.DB, r *Report) error {
	var problem string
	err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&problem)
	switch {
	case ctx.Err() != nil:
		r.unknown("the file was not checked to its end in the time of one check",
			"run `sqlite3 FILE 'PRAGMA quick_check'` with the path of the file")
	case err == nil && problem == "ok":
		r.fine("quick_check finds no fault")
	case err == nil, isCorrupt(err):
		if err != nil {
			problem = err.Error()
		}
		r.wrong("the file is corrupt: "+strings.Join(strings.Fields(problem), " "),
			"stop the workers, keep a copy of the file and its -wal, and restore a backup, or save what is readable by `sqlite3 FILE .recover`")
	default:
		return err
	}
	return nil
}

func isCorrupt(err error) bool {
	e, ok := errors.AsType[*driver.Error](err)
	return ok && (e.Code()&0xff == sqlite3.SQLITE_CORRUPT || e.Code()&0xff == sqlite3.SQLITE_NOTADB)
}

func (d sqliteDoctor) schema(ctx context.Context, db *sql.DB, r *Report) error {
	migrator, err := migrations.SQLite(db)
	if err != nil {
		return err
	}
	if err := migrations.CheckForeign(ctx, db); errors.Is(err, store.ErrForeignTable) {
		r.wrong(err.Error(), "correct --sqlite-path")
		return nil
	} else if err != nil {
		return err
	}
	var migrated bool
	err = db.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = ?)", migrations.Table).Scan(&migrated)
	if err != nil {
		return err
	}
	var s migrations.Schema
	if migrated {
		err = db.QueryRowContext(ctx, migrations.SelectSQLite).Scan(&s.Version, &s.Breaking)
	}
	if err != nil {
		return err
	}
	r.add(judgeSchema(s, migrator.Latest()))
	return nil
}

func (sqliteDoctor) appendOnly(ctx context.Context, db *sql.DB, r *Report) error {
	var guards int
	err := db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_master
		WHERE type = 'trigger' AND name IN ('events_no_update', 'events_no_delete', 'events_no_replace')`).Scan(&guards)
	if err != nil {
		return err
	}
	if guards < 3 {
		r.wrong("events can be changed or deleted: a trigger is missing",
			"restore events_no_update, events_no_delete and events_no_replace from migrations/sqlite/00001_events.sql")
	}
	r.otherwise("events cannot be changed or deleted")
	return nil
}

func (d sqliteDoctor) relay(ctx context.Context, db *sql.DB, r *Report) error {
	read := func() (l lag, position int64, err error) {
		var created sql.NullInt64
		var relayed bool
		err = db.QueryRowContext(ctx, `
			WITH position AS (SELECT event FROM relay_position),
			waiting AS (SELECT created_at, own FROM events WHERE id > (SELECT event FROM position) ORDER BY id LIMIT ?)
			SELECT coalesce((SELECT event FROM position), 0), EXISTS (SELECT 1 FROM position), EXISTS (SELECT 1 FROM leases WHERE task = 'relay'),
				count(*), min(created_at)
			FROM waiting WHERE own = 1 OR NOT ?`,
			most+1, d.settings.Relay.OnlyOwn).Scan(&position, &l.Begun, &relayed, &l.Waiting, &created)
		l.Own = l.Waiting
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
			if l, after, err = read(); err == nil && after == before {
				unknown := math.Inf(1) // SQLite does not record when the position moved
				l.Moved = &unknown
			}
		}
	}
	if err != nil {
		return err
	}
	r.add(l.judge(d.settings.Relay.OnlyOwn))
	return nil
}

func (d sqliteDoctor) letters(ctx context.Context, db *sql.DB, r *Report) error {
	var count int
	err := db.QueryRowContext(ctx, "SELECT count(*) FROM (SELECT 1 FROM dead_letters WHERE state = 'waiting' LIMIT ?)", most+1).Scan(&count)
	if err != nil {
		return err
	}
	r.add(judgeLetters(count))
	return nil
}

func (d sqliteDoctor) inbox(ctx context.Context, db *sql.DB, r *Report) error {
	var count int
	var oldest sql.NullInt64
	err := db.QueryRowContext(ctx, "SELECT count(*), (SELECT min(handled_at) FROM handled) FROM (SELECT 1 FROM handled LIMIT ?)", most+1).
		Scan(&count, &oldest)
	if err != nil {
		return err
	}
	var age time.Duration
	if oldest.Valid {
		age = time.Since(time.UnixMicro(oldest.Int64))
	}
	r.add(judgeInbox(count, age, d.settings.InboxRetention))
	return nil
}

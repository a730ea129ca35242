package sqlite

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	modernc "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/healz/worker/internal/store"
)

// translate adds what was being done, and wraps the error of package store that err means, if any. SQLite's own texts name
// tables and columns, and quote no values; that of a trigger may.
func translate(doing string, err error) error {
	work, failed := errors.AsType[*store.WorkError](err)
	switch {
	case err == nil:
		return nil
	case failed: // a handler's error, also if it wraps one of SQLite's
		return work
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrUnknownOutcome), isRefused(err):
		return fmt.Errorf("%s: %w", doing, err)
	case isRefusal(err):
		return fmt.Errorf("%s: %w", doing, refused(err))
	case isTemporary(err):
		return fmt.Errorf("%s: %w: %w", doing, store.ErrUnavailable, err)
	case isNoSchema(err):
		return fmt.Errorf("%s: %w", doing, store.ErrNoSchema)
	case resultCode(err) == sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("%s: it is not an SQLite database", doing)
	default:
		return fmt.Errorf("%s: %w", doing, err)
	}
}

// isNoSchema reports whether a statement names a table or a column that does not exist.
func isNoSchema(err error) bool {
	return resultCode(err) == sqlite3.SQLITE_ERROR && (strings.Contains(err.Error(), "no such table") ||
		strings.Contains(err.Error(), "no such column") || strings.Contains(err.Error(), "has no column named"))
}

// isRefusal reports whether SQLite refused a row.
func isRefusal(err error) bool {
	code := resultCode(err)
	return code == sqlite3.SQLITE_CONSTRAINT || code == sqlite3.SQLITE_TOOBIG
}

// isRefused reports whether err is translated by refused already.
func isRefused(err error) bool {
	_, is := errors.AsType[*store.RefusedError](err)
	return is
}

// refused is the error of rows that a constraint, a limit or a trigger refuses. The text of a trigger's RAISE is left
// out, as it may quote values.
func refused(err error) error {
	by := "a trigger"
	if e, _ := errors.AsType[*modernc.Error](err); e.Code() != sqlite3.SQLITE_CONSTRAINT_TRIGGER {
		by = strings.TrimPrefix(e.Error(), "constraint failed: ")
	}
	return &store.RefusedError{By: by, Err: err}
}

// isTemporary reports whether the same call can succeed later, when locks are released, space is freed or the right to
// write is granted.
func isTemporary(err error) bool {
	switch resultCode(err) {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
		sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM:
		return true
	}
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.ENOSPC) ||
		errors.Is(err, sql.ErrConnDone)
}

// resultCode is SQLite's primary result code, or -1 when the error is not SQLite's.
func resultCode(err error) int {
	if e, ok := errors.AsType[*modernc.Error](err); ok {
		return e.Code() & 0xff
	}
	return -1
}

// unknownIfIO is for the error of a commit: when the disk failed while the log was forced on to it, what a restart will
// find there cannot be known.
func unknownIfIO(err error) error {
	if resultCode(err) == sqlite3.SQLITE_IOERR {
		return fmt.Errorf("%w: %w", store.ErrUnknownOutcome, err)
	}
	return err
}

// isUnique reports whether SQLite refused a row because another has its key.
func isUnique(err error) bool {
	e, ok := errors.AsType[*modernc.Error](err)
	return ok && e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE
}

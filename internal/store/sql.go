package store

import (
	"context"
	"database/sql"
	"strings"
	"unicode/utf8"
)

// Dialect is the SQL that a database understands.
type Dialect string

// Dialects.
const (
	Postgres Dialect = "postgres"
	SQLite   Dialect = "sqlite"
)

// SQL is a store's database, for packages that keep tables of their own beside the events. It is safe for concurrent
// use, and valid until the store is closed.
type SQL struct {
	Dialect Dialect
	// DB is for reading only.
	DB *sql.DB
	// Replan stands before the arguments of a statement whose plan is not to be kept: one that was made while a table was
	// almost empty may read all of it once it is large.
	Replan []any
	// Write runs work in a transaction, and commits it if work returns nil. work closes the rows of one statement before
	// it begins the next. doing says what is being done, for the error.
	Write func(ctx context.Context, doing string, work func(ctx context.Context, tx *sql.Tx) error) error
	// Fault wraps an error of DB with what was being done and with [ErrUnavailable] or [ErrNoSchema], where that is what
	// it means. Errors of Write are wrapped already.
	Fault func(ctx context.Context, doing string, err error) error
}

// Text is a text that both databases take: Postgres takes neither a NUL nor what is not UTF-8.
func Text(s string) string {
	const replacement = string(utf8.RuneError)
	return strings.ReplaceAll(strings.ToValidUTF8(s, replacement), "\x00", replacement)
}

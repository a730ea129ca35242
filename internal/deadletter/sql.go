package deadletter

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/store"
)

// dialect is what the two databases write differently.
type dialect store.Dialect

// bind gives the placeholders of a statement, each a question mark, the form that the database knows.
func (d dialect) bind(statement string) string {
	if store.Dialect(d) == store.SQLite {
		return statement
	}
	var out strings.Builder
	n := 0
	for part := range strings.SplitSeq(statement, "?") {
		if n > 0 {
			out.WriteString("$" + strconv.Itoa(n))
		}
		out.WriteString(part)
		n++
	}
	return out.String()
}

// at is a time as an argument; the zero time is NULL.
func (d dialect) at(t time.Time) any {
	switch {
	case t.IsZero():
		return nil
	case store.Dialect(d) == store.SQLite:
		return t.UnixMicro()
	default:
		return t
	}
}

// now is the time of the database.
func (d dialect) now() string {
	if store.Dialect(d) == store.SQLite {
		return "CAST(unixepoch('subsec') * 1000000 AS INTEGER)"
	}
	return "now()"
}

// later is the time of the database, and a while more.
func (d dialect) later(by time.Duration) string {
	if store.Dialect(d) == store.SQLite {
		return fmt.Sprintf("%s + %d", d.now(), by.Microseconds())
	}
	return fmt.Sprintf("%s + interval '%d microseconds'", d.now(), by.Microseconds())
}

// in is the condition that a column of texts or numbers is in the list which is its argument.
func (d dialect) in(column string) string {
	if store.Dialect(d) == store.SQLite {
		return column + " IN (SELECT value FROM json_each(?))"
	}
	return column + " = ANY(?)"
}

// inIDs is the same of a column of UUIDs. The list has texts.
func (d dialect) inIDs(column string) string {
	if store.Dialect(d) == store.SQLite {
		return d.in(column)
	}
	return column + " = ANY(?::text[]::uuid[])"
}

// list is a list as an argument.
func list[T any](d dialect, values []T) any {
	if store.Dialect(d) == store.Postgres {
		return values
	}
	if len(values) == 0 {
		return "[]"
	}
	encoded, err := json.Marshal(values)
	if err != nil { // numbers and texts can be encoded
		panic(err)
	}
	return string(encoded)
}

// rows is the list of texts which is its argument, as a table of that name with one column, value.
func (d dialect) rows(name string) string {
	if store.Dialect(d) == store.SQLite {
		return "json_each(?) AS " + name
	}
	return "unnest(?::text[]) AS " + name + " (value)"
}

// position is the position of a value in the list which is its argument.
func (d dialect) position(column string) string {
	if store.Dialect(d) == store.SQLite {
		return "(SELECT key FROM json_each(?) WHERE value = " + column + ")"
	}
	return "array_position(?::bigint[], " + column + ")"
}

// contains returns whether a column contains the argument.
func (d dialect) contains(column string) string {
	if store.Dialect(d) == store.SQLite {
		return "instr(" + column + ", ?) > 0"
	}
	return "strpos(" + column + ", ?::text) > 0"
}

// skipLocked skips rows that another transaction has locked. SQLite has one writer.
func (d dialect) skipLocked() string {
	if store.Dialect(d) == store.SQLite {
		return ""
	}
	return " FOR UPDATE SKIP LOCKED"
}

// forUpdate locks the rows. It waits for transactions that have locked them.
func (d dialect) forUpdate() string {
	if store.Dialect(d) == store.SQLite {
		return ""
	}
	return " FOR UPDATE"
}

// tuples is the argument, a JSON array of arrays, as a table of that name with one column, value.
func (d dialect) tuples(name string) string {
	if store.Dialect(d) == store.SQLite {
		return "json_each(?) AS " + name
	}
	return "json_array_elements(?::json) AS " + name + " (value)"
}

// moment reads a time of either database.
type moment struct{ time.Time }

// Scan implements [sql.Scanner].
func (m *moment) Scan(value any) error {
	switch value := value.(type) {
	case nil:
		m.Time = time.Time{}
	case time.Time:
		m.Time = value.UTC()
	case int64:
		m.Time = time.UnixMicro(value).UTC()
	default:
		return fmt.Errorf("a time is a %T", value)
	}
	return nil
}

// identifier is a UUID as a column, NULL if it is nil.
type identifier struct{ *uuid.UUID }

// Value implements [driver.Valuer].
func (i identifier) Value() (driver.Value, error) {
	if *i.UUID == uuid.Nil {
		return nil, nil
	}
	return i.String(), nil
}

// Scan implements [sql.Scanner].
func (i identifier) Scan(value any) error {
	var read uuid.NullUUID
	if err := read.Scan(value); err != nil {
		return err
	}
	*i.UUID = read.UUID
	return nil
}

func text(s string) string { return store.Text(s) }

// queryer is a database or a transaction.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// query calls scan with each row of what a statement returns.
func (t *Table) query(
	ctx context.Context, q queryer, statement string, args []any, scan func(rows *sql.Rows) error,
) error {
	rows, err := q.QueryContext(ctx, t.dialect.bind(statement), slices.Concat(t.db.Replan, args)...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// exec runs a statement and returns how many rows it changed.
func (t *Table) exec(ctx context.Context, q queryer, statement string, args ...any) (int, error) {
	return affected(q.ExecContext(ctx, t.dialect.bind(statement), slices.Concat(t.db.Replan, args)...))
}

func affected(result sql.Result, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	n, err := result.RowsAffected()
	return int(n), err
}

// write runs one statement in a transaction of its own.
func (t *Table) write(ctx context.Context, doing, statement string, args ...any) error {
	return t.db.Write(ctx, doing, func(ctx context.Context, tx *sql.Tx) error {
		_, err := t.exec(ctx, tx, statement, args...)
		return err
	})
}

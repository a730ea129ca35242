package migrations

import (
	"context"
	"database/sql"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store"
)

var (
	//go:embed postgres/dead_letters_up.sql
	postgresLettersUp string
	//go:embed postgres/dead_letters_down.sql
	postgresLettersDown string
	//go:embed sqlite/dead_letters_up.sql
	sqliteLettersUp string
	//go:embed sqlite/dead_letters_down.sql
	sqliteLettersDown string
)

// The versions of the schemas that [lettersMigration] is.
const (
	postgresLettersVersion = 9
	sqliteLettersVersion   = 6
)

// lettersName is what the version brings that [lettersMigration] is.
const lettersName = "dead_letters_in_one_table"

// lettersMigration moves the dead letters of the old tables into one table. It is written in Go, as the names of groups
// are computed in Go.
func lettersMigration(version int64, dialect store.Dialect, up, down string) *goose.Migration {
	return goose.NewGoMigration(version,
		&goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, up); err != nil {
				return err
			}
			m := mover{tx: tx, table: deadletter.NewTable(store.SQL{Dialect: dialect}), dialect: dialect}
			for _, step := range []func(context.Context) error{m.moveWaiting, m.moveArchived, m.dropOld} {
				if err := step(ctx); err != nil {
					return err
				}
			}
			return nil
		}},
		&goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, down)
			return err
		}})
}

// movedAtOnce is how many letters are moved at once.
const movedAtOnce = 100

// mover moves letters out of the old tables.
type mover struct {
	tx      *sql.Tx
	table   *deadletter.Table
	dialect store.Dialect
}

// moveWaiting moves the letters that a worker without a broker has kept in a table of its own.
func (m mover) moveWaiting(ctx context.Context) error {
	first, last := "first_failed_at", "last_failed_at"
	if m.dialect == store.SQLite {
		first, last = "first_failed", "last_failed"
	}
	return m.move(ctx, "SELECT id, body, headers, source, reason, handler, attempts, "+first+", "+last+" FROM old_dead_letters",
		func(rows *sql.Rows, id *int64) (deadletter.Letter, error) {
			var l deadletter.Letter
			var headers string
			var first, last any
			err := rows.Scan(id, &l.Body, &headers, &l.Source, &l.Reason, &l.Handler, &l.Attempts, &first, &last)
			if err != nil {
				return l, err
			}
			l.FirstFailed, l.LastFailed = timeOf(first), timeOf(last)
			decoder := json.NewDecoder(strings.NewReader(headers))
			decoder.UseNumber() // headers keep every digit
			if err := decoder.Decode(&l.Headers); err != nil {
				return l, fmt.Errorf("decode the headers of letter %d: %w", *id, err)
			}
			l = deadletter.Complete(l)
			l.ID, l.State = fmt.Sprint(*id), deadletter.Waiting
			return l, nil
		})
}

// moveArchived moves the letters of the archive, but for those that were restored.
func (m mover) moveArchived(ctx context.Context) error {
	return m.move(ctx, "SELECT id, letter, disposition, archived_by, archived_at, reason, restored_at IS NOT NULL FROM old_archived_letters",
		func(rows *sql.Rows, id *int64) (deadletter.Letter, error) {
			var encoded []byte
			var disposition string
			var decided deadletter.Decision
			var at any
			var restored bool
			if err := rows.Scan(id, &encoded, &disposition, &decided.By, &at, &decided.Reason, &restored); err != nil || restored {
				return deadletter.Letter{}, err
			}
			l, err := deadletter.Decode(encoded)
			if err != nil {
				return l, fmt.Errorf("archived letter %d: %w", *id, err)
			}
			decided.At = timeOf(at)
			l.State, l.Decided = deadletter.State(disposition), decided
			if disposition == "imported" { // it was on its way into the queue
				l.State = deadletter.Waiting
			}
			return l, nil
		})
}

// move moves what a statement selects, in the order of its ids. A letter without a state is left out.
func (m mover) move(ctx context.Context, statement string, scan func(rows *sql.Rows, id *int64) (deadletter.Letter, error)) error {
	for after := int64(0); ; {
		rows, err := m.tx.QueryContext(ctx, fmt.Sprintf("%s WHERE id > %d ORDER BY id LIMIT %d", statement, after, movedAtOnce))
		if err != nil {
			return err
		}
		var letters []deadletter.Letter
		read := 0
		for ; rows.Next(); read++ {
			l, err := scan(rows, &after)
			if err != nil {
				return errors.Join(err, rows.Close())
			}
			if l.State != "" {
				letters = append(letters, l)
			}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
		if err := m.table.Adopt(ctx, m.tx, letters); err != nil {
			return err
		}
		if read < movedAtOnce {
			return nil
		}
	}
}

func (m mover) dropOld(ctx context.Context) error {
	for _, table := range []string{"old_dead_letters", "old_archived_letters"} {
		if _, err := m.tx.ExecContext(ctx, "DROP TABLE "+table); err != nil {
			return err
		}
	}
	return nil
}

// timeOf reads a time of either database.
func timeOf(value any) time.Time {
	switch value := value.(type) {
	case time.Time:
		return value.UTC()
	case int64:
		return time.UnixMicro(value).UTC()
	default:
		return time.Time{}
	}
}

// Package audit is the record of what people do by the console and the command line: who, when, from where, to what, how many
// and why. The table worker_audit is append-only. Nothing of a patient is in it.
//
// What changes letters or events is recorded in the same transaction, see [Statement]. What only reads is recorded before, with
// [Log.Record]: if that fails, nothing is shown.
package audit

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/store"
)

// Action is what was done.
type Action string

// Actions on events and dead letters.
const (
	Reveal  Action = "reveal"
	Try     Action = "try"
	Replay  Action = "replay"
	Edit    Action = "edit"
	Archive Action = "archive"
	Discard Action = "discard"
	Restore Action = "restore"
	Purge   Action = "purge"
	Export  Action = "export"
	Import  Action = "import"
	Append  Action = "append"
)

// Actions are all actions.
func Actions() []Action {
	return []Action{Reveal, Try, Replay, Edit, Archive, Discard, Restore, Purge, Export, Import, Append}
}

// Actor is who does something.
type Actor struct {
	// By is the name of the person, and Source by what and from where it is done, as "console, 10.0.0.7".
	By, Source string
	// Reason may be "".
	Reason string
}

// Subject is what an action is about: names and values of conditions and ids. Values may be texts or lists of texts.
type Subject map[string]any

// maxValues is the limit of the values of a list that are recorded.
const maxValues = 100

// With adds a value unless it is "".
func (s Subject) With(name, value string) Subject {
	if value != "" {
		s[name] = store.Text(value)
	}
	return s
}

// WithID adds an id unless it is nil.
func (s Subject) WithID(name string, id uuid.UUID) Subject {
	if id != uuid.Nil {
		s[name] = id.String()
	}
	return s
}

// WithTime adds a time unless it is zero.
func (s Subject) WithTime(name string, at time.Time) Subject {
	if !at.IsZero() {
		s[name] = at.UTC().Format(time.RFC3339Nano)
	}
	return s
}

// WithList adds a list unless it is empty. Of a long list it adds the first values, and how many others there are.
func (s Subject) WithList(name string, values []string) Subject {
	if len(values) == 0 {
		return s
	}
	kept := make([]string, 0, min(len(values), maxValues))
	for _, value := range values[:min(len(values), maxValues)] {
		kept = append(kept, store.Text(value))
	}
	s[name] = kept
	if more := len(values) - len(kept); more > 0 {
		s["more_"+name] = more
	}
	return s
}

// String returns the values by name, as one line.
func (s Subject) String() string {
	parts := make([]string, 0, len(s))
	for _, name := range slices.Sorted(maps.Keys(s)) {
		parts = append(parts, fmt.Sprintf("%s %v", strings.ReplaceAll(name, "_", " "), s[name]))
	}
	return strings.Join(parts, ", ")
}

// Entry is what is recorded of an action.
type Entry struct {
	Actor

	ID      int64
	At      time.Time // of the database's clock
	Action  Action
	Subject Subject
	// Count is the number of letters or events, 0 if it was not known.
	Count int
}

// Did is the entry of an action.
func (a Actor) Did(what Action, subject Subject, count int) Entry {
	return Entry{Actor: a, Action: what, Subject: subject, Count: count}
}

// Statement returns the statement that records an action, with its arguments, for the transaction of what is done. ID and At
// are not heeded.
func Statement(d store.Dialect, e Entry) (statement string, args []any) {
	subject := []byte("{}")
	if len(e.Subject) > 0 {
		var err error
		if subject, err = json.Marshal(e.Subject); err != nil { // texts and numbers can be encoded
			panic(err)
		}
	}
	statement = "INSERT INTO worker_audit (action, done_by, source, subject, count, reason) VALUES ($1, $2, $3, $4::text::jsonb, nullif($5::int, 0), $6)"
	if d == store.SQLite {
		statement = "INSERT INTO worker_audit (action, done_by, source, subject, count, reason) VALUES (?, ?, ?, ?, nullif(?, 0), ?)"
	}
	return statement, []any{string(e.Action), store.Text(e.By), store.Text(e.Source), string(subject), e.Count, store.Text(e.Reason)}
}

// Write records an action in a transaction.
func Write(ctx context.Context, tx *sql.Tx, d store.Dialect, e Entry) error {
	statement, args := Statement(d, e)
	if _, err := tx.ExecContext(ctx, statement, args...); err != nil {
		return fmt.Errorf("record in worker_audit: %w", err)
	}
	return nil
}

// Log is the table of what was done. It is safe for concurrent use. Errors wrap those of package store.
type Log struct{ db store.SQL }

// NewLog returns the log in a store.
func NewLog(db store.SQL) *Log { return &Log{db} }

// Record records an action in a transaction of its own.
func (l *Log) Record(ctx context.Context, e Entry) error {
	return l.db.Write(ctx, fmt.Sprintf("record a %s", e.Action), func(ctx context.Context, tx *sql.Tx) error {
		return Write(ctx, tx, l.db.Dialect, e)
	})
}

// Filter selects entries: those that meet each condition that is set.
type Filter struct {
	By string
	// Actions are any of these.
	Actions []Action
	// Since and Until limit the time: Since <= At < Until.
	Since, Until time.Time
	// Before is the ID of an entry; older ones are selected.
	Before int64
}

// List returns up to limit entries, the newest first.
func (l *Log) List(ctx context.Context, f Filter, limit int) ([]Entry, error) {
	var args []any
	where := "1 = 1"
	add := func(set bool, condition string, value any) {
		if !set {
			return
		}
		args = append(args, value)
		where += " AND " + condition
		if l.db.Dialect == store.Postgres {
			where += fmt.Sprintf("$%d", len(args))
		} else {
			where += "?"
		}
	}
	add(f.By != "", "done_by = ", f.By)
	if len(f.Actions) > 0 {
		names := make([]string, len(f.Actions))
		for i, action := range f.Actions {
			names[i] = "'" + strings.ReplaceAll(string(action), "'", "''") + "'"
		}
		where += " AND action IN (" + strings.Join(names, ", ") + ")"
	}
	add(!f.Since.IsZero(), "at >= ", l.at(f.Since))
	add(!f.Until.IsZero(), "at < ", l.at(f.Until))
	add(f.Before != 0, "id < ", f.Before)
	statement := fmt.Sprintf("SELECT id, at, action, done_by, source, subject, coalesce(count, 0), reason FROM worker_audit WHERE %s "+
		"ORDER BY id DESC LIMIT %d", where, limit)
	rows, err := l.db.DB.QueryContext(ctx, statement, args...)
	if err != nil {
		return nil, l.db.Fault(ctx, "read worker_audit", err)
	}
	defer rows.Close()
	var found []Entry
	for rows.Next() {
		var e Entry
		var at any
		var subject string
		err := rows.Scan(&e.ID, &at, &e.Action, &e.By, &e.Source, &subject, &e.Count, &e.Reason)
		if err == nil {
			err = json.Unmarshal([]byte(subject), &e.Subject)
		}
		if err != nil {
			return nil, l.db.Fault(ctx, "read worker_audit", err)
		}
		switch at := at.(type) {
		case time.Time:
			e.At = at.UTC()
		case int64:
			e.At = time.UnixMicro(at).UTC()
		default:
			return nil, errors.New("read worker_audit: at is no time")
		}
		found = append(found, e)
	}
	return found, l.db.Fault(ctx, "read worker_audit", rows.Err())
}

func (l *Log) at(t time.Time) any {
	if l.db.Dialect == store.SQLite {
		return t.UnixMicro()
	}
	return t
}

package migrations

import (
	"context"
	"database/sql"
	"encoding/json"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/storetest"
	"github.com/healz/worker/internal/test/testservers"
)

func TestMain(m *testing.M) { testservers.Main(m) }

// older is a database that has the version before the one table of dead letters.
type older struct {
	db       *sql.DB
	dialect  store.Dialect
	migrator *Migrator
	version  int64 // of the one table
}

func onOlder(t *testing.T, test func(t *testing.T, o older)) {
	t.Helper()
	for _, dialect := range []store.Dialect{store.SQLite, store.Postgres} {
		t.Run(string(dialect), func(t *testing.T) {
			t.Parallel()
			test(t, openOlder(t, dialect))
		})
	}
}

func openOlder(t *testing.T, dialect store.Dialect) older {
	t.Helper()
	driver, name, make, version := "sqlite", filepath.Join(t.TempDir(), "healz.db"), SQLite, int64(sqliteLettersVersion)
	if dialect == store.Postgres {
		driver, name, make, version = "pgx", testservers.Postgres(t), Postgres, postgresLettersVersion
	}
	db, err := sql.Open(driver, name)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	migrator, err := make(db)
	require.NoError(t, err)
	_, err = migrator.provider.UpTo(t.Context(), version-1)
	require.NoError(t, err)
	return older{db, dialect, migrator, version}
}

// down takes back the one table, and what came after it.
func (o older) down(t *testing.T) error {
	t.Helper()
	_, err := o.migrator.provider.DownTo(t.Context(), o.version-1)
	return err
}

func (o older) exec(t *testing.T, statement string, args ...any) {
	t.Helper()
	for i := range args {
		if o.dialect == store.Postgres {
			statement = strings.Replace(statement, "?", "$"+strconv.Itoa(i+1), 1)
		}
		if at, isTime := args[i].(time.Time); isTime && o.dialect == store.SQLite {
			args[i] = at.UnixMicro()
		}
	}
	_, err := o.db.ExecContext(t.Context(), statement, args...)
	require.NoError(t, err, statement)
}

var failedAt = time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC) //nolint:gochecknoglobals // a constant

// shelve puts a letter into the table that a worker without a broker had.
func (o older) shelve(t *testing.T, body []byte, headers, handler string, requested bool) {
	t.Helper()
	columns, marked, unmarked := "first_failed, last_failed, replay_requested", any(1), any(0)
	if o.dialect == store.Postgres {
		columns, marked, unmarked = "first_failed_at, last_failed_at, replay_requested_at", failedAt, nil
	}
	if !requested {
		marked = unmarked
	}
	o.exec(t, "INSERT INTO dead_letters (body, headers, source, reason, handler, attempts, "+columns+", replay_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		body, headers, "PatientRegistered", "no address 7", handler, 3, failedAt, failedAt.Add(time.Minute), marked, "01JZ0000000000000000000000")
}

// archive puts a letter into the archive.
func (o older) archive(t *testing.T, l deadletter.Letter, disposition string, restored bool) {
	t.Helper()
	line, err := l.Encode()
	require.NoError(t, err)
	var at any
	if restored {
		at = failedAt
	}
	o.exec(t, "INSERT INTO archived_letters (once, letter, disposition, archived_by, archived_at, reason, restored_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
		uuid.NewString(), line, disposition, "ana", failedAt.Add(time.Hour), "why "+disposition, at)
}

func (o older) table() *deadletter.Table {
	return deadletter.NewTable(store.SQL{
		Dialect: o.dialect, DB: o.db, Fault: func(_ context.Context, _ string, err error) error { return err },
		Write: func(ctx context.Context, _ string, work func(ctx context.Context, tx *sql.Tx) error) error {
			tx, err := o.db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer tx.Rollback() // after a commit it does nothing
			if err := work(ctx, tx); err != nil {
				return err
			}
			return tx.Commit()
		},
	})
}

func (o older) letters(t *testing.T) []deadletter.Letter {
	t.Helper()
	var letters []deadletter.Letter
	for l, err := range o.table().Read(t.Context(), deadletter.Filter{States: deadletter.AllStates()}) {
		require.NoError(t, err)
		letters = append(letters, l)
	}
	return letters
}

func (o older) has(t *testing.T, table string) bool {
	t.Helper()
	statement := "SELECT count(*) FROM pg_class WHERE relname LIKE '%" + table + "%'"
	if o.dialect == store.SQLite {
		statement = "SELECT count(*) FROM sqlite_master WHERE name LIKE '%" + table + "%'"
	}
	var n int
	require.NoError(t, o.db.QueryRowContext(t.Context(), statement).Scan(&n))
	return n > 0
}

func bodyOf(t *testing.T) []byte {
	t.Helper()
	body, err := storetest.NewStream().Next().MarshalJSON()
	require.NoError(t, err)
	return body
}

func TestLettersOfTheShelfMove(t *testing.T) {
	t.Parallel()
	onOlder(t, func(t *testing.T, o older) {
		t.Helper()
		body := bodyOf(t)
		history := `[{\"kind\":\"failed\",\"at\":\"2026-01-01T00:00:00Z\",\"handler\":\"h\",\"reason\":\"before\"}]`
		o.shelve(t, body, `{"k":"v","n":9007199254740993,"nul":"\u0000","replay_count":"2","replay_id":"r","replay_of":"3","dead_letter_history":"`+history+`"}`, "h", true)
		o.shelve(t, []byte("\xff\x00"), "null", "", false)
		o.shelve(t, []byte{}, "{}", "", false)
		o.shelve(t, body, "{}", "h", false)
		o.shelve(t, body, "{}", "other", false)

		require.NoError(t, o.migrator.Up(t.Context()))

		letters := o.letters(t)
		require.Len(t, letters, 5)
		for i, l := range letters {
			require.Equal(t, deadletter.Waiting, l.State, "the mark of a replay is gone")
			require.Equal(t, failedAt, l.FirstFailed)
			require.Equal(t, failedAt.Add(time.Minute), l.LastFailed)
			require.Equal(t, 3, l.Attempts)
			require.Equal(t, "PatientRegistered", l.Source)
			if i != 3 { // the same event, handler and body as the first
				require.Equal(t, strconv.Itoa(i+1), l.ID)
			}
		}
		first := letters[0]
		require.Equal(t, body, first.Body)
		require.Equal(t, map[string]any{"k": "v", "n": json.Number("9007199254740993"), "nul": "\x00"}, first.Headers)
		require.Equal(t, 2, first.Replays)
		require.Equal(t, "r", first.ReplayID)
		require.Len(t, first.History, 1)
		require.Equal(t, "before", first.History[0].Reason)
		group, _ := deadletter.Fingerprint("h", "PatientRegistered", "no address 7")
		require.Equal(t, group, first.Group)
		require.Equal(t, []byte("\xff\x00"), letters[1].Body)
		require.Equal(t, []byte{}, letters[2].Body)
		require.Equal(t, body, letters[3].Body)
		require.Equal(t, "other", letters[4].Handler)
		require.False(t, o.has(t, "old_dead"))
		require.False(t, o.has(t, "archived_letters"))
	})
}

func TestLettersOfTheArchiveMove(t *testing.T) {
	t.Parallel()
	onOlder(t, func(t *testing.T, o older) {
		t.Helper()
		shelf := func(id string) deadletter.Letter {
			return deadletter.Complete(deadletter.Letter{
				ID: id, Body: bodyOf(t), Source: "s", Headers: map[string]any{"k": "v"},
				Failure: deadletter.Failure{Handler: "h", Reason: "r", Attempts: 2, FirstFailed: failedAt, LastFailed: failedAt},
			})
		}
		queued := shelf("01JZ0000000000000000000000")
		queued.Headers, queued.Raw = nil, json.RawMessage(`{"message_id":"m","headers":["k","\u0000","n",{"long":9007199254740993}]}`)
		o.shelve(t, bodyOf(t), "{}", "h", false) // has the id 1
		o.archive(t, shelf("1"), "archived", false)
		o.archive(t, queued, "archived", false)
		o.archive(t, shelf("2"), "discarded", false)
		o.archive(t, shelf("3"), "edited", false)
		o.archive(t, shelf("4"), "imported", false)
		o.archive(t, shelf("5"), "imported", true)
		o.archive(t, shelf("6"), "archived", true)
		twice := shelf("7")
		o.archive(t, twice, "archived", false)
		o.archive(t, twice, "discarded", false)
		noTimes := shelf("8")
		noTimes.FirstFailed, noTimes.LastFailed, noTimes.Body = time.Time{}, time.Time{}, nil
		o.archive(t, noTimes, "archived", false)

		require.NoError(t, o.migrator.Up(t.Context()))

		found := map[deadletter.State][]string{}
		for _, l := range o.letters(t) {
			id := l.ID
			if len(id) == len(queued.ID) && id != queued.ID {
				id = "new"
			}
			found[l.State] = append(found[l.State], id)
			if l.ID != "1" {
				require.Equal(t, "ana", l.Decided.By)
				require.Equal(t, failedAt.Add(time.Hour), l.Decided.At)
			}
			require.False(t, l.LastFailed.IsZero())
		}
		require.ElementsMatch(t, []string{"1", "4"}, found[deadletter.Waiting])
		require.ElementsMatch(t, []string{"new", queued.ID, "7", "8"}, found[deadletter.Archived])
		require.ElementsMatch(t, []string{"2", "new"}, found[deadletter.Discarded])
		require.Equal(t, []string{"3"}, found[deadletter.Superseded])
		l, err := o.table().Find(t.Context(), queued.ID)
		require.NoError(t, err)
		require.JSONEq(t, string(queued.Raw), string(l.Raw))
		require.Equal(t, queued.Body, l.Body)
		require.Equal(t, "why archived", l.Decided.Reason)
		n, err := o.table().Restore(t.Context(), deadletter.Filter{}, audit.Actor{By: "ben"})
		require.NoError(t, err)
		require.Equal(t, 4, n)

		// The message that lies in the broker's queue still is the same.
		arrival := deadletter.Arrival{MessageID: "m", Letter: l}
		require.NoError(t, o.table().Ingest(t.Context(), []deadletter.Arrival{arrival}))
		require.Len(t, o.letters(t), 9)
	})
}

func TestManyLettersMove(t *testing.T) {
	t.Parallel()
	onOlder(t, func(t *testing.T, o older) {
		t.Helper()
		const n = 2*movedAtOnce + 1
		for range n {
			o.shelve(t, []byte("x"), "{}", "h", false)
		}
		require.NoError(t, o.migrator.Up(t.Context()))
		require.Len(t, o.letters(t), n)
	})
}

func TestDownOfTheOneTable(t *testing.T) {
	t.Parallel()
	onOlder(t, func(t *testing.T, o older) {
		t.Helper()
		ctx := t.Context()
		require.NoError(t, o.migrator.Up(ctx))
		require.NoError(t, o.table().Ingest(ctx, []deadletter.Arrival{{Letter: deadletter.Complete(deadletter.Letter{Body: []byte("x")})}}))
		require.Error(t, o.down(t))
		require.Len(t, o.letters(t), 1)
		o.exec(t, "DELETE FROM dead_letters")

		require.NoError(t, o.down(t))
		o.shelve(t, bodyOf(t), "{}", "h", true)
		o.archive(t, deadletter.Complete(deadletter.Letter{ID: "a", Body: bodyOf(t)}), "archived", false)
		require.NoError(t, o.migrator.Up(ctx))
		require.Len(t, o.letters(t), 2)
		o.exec(t, "DELETE FROM dead_letters")
		for range o.migrator.Latest() {
			require.NoError(t, o.migrator.Down(ctx))
		}
		require.NoError(t, o.migrator.Up(ctx))
	})
}

// Who had rights on the old table has them on the new one, and on the old ones when it is taken back.
func TestGrantsAreCarriedOver(t *testing.T) {
	t.Parallel()
	o := openOlder(t, store.Postgres)
	role := "Reader " + uuid.NewString()
	quoted := `"` + role + `"`
	o.exec(t, "CREATE ROLE "+quoted)
	t.Cleanup(func() {
		_, err := o.db.ExecContext(context.WithoutCancel(t.Context()), "DROP OWNED BY "+quoted+"; DROP ROLE "+quoted)
		require.NoError(t, err)
	})
	o.exec(t, "GRANT SELECT, INSERT, UPDATE, DELETE ON dead_letters TO "+quoted)
	o.exec(t, "GRANT SELECT, INSERT, UPDATE ON relay_position TO "+quoted)
	rights := func(table string) (list string) {
		require.NoError(t, o.db.QueryRowContext(t.Context(), `SELECT coalesce(string_agg(privilege_type, ' ' ORDER BY privilege_type), '')
			FROM information_schema.role_table_grants WHERE grantee = $1 AND table_name = $2`, role, table).Scan(&list))
		return list
	}
	const all = "DELETE INSERT SELECT UPDATE"
	require.Equal(t, all, rights("dead_letters"))
	require.NoError(t, o.migrator.Up(t.Context()))
	require.Equal(t, all, rights("dead_letters"))
	require.Equal(t, "INSERT SELECT UPDATE", rights("leases"), "of whoever relays")
	require.NoError(t, o.down(t))
	require.Equal(t, all, rights("dead_letters"))
	require.Equal(t, all, rights("archived_letters"))
}

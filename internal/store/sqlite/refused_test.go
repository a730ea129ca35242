package sqlite_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/sqlite"
	"github.com/healz/worker/internal/store/storetest"
)

// What the database refuses is the event's failure, not an outage: the error says by what, and quotes no value.
func TestDatabaseRefusesAnEvent(t *testing.T) {
	t.Parallel()
	trigger := func(statement string) string {
		return `CREATE TRIGGER refuse BEFORE INSERT ON events WHEN NEW.event_type = 'Bad' BEGIN ` + statement + `; END`
	}
	for name, test := range map[string]struct{ prepare, want string }{
		"unique index": {
			`CREATE UNIQUE INDEX one_bad ON events (event_type) WHERE event_type = 'Bad';
			INSERT INTO events (event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, correlation_id, event_data)
			SELECT id, 'Bad', 'Patient', id, 1, id, id, '{}' FROM (SELECT '11111111-1111-1111-1111-111111111111' AS id)`,
			"UNIQUE constraint failed: events.event_type",
		},
		"trigger that aborts":     {trigger(`SELECT RAISE(ABORT, 'no Secretname')`), "a trigger"},
		"trigger that fails":      {trigger(`SELECT RAISE(FAIL, 'no Secretname')`), "a trigger"},
		"trigger that rolls back": {trigger(`SELECT RAISE(ROLLBACK, 'no Secretname')`), "a trigger"},
		"trigger that leaves out": {trigger(`SELECT RAISE(IGNORE)`), "a trigger has left it out"},
		"check of another table":  {`CREATE TABLE others (name TEXT CONSTRAINT short CHECK (length(name) < 3)); ` + trigger(`INSERT INTO others VALUES (NEW.event_data)`), "CHECK constraint failed: short"},
		"not null of another one": {`CREATE TABLE others (name TEXT NOT NULL); ` + trigger(`INSERT INTO others VALUES (NULL)`), "NOT NULL constraint failed: others.name"},
		"datatype of another one": {`CREATE TABLE others (number INTEGER) STRICT; ` + trigger(`INSERT INTO others VALUES (NEW.event_data)`), "cannot store TEXT value in INTEGER column others.number"},
		"unique index of another": {`CREATE TABLE others (name TEXT UNIQUE); INSERT INTO others VALUES ('a'); ` + trigger(`INSERT INTO others VALUES ('a')`), "UNIQUE constraint failed: others.name"},
		"primary key of another":  {`CREATE TABLE others (number INTEGER PRIMARY KEY); INSERT INTO others VALUES (1); ` + trigger(`INSERT INTO others VALUES (1)`), "UNIQUE constraint failed: others.number"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := migrated(t)
			_, err := connect(t, path).ExecContext(t.Context(), test.prepare)
			require.NoError(t, err)
			s := open(t, path)
			bad := func() events.Event {
				e := storetest.NewStream().Next()
				e.Type, e.Data = "Bad", json.RawMessage(`{"name":"Secretname"}`)
				return e
			}
			requireRefused := func(err error) {
				t.Helper()
				var refused *store.RefusedError
				require.ErrorAs(t, err, &refused)
				require.NotErrorIs(t, err, store.ErrUnavailable)
				require.ErrorContains(t, err, test.want)
				require.NotContains(t, err.Error(), "Secretname")
			}
			cause := storetest.NewStream().Next()

			requireRefused(s.Append(t.Context(), bad()))
			batch := append(storetest.NewStream().Take(2), bad())
			requireRefused(s.AppendMany(t.Context(), batch))
			version, err := s.Version(t.Context(), batch[0].AggregateType, batch[0].AggregateID)
			require.NoError(t, err)
			require.Zero(t, version, "all events or none")
			requireRefused(s.Record(t.Context(), "handler", cause, []events.Event{bad()}))
			ctx := s.Attempt(t.Context())
			require.NoError(t, sqlite.InTx(ctx, func(context.Context, *sql.Tx) error { return nil }))
			requireRefused(s.Record(ctx, "handler", cause, []events.Event{bad()}))
			if name != "trigger that rolls back" { // the dry run is lost with its transaction
				require.NoError(t, s.Try(t.Context(), func(ctx context.Context, run *store.DryRun) error {
					requireRefused(run.Savepoint(ctx, func(ctx context.Context) error {
						return run.Record(ctx, "handler", cause, []events.Event{bad()})
					}))
					return nil
				}))
			}
			require.NoError(t, s.Record(t.Context(), "handler", cause, storetest.NewStream().Take(2)), "nothing was recorded before")
		})
	}
}

// A record that a trigger leaves out is refused with its follow-ups: the event would be handled again.
func TestTriggerLeavesOutTheRecord(t *testing.T) {
	t.Parallel()
	path := migrated(t)
	_, err := connect(t, path).ExecContext(t.Context(),
		`CREATE TRIGGER leave_out BEFORE INSERT ON handled BEGIN SELECT RAISE(IGNORE); END`)
	require.NoError(t, err)
	s, cause, followUp := open(t, path), storetest.NewStream().Next(), storetest.NewStream().Next()

	err = s.Record(t.Context(), "handler", cause, []events.Event{followUp})

	var refused *store.RefusedError
	require.ErrorAs(t, err, &refused)
	require.ErrorContains(t, err, "a trigger has left it out")
	_, err = s.ByID(t.Context(), followUp.ID)
	require.ErrorIs(t, err, store.ErrNoEvent)
}

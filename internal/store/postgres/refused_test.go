package postgres_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
)

// What the database refuses is the event's failure, not an outage: the error says by what, and quotes no value. The
// events that share the statement are written.
func TestDatabaseRefusesAnEvent(t *testing.T) {
	t.Parallel()
	trigger := func(kind, statement string) string {
		return `CREATE FUNCTION refuse_bad() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF NEW.event_type = 'Bad' THEN ` + statement + `; END IF; RETURN NEW;
			END $$;
			CREATE ` + kind + ` FOR EACH ROW EXECUTE FUNCTION refuse_bad()`
	}
	const (
		before   = "TRIGGER refuse BEFORE INSERT ON events"
		deferred = "CONSTRAINT TRIGGER refuse AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED"
		raise    = "RAISE EXCEPTION 'no %', NEW.event_data"
		function = ", PL/pgSQL function refuse_bad()"
		types    = `CREATE TABLE types (name text PRIMARY KEY); INSERT INTO types VALUES ('PatientRegistered');
			ALTER TABLE events ADD CONSTRAINT known_type FOREIGN KEY (event_type) REFERENCES types `
	)
	for name, test := range map[string]struct{ prepare, want string }{
		"check": {
			`ALTER TABLE events ADD CONSTRAINT never_bad CHECK (event_type <> 'Bad')`,
			`SQLSTATE 23514, constraint "never_bad" of table "events"`,
		},
		"not null": {
			`ALTER TABLE events ADD COLUMN good bool NOT NULL GENERATED ALWAYS AS (nullif(event_type <> 'Bad', false)) STORED`,
			`SQLSTATE 23502, column "good" of table "events"`,
		},
		"foreign key":          {types, `SQLSTATE 23503, constraint "known_type" of table "events"`},
		"deferred foreign key": {types + `DEFERRABLE INITIALLY DEFERRED`, `SQLSTATE 23503, constraint "known_type" of table "events"`},
		"another unique index": {
			`CREATE UNIQUE INDEX one_bad ON events ((1)) WHERE event_type = 'Bad';
			INSERT INTO events (event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, correlation_id, event_data)
			SELECT 'Bad', 'Patient', id, 1, id, id, '{}' FROM gen_random_uuid() AS id`,
			`SQLSTATE 23505, constraint "one_bad" of table "events"`,
		},
		"another index, too small": {
			`CREATE INDEX by_name ON events ((event_data ->> 'name')) WHERE event_type = 'Bad'`, `SQLSTATE 54000`,
		},
		"trigger":                   {trigger(before, raise), `SQLSTATE P0001` + function},
		"deferred trigger":          {trigger(deferred, raise), `SQLSTATE P0001` + function},
		"trigger with its own code": {trigger(before, raise+` USING ERRCODE = 'HZ123'`), `SQLSTATE HZ123` + function},
		"trigger like a constraint": {trigger(before, raise+` USING ERRCODE = 'check_violation'`), `SQLSTATE 23514` + function},
		"trigger that casts":        {trigger(before, `PERFORM (NEW.event_data ->> 'name')::int`), `SQLSTATE 22P02` + function},
		"trigger that divides":      {trigger(before, `PERFORM 1 / 0`), `SQLSTATE 22012` + function},
		"trigger that leaves out":   {trigger(before, `RETURN NULL`), `a trigger has left it out`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := migrated(t)
			_, err := connect(t, address).Exec(t.Context(), test.prepare)
			require.NoError(t, err)
			s := open(t, address)
			var random strings.Builder // more than an entry of an index takes, and not to be compressed
			for range 200 {
				random.WriteString(rand.Text())
			}
			data, err := json.Marshal(map[string]string{"name": "Secretname " + random.String()})
			require.NoError(t, err)
			bad := func() events.Event {
				e := storetest.NewStream().Next()
				e.Type, e.Data = "Bad", data
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
			require.NoError(t, postgres.InTx(ctx, func(context.Context, pgx.Tx) error { return nil }))
			requireRefused(s.Record(ctx, "handler", cause, []events.Event{bad()}))
			require.NoError(t, s.Try(t.Context(), func(ctx context.Context, run *store.DryRun) error {
				requireRefused(run.Savepoint(ctx, func(ctx context.Context) error {
					return run.Record(ctx, "handler", cause, []events.Event{bad()})
				}))
				return nil
			}))

			const good = 50
			errs := make([]error, good+1)
			var done sync.WaitGroup
			for i := range errs {
				done.Go(func() {
					followUp := storetest.NewStream().Next()
					if i == good/2 {
						followUp = bad()
					}
					errs[i] = s.Record(t.Context(), "handler", storetest.NewStream().Next(), []events.Event{followUp})
				})
			}
			done.Wait()
			requireRefused(errs[good/2])
			errs[good/2] = nil
			require.NoError(t, errors.Join(errs...))
			require.NoError(t, s.Record(t.Context(), "handler", cause, nil), "nothing was recorded before")
		})
	}
}

// A record that a trigger leaves out is refused with its follow-ups: the event would be handled again.
func TestTriggerLeavesOutTheRecord(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	_, err := connect(t, address).Exec(t.Context(), `
		CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
		CREATE TRIGGER leave_out BEFORE INSERT ON handled FOR EACH ROW EXECUTE FUNCTION leave_out()`)
	require.NoError(t, err)
	s, cause, followUp := open(t, address), storetest.NewStream().Next(), storetest.NewStream().Next()

	err = s.Record(t.Context(), "handler", cause, []events.Event{followUp})

	var refused *store.RefusedError
	require.ErrorAs(t, err, &refused)
	require.ErrorContains(t, err, "a trigger has left it out")
	_, err = s.ByID(t.Context(), followUp.ID)
	require.ErrorIs(t, err, store.ErrNoEvent)
}

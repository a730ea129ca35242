package cli

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
)

// asMended makes the worker a version with fixed handlers.
const asMended = "TEST_AS_MENDED"

type mendable struct {
	Mode string `json:"mode"`
}

type mended struct{}

func (mended) EventType() string { return "Mended" }

// registerMendable registers handlers that fail until they are fixed.
func registerMendable(reg *handlers.Registry) {
	isMended := os.Getenv(asMended) != ""
	handlers.On(reg, "Mendable", "mend", func(ctx context.Context, e events.Event, d mendable) ([]events.Event, error) {
		if !isMended || d.Mode == "hopeless" {
			return nil, handlers.Permanent(errors.New("there is no way to mend a " + d.Mode))
		}
		version, workshop := 0, events.DerivedID(e.AggregateID, "workshop")
		for f, err := range reg.Stream(ctx, "Workshop", workshop, 0) {
			if err != nil {
				return nil, err
			}
			version = f.AggregateVersion
		}
		if d.Mode == "third" && version != 2 {
			return nil, fmt.Errorf("the workshop is at version %d", version)
		}
		followUp, err := events.New(events.CausedBy(e), "Workshop", workshop, version+1, mended{})
		return []events.Event{followUp}, err
	})
	handlers.On(reg, "Mendable", "mail", func(_ context.Context, _ events.Event, d mendable) ([]events.Event, error) {
		if d.Mode == "mail" && isMended {
			fmt.Fprintln(os.Stderr, "mail: sent")
		}
		if d.Mode == "mail" && !isMended {
			return nil, handlers.Permanent(errors.New("the mail server is away"))
		}
		return nil, nil
	}, handlers.OutsideEffects)
	if !isMended {
		handlers.On(reg, "Mendable", "gone", func(_ context.Context, _ events.Event, d mendable) ([]events.Event, error) {
			if d.Mode == "gone" {
				return nil, handlers.Permanent(errors.New("to be removed"))
			}
			return nil, nil
		})
	}
}

// try runs dlq try with the fixed or the broken version, and returns the verdicts and the exit code.
func (p *program) try(args ...string) (map[string]string, int) {
	p.t.Helper()
	r := p.run("", append([]string{"dlq", "try", "--format", "json"}, args...)...)
	verdicts := map[string]string{}
	for _, line := range decodeLines[struct {
		letter

		Verdict string `json:"verdict"`
		Why     string `json:"verdict_reason"`
	}](p.t, r.out) {
		verdicts[line.Handler+" "+line.EventID] = strings.TrimSuffix(line.Verdict+": "+line.Why, ": ")
	}
	return verdicts, r.code
}

func TestTryTellsRightFromWrongAndTouchesNothing(t *testing.T) {
	t.Parallel()
	bothDefaults(t, func(p *program) {
		t := p.t
		w := p.start()
		tenant, aggregate := uuid.NewString(), uuid.NewString()
		var lines strings.Builder
		for _, mode := range []string{"first", "second", "third", "hopeless", "third", "mail", "gone"} {
			fmt.Fprintf(&lines, `{"event_type":"Mendable","aggregate_type":"Car","aggregate_id":%q,"tenant_id":%q,"event_data":{"mode":%q}}`+"\n",
				aggregate, tenant, mode)
		}
		sent := p.append(lines.String())
		letters := p.awaitLetters(len(sent) + 2)
		want := map[string]string{
			"mend " + sent[0].EventID: "would pass",
			"mend " + sent[1].EventID: "would pass",
			"mend " + sent[2].EventID: "would pass",
			"mend " + sent[3].EventID: "would fail: there is no way to mend a ‹mode›",
			"mend " + sent[4].EventID: "would fail: the workshop is at version 3",
			"mend " + sent[5].EventID: "would pass",
			"mend " + sent[6].EventID: "would pass",
			"mail " + sent[5].EventID: "cannot tell: the handler declares outside effects",
			"gone " + sent[6].EventID: `would fail: handler "gone" is not registered for Mendable: ` +
				"if it has another name now, replay the letter with --to NAME; if nobody is to handle it, discard it",
		}
		next := newProgram(t, append(p.env, asMended+"=1")...)
		untouched := func() []string { // the dry runs themselves are recorded
			return slices.DeleteFunc(p.everything(), func(row string) bool { return strings.Contains(row, "worker_audit") })
		}
		before := untouched()
		require.Contains(t, strings.Join(before, "\n"), sent[0].EventID)

		got, code := next.try()
		require.Equal(t, want, got)
		require.Equal(t, 1, code)
		_, code = next.try(sent[0].EventID, "--handler", "mend")
		require.Equal(t, 0, code)
		_, code = next.try("--handler", "mail")
		require.Equal(t, 3, code)
		r := next.run("", "dlq", "try", "--all-handlers", "--handler", "mend", sent[5].EventID)
		require.Equal(t, 3, r.code, "of the others one cannot tell")
		require.Contains(t, r.out, "mail: the handler declares outside effects")
		require.Contains(t, r.err, "would pass: 0, would fail: 0, cannot tell: 1")
		require.NotContains(t, r.err, "mail: sent")
		_, code = p.try("--reason", "no way to mend", "--limit", "2")
		require.Equal(t, 1, code, "it is not mended yet")
		require.Equal(t, exitNotFound, next.run("", "dlq", "try", uuid.NewString()).code)
		require.Equal(t, before, untouched())
		require.Equal(t, letters, p.letters())
		require.Len(t, decodeLines[any](t, p.run("", "audit", "list", "--action", "try", "-o", "json").out), 5)

		w.stop()
		next.start()
		require.Eventually(t, func() bool {
			p.run("", "dlq", "replay", "--all") // it stops at what fails again
			return len(p.causesOf(tenant, "Mended")) == 5
		}, patience, commandTick)
		require.Eventually(t, func() bool {
			var left []string
			for _, l := range p.letters() {
				if l.Handler == "mend" {
					left = append(left, l.EventID)
				}
			}
			slices.Sort(left)
			return slices.Equal(left, []string{sent[3].EventID, sent[4].EventID})
		}, patience, commandTick)
	})
}

// causesOf are the ids of a tenant's events that caused one of a type.
func (p *program) causesOf(tenant, eventType string) []string {
	p.t.Helper()
	var ids []string
	for _, e := range decodeLines[wire](p.t, p.must("", "events", "--tenant", tenant, "--format", "json")) {
		if e.EventType == eventType {
			ids = append(ids, e.CausationID)
		}
	}
	return ids
}

// setting is the value of an environment variable of the program's.
func (p *program) setting(name string) string {
	for _, variable := range p.env {
		if value, found := strings.CutPrefix(variable, name+"="); found {
			return value
		}
	}
	return ""
}

// everything is the content of the store and of the failed queue.
func (p *program) everything() []string {
	p.t.Helper()
	var all []string
	if url := p.setting("DATABASE_URL"); url != "" {
		all = dumpPostgres(p.t, url)
	} else {
		all = dumpSQLite(p.t, p.setting("WORKER_SQLITE_PATH"))
	}
	if url := p.setting("RABBITMQ_URL"); url != "" {
		all = append(all, dumpQueue(p.t, url)...)
	}
	return all
}

// dumpPostgres reads all tables but the leases, which the worker renews.
func dumpPostgres(t *testing.T, url string) []string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	rows, err := conn.Query(t.Context(), `SELECT relname FROM pg_class
		WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'leases' ORDER BY 1`)
	require.NoError(t, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	var dump []string
	for _, table := range tables {
		rows, err := conn.Query(t.Context(), "SELECT '"+table+" ' || t::text FROM "+table+" AS t ORDER BY 1")
		require.NoError(t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		dump = append(dump, lines...)
	}
	return dump
}

// dumpSQLite reads all tables but the leases, which the worker renews.
func dumpSQLite(t *testing.T, path string) []string {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?_busy_timeout=10000")
	require.NoError(t, err)
	defer db.Close()
	var dump []string
	for _, table := range selected(t, db, "SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'leases' ORDER BY 1") {
		columns := selected(t, db, "SELECT group_concat('quote(' || name || ')', '||'',''||') FROM pragma_table_info('"+table+"')")[0]
		for _, row := range selected(t, db, "SELECT "+columns+" FROM "+table+" ORDER BY 1") {
			dump = append(dump, table+" "+row)
		}
	}
	return dump
}

// selected are the values of a query's one column.
func selected(t *testing.T, db *sql.DB, query string) []string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query)
	require.NoError(t, err)
	defer rows.Close()
	var values []string
	for rows.Next() {
		var value string
		require.NoError(t, rows.Scan(&value))
		values = append(values, value)
	}
	require.NoError(t, rows.Err())
	return values
}

// dumpQueue reads the failed queue with a client that is independent of the worker.
func dumpQueue(t *testing.T, url string) []string {
	t.Helper()
	conn, err := amqp091.Dial(url)
	require.NoError(t, err)
	defer conn.Close()
	channel, err := conn.Channel()
	require.NoError(t, err)
	var dump []string
	for {
		d, found, err := channel.Get("healz.events.failed", false)
		require.NoError(t, err)
		if !found {
			break
		}
		d.Acknowledger, d.DeliveryTag, d.Redelivered, d.MessageCount = nil, 0, false, 0
		dump = append(dump, fmt.Sprintf("%#v", d))
	}
	return dump
}

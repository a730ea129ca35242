package deadletter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
	"github.com/healz/worker/internal/test/testservers"
)

// explain is the plan of a statement, whose placeholders are question marks.
func explain(t *testing.T, db store.SQL, statement string, args ...any) string {
	t.Helper()
	explain := "EXPLAIN QUERY PLAN "
	if db.Dialect == store.Postgres {
		explain = "EXPLAIN "
	}
	rows, err := db.DB.QueryContext(t.Context(), explain+statement, args...)
	require.NoError(t, err, statement)
	defer rows.Close()
	var plan strings.Builder
	for rows.Next() {
		var id, parent, unused int
		var line string
		if db.Dialect == store.Postgres {
			require.NoError(t, rows.Scan(&line))
		} else {
			require.NoError(t, rows.Scan(&id, &parent, &unused, &line))
		}
		fmt.Fprintln(&plan, line)
	}
	require.NoError(t, rows.Err())
	return plan.String()
}

// fillPlanned puts in so many letters of all states that indexes are worth while: few of them wait.
func fillPlanned(t *testing.T, b backend) {
	t.Helper()
	columns := `INSERT INTO dead_letters (id, identity, arrival, state, event_id, event_type, aggregate_type, aggregate_id, aggregate_version,
		tenant_id, correlation_id, handler, group_id, reason, attempts, first_failed_at, last_failed_at, replays, replay_id, source, body, bytes,
		released_at, sent_at, decided_at, unsettled) `
	if b.SQL().Dialect == store.Postgres {
		write(t, b, columns+`SELECT 'id' || g, 'i' || g, '', (ARRAY['waiting', 'handled', 'archived', 'replaying'])[1 + g % 4],
			md5('e' || g)::uuid, 'T', 'A', md5('a' || g / 10)::uuid, g % 10, md5('t' || g % 10)::uuid, md5('c' || g / 5)::uuid, 'h' || g % 20,
			'g' || g % 20, 'r', 1, now() - g * interval '1 second', now() - g * interval '1 second', 0, '', '', convert_to(repeat('x', 500), 'UTF8'), 500,
			CASE WHEN g % 4 = 3 THEN now() END, CASE WHEN g % 4 = 3 AND g % 40 > 3 THEN now() END, CASE WHEN g % 4 IN (1, 2) THEN now() END, CASE WHEN g % 50 = 0 THEN 'u' || g END
			FROM generate_series(1, 20000) AS g`)
		_, err := b.SQL().DB.ExecContext(t.Context(), "VACUUM ANALYZE dead_letters") // so that an index alone tells
		require.NoError(t, err)
		return
	}
	write(t, b, columns+`SELECT 'id' || g, 'i' || g, '', CASE g % 4 WHEN 0 THEN 'waiting' WHEN 1 THEN 'handled' WHEN 2 THEN 'archived' ELSE 'replaying' END,
		'e' || g, 'T', 'A', 'a' || g / 10, g % 10, 't' || g % 10, 'c' || g / 5, 'h' || g % 20, 'g' || g % 20, 'r', 1, g, g, 0, '', '', x'00', 1,
		CASE WHEN g % 4 = 3 THEN g END, CASE WHEN g % 4 = 3 AND g % 40 > 3 THEN g END, CASE WHEN g % 4 IN (1, 2) THEN g END, CASE WHEN g % 50 = 0 THEN 'u' || g END
		FROM (WITH RECURSIVE n(g) AS (SELECT 1 UNION ALL SELECT g + 1 FROM n WHERE g < 20000) SELECT g FROM n)`)
}

// The statements of a table cost no more than the rows that they are for, however many others there are.
func TestPlans(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		fillPlanned(t, b)
		id, all := uuid.New(), deadletter.AllStates()
		filters := map[string]deadletter.Filter{
			"waiting":                {},
			"group":                  {Group: "g4"},
			"handler":                {Handler: "h4"},
			"tenant":                 {Tenant: id},
			"since":                  {Since: time.Now().Add(-time.Minute)},
			"archived":               {States: []deadletter.State{deadletter.Archived}},
			"letter":                 {IDs: []string{"id7", id.String()}, States: all},
			"letter that waits":      {IDs: []string{"id7", id.String()}},
			"aggregate":              {Aggregate: id, States: all},
			"aggregate that waits":   {Aggregate: id},
			"correlation":            {Correlation: id, States: all},
			"correlation that waits": {Correlation: id},
		}
		indexes := map[string]string{
			"groups": "groups", "releases": "released", "decided": "decided", "unsettled": "unsettled", "identities": "identity",
			"silent": "sent", "settled": "id",
			"waiting": "waiting", "group": "group", "handler": "handler", "tenant": "tenant", "since": "waiting", "archived": "archived",
			"letter": "event", "letter that waits": "event", "aggregate": "aggregate", "aggregate that waits": "aggregate",
			"correlation": "correlation", "correlation that waits": "correlation",
		}
		for name, statement := range table.Statements(filters) {
			index, known := indexes[strings.TrimSuffix(name, ", page")]
			require.True(t, known, name)
			plan := requireIndex(t, b.SQL(), name, index, statement[0].(string), statement[1:]...)
			if name == "groups" {
				require.Regexp(t, "COVERING INDEX|Index Only Scan", plan)
			}
		}
	})
}

// Plans that were made while the table was known to be empty do not read all of it once it is large.
func TestPlansOfAnEmptyTable(t *testing.T) {
	t.Parallel()
	b, err := postgres.Open(t.Context(), testservers.Postgres(t), postgres.Options{MaxConns: 1}) // which keeps the plans
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	require.NoError(t, b.Migrate(t.Context()))
	execute := func(statement string) {
		_, err := b.SQL().DB.ExecContext(t.Context(), statement)
		require.NoError(t, err)
	}
	table := deadletter.NewTable(b.SQL())
	uses := map[string]func(){
		"ingest and settle": func() {
			a := letterOf(t, storetest.NewStream(), "h", "r")
			a.ID = uuid.NewString()
			ingest(t, table, a)
			require.NoError(t, table.Settled(t.Context(), a.ID, "r", []string{"h"}, true))
		},
		"releases": func() {
			released, err := table.Releases(t.Context())
			require.NoError(t, err)
			require.Empty(t, released)
		},
		"give up": func() { require.NoError(t, table.GiveUp(t.Context(), time.Now())) },
		"page":    func() { all(t, table, deadletter.Filter{Limit: 1}) },
		"count": func() {
			_, err := table.CountUpTo(t.Context(), 1)
			require.NoError(t, err)
		},
	}
	execute("ALTER TABLE dead_letters SET (autovacuum_enabled = false)")
	execute("VACUUM ANALYZE dead_letters")
	for _, use := range uses {
		for range 10 { // the sixth is the first with a plan that Postgres would keep
			use()
		}
	}
	write(t, b, `INSERT INTO dead_letters (id, identity, arrival, state, event_type, aggregate_type, aggregate_version, handler, group_id, reason,
		attempts, first_failed_at, last_failed_at, replays, replay_id, source, body, bytes)
		SELECT 'id' || g, 'i' || g, '', 'waiting', '', '', 0, 'h', 'g', 'r', 1, now(), now(), 0, '', '', convert_to(repeat('x', 1500), 'UTF8'), 1500 FROM generate_series(1, 20000) AS g`)
	read := func() (rows int) {
		execute("SELECT pg_stat_force_next_flush()")
		require.NoError(t, b.SQL().DB.QueryRowContext(t.Context(), `SELECT seq_tup_read +
			(SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'dead_letters')
			FROM pg_stat_user_tables WHERE relname = 'dead_letters'`).Scan(&rows))
		return rows
	}
	for name, use := range uses {
		before := read()
		use()
		require.Less(t, read()-before, 100, name)
	}
}

func requireIndex(t *testing.T, db store.SQL, name, index, statement string, args ...any) string {
	t.Helper()
	plan := explain(t, db, statement, args...)
	prefix := "dead_letters_"
	if db.Dialect == store.SQLite {
		prefix = "idx_dead_letters_"
	}
	constraints := map[string]string{"id": "sqlite_autoindex_dead_letters_1", "identity": "sqlite_autoindex_dead_letters_2"}
	if constraint, found := constraints[index]; found && db.Dialect == store.SQLite {
		prefix, index = "", constraint
	}
	require.Regexp(t, `(?m)\b`+prefix+index+`\b`, plan, "%s:\n%s\n%s", name, statement, plan)
	require.NotContains(t, plan, "Seq Scan on dead_letters", "%s:\n%s", name, plan)
	require.NotRegexp(t, `SCAN dead_letters$`, plan, "%s:\n%s", name, plan)
	return plan
}

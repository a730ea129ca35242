package cli

import (
	"database/sql"
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// oldCommit is an older version of the worker: the first that works with newer schemas. A later commit takes its place
// when a migration is marked as breaking.
const oldCommit = "160ccfb31e3524bc36562a249edff65317c55d26"

// releasedCommit is the previous release, with an older schema. It works with no newer one.
const releasedCommit = "c312a99c18a5abbfb17a8ece22d499db06016ec9"

// oldWorker builds the program of a commit, and returns its path.
func oldWorker(t *testing.T, commit string) string {
	t.Helper()
	dir := t.TempDir()
	for _, command := range [][]string{
		{"git", "-C", "../..", "archive", "--output=" + filepath.Join(dir, "old.tar"), commit},
		{"tar", "-xf", filepath.Join(dir, "old.tar"), "-C", dir},
		{"go", "build", "-C", dir, "-o", "old-worker", "./cmd/worker"},
	} {
		output, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput()
		require.NoError(t, err, "%v: %s\nIf the commit is missing, the clone is shallow: git fetch --unshallow", command, output)
	}
	return filepath.Join(dir, "old-worker")
}

// A rolling update and a rollback: workers of an older and of the present version run at once, on the schema of the
// present version with one more migration, that neither knows.
func TestVersionsSideBySide(t *testing.T) {
	t.Parallel()
	path := oldWorker(t, oldCommit)
	for name, test := range map[string]struct {
		open             func(*testing.T) *program
		driver, database string
		options          string // of the connection
		breaking         string
	}{
		"Postgres and RabbitMQ": {onServers, "pgx", "DATABASE_URL", "", "COMMENT ON TABLE worker_migrations IS 'breaking: 999'"},
		"embedded":              {embedded, "sqlite", "WORKER_SQLITE_PATH", "?_busy_timeout=10000", "PRAGMA user_version = 999"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			present := test.open(t)
			old := &program{t: t, path: path, env: present.env}
			handled := func(p *program) {
				t.Helper()
				p.awaitFollowUp(p.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0], "WelcomeMessageRequested")
			}
			old.must("", "migrate", "up")
			before := old.start()
			present.must("", "migrate", "up")
			db, err := sql.Open(test.driver, present.setting(test.database)+test.options)
			require.NoError(t, err)
			defer func() { require.NoError(t, db.Close()) }()
			for _, statement := range []string{
				"ALTER TABLE handled ADD COLUMN made_up text", "ALTER TABLE dead_letters ADD COLUMN made_up text",
				"INSERT INTO worker_migrations (version_id, is_applied) VALUES (999, true)",
			} {
				_, err := db.ExecContext(t.Context(), statement)
				require.NoError(t, err)
			}

			after := present.start()
			handled(old)
			handled(present)
			require.Eventually(t, func() bool { return before.ready() == http.StatusOK }, patience, tick)
			require.Eventually(t, func() bool { return after.ready() == http.StatusOK }, patience, tick)
			before.stop()
			handled(present)
			again := old.start()
			handled(old)
			after.stop()
			handled(old)
			require.Eventually(t, func() bool { return again.ready() == http.StatusOK }, patience, tick)

			_, err = db.ExecContext(t.Context(), test.breaking)
			require.NoError(t, err)
			require.Eventually(t, func() bool { return again.ready() == http.StatusServiceUnavailable }, patience, tick)
			for _, p := range []*program{old, present} {
				r := p.run("", "run", "--http-addr", "127.0.0.1:0")
				require.Equal(t, 1, r.code)
				require.Contains(t, r.err, "newer version of the worker")
			}
		})
	}
}

// The data of the previous release is upgraded and rolled back, as docs/operations.md says for a breaking migration. Before,
// commands of the present version do not migrate it under the released worker.
func TestReleaseIsUpgradedAndRolledBack(t *testing.T) {
	t.Parallel()
	path := oldWorker(t, releasedCommit)
	for name, open := range map[string]func(*testing.T) *program{"Postgres and RabbitMQ": onServers, "embedded": embedded} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			present := open(t)
			released := &program{t: t, path: path, env: present.env}
			var appended []wire
			handled := func(p *program) {
				t.Helper()
				e := p.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0]
				p.awaitFollowUp(e, "WelcomeMessageRequested")
				appended = append(appended, e)
			}
			var letter string
			requireKept := func(p *program) {
				t.Helper()
				for _, e := range appended {
					chain := p.chain(e.CorrelationID)
					require.Len(t, chain, 2)
					require.Equal(t, e, chain[0])
					if p == present {
						require.Contains(t, p.must("", "events", "--correlation", e.CorrelationID, "--reveal"), `event_data {"name"`)
					}
				}
				letters := p.letters()
				require.Len(t, letters, 1)
				require.Equal(t, letter, letters[0].EventID)
			}
			released.must("", "migrate", "up")
			known := versions(released)
			running := released.start()
			handled(released)
			letter = released.append(registration(uuid.NewString(), `{"name":""}`, ""))[0].EventID
			released.awaitLetters(1)

			require.Len(t, present.chain(appended[0].CorrelationID), 2)
			require.Len(t, present.letters(), 1)
			for _, args := range [][]string{ // what the released schema cannot record
				{"append"}, {"events", "--correlation", appended[0].CorrelationID, "--reveal"}, {"dlq", "archive", "--all", "--reason", "x"},
			} {
				r := present.run(registration(uuid.NewString(), `{"name":"Eva"}`, ""), args...)
				require.Equal(t, exitNotFound, r.code, args)
				require.Contains(t, r.err, "run `worker migrate up`")
				require.NotContains(t, r.out, "Ana")
			}
			require.Len(t, present.letters(), 1)
			require.Len(t, decodeLines[wire](t, present.must("", "events", "--type", "PatientRegistered", "-o", "json")), 2, "nothing was appended")
			require.Contains(t, present.run("", "doctor").out, "run `worker migrate up`")
			r := present.run("", "run", "--migrate=false", "--http-addr", "127.0.0.1:0")
			require.Equal(t, exitNotFound, r.code)
			require.Contains(t, r.err, "run `worker migrate up`")
			require.Equal(t, known, versions(present))
			require.Eventually(t, func() bool { return running.ready() == http.StatusOK }, patience, tick)
			handled(released)
			running.stop()

			present.must("", "migrate", "up")
			require.Greater(t, versions(present), known)
			requireKept(present)
			running = present.start()
			handled(present)
			requireKept(present)
			running.stop()

			for versions(present) > known {
				present.must("", "migrate", "down", "--yes")
			}
			running = released.start()
			handled(released)
			requireKept(released)
			running.stop()

			running = present.start()
			handled(present)
			requireKept(present)
			running.stop()
		})
	}
}

// versions is how many versions of the schema were applied.
func versions(p *program) (applied int) {
	p.t.Helper()
	type version struct {
		AppliedAt string `json:"applied_at"`
	}
	for _, v := range decodeLines[version](p.t, p.must("", "migrate", "status", "--format", "json")) {
		if v.AppliedAt != "" {
			applied++
		}
	}
	return applied
}

// Only `worker migrate up` and `worker run` migrate a file; append makes the schema in a new one.
func TestAppendMakesAFileAndDoesNotMigrate(t *testing.T) {
	t.Parallel()
	p := embedded(t)
	p.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))
	all := versions(p)
	p.must("", "migrate", "down", "--yes")
	p.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))
	require.Equal(t, all-1, versions(p))

	file := filepath.Join(t.TempDir(), "other.db")
	db, err := sql.Open("sqlite", file)
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	_, err = db.ExecContext(t.Context(), "CREATE TABLE events (at text)")
	require.NoError(t, err)
	p = newProgram(t, "WORKER_SQLITE_PATH="+file)
	for _, command := range [][]string{{"append"}, {"migrate", "up"}, {"run", "--http-addr", "127.0.0.1:0"}} {
		r := p.run(registration(uuid.NewString(), `{"name":"Ana"}`, ""), command...)
		require.Equal(t, 1, r.code)
		require.Contains(t, r.err, "table events that is not the contract's: another program has made it")
	}
}

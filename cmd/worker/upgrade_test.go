package main

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

// oldWorker builds the program of [oldCommit], and returns its path.
func oldWorker(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, command := range [][]string{
		{"git", "-C", "../..", "archive", "--output=" + filepath.Join(dir, "old.tar"), oldCommit},
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
	path := oldWorker(t)
	for name, test := range map[string]struct {
		open             func(*testing.T) *program
		driver, database string
		breaking         string
	}{
		"Postgres and RabbitMQ": {onServers, "pgx", "DATABASE_URL", "COMMENT ON TABLE worker_migrations IS 'breaking: 999'"},
		"embedded":              {embedded, "sqlite", "WORKER_SQLITE_PATH", "PRAGMA user_version = 999"},
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
			db, err := sql.Open(test.driver, present.setting(test.database))
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
			require.Equal(t, http.StatusOK, before.ready())
			require.Equal(t, http.StatusOK, after.ready())
			before.stop()
			handled(present)
			again := old.start()
			handled(old)
			after.stop()
			handled(old)
			require.Equal(t, http.StatusOK, again.ready())

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

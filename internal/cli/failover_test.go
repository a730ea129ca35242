package cli

import (
	"context"
	"net/http"
	"net/url"
	"regexp"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/test/testservers"
)

// soon is how fast a worker notices that its database takes no writes.
const soon = 5 * time.Second

func privatePostgres(t *testing.T, start func(context.Context) (*testservers.Server, error)) *testservers.Server {
	t.Helper()
	server, err := start(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop()) })
	return server
}

func executeOn(t *testing.T, server string, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), server)
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(t.Context()))
	for _, s := range statements {
		_, err := conn.Exec(t.Context(), s)
		require.NoError(t, err, s)
	}
}

// requireReadOnly waits until everything that reports says so.
func requireReadOnly(t *testing.T, p *program, worker *running) {
	t.Helper()
	require.Eventually(t, func() bool {
		status, body := worker.get("/readyz")
		return status == http.StatusServiceUnavailable && regexp.MustCompile(`"store":"[^"]*read-only`).MatchString(body)
	}, soon, tick)
	require.Eventually(t, func() bool {
		_, body := worker.get("/metrics")
		return regexp.MustCompile(`worker_part_up\{part="store"\} 0`).MatchString(body)
	}, soon, tick)
	for _, command := range [][]string{{"append", "-"}, {"dlq", "purge", "--yes"}} {
		failed := p.run(registration(uuid.NewString(), "{}", ""), command...)
		require.NotZero(t, failed.code)
		require.Contains(t, failed.err, "read-only", command)
	}
	require.Contains(t, p.run("", "doctor").out, "read-only")
}

func requireWorks(t *testing.T, p *program, worker *running) {
	t.Helper()
	require.Eventually(t, func() bool { return worker.ready() == http.StatusOK }, patience, tick)
	p.awaitFollowUp(p.append(registration(uuid.NewString(), `{"name":"x","email":"x@example.com"}`, ""))[0], "WelcomeMessageRequested")
}

// A server that takes no writes: the worker is not ready at once, says why, and goes on as soon as it can.
func TestReadOnlyDatabase(t *testing.T) {
	t.Parallel()
	server := privatePostgres(t, testservers.StartPostgres).URL()
	p := newProgram(t, "DATABASE_URL="+server)
	worker := p.start()
	requireWorks(t, p, worker)
	executeOn(t, server, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
	requireReadOnly(t, p, worker)
	executeOn(t, server, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
	requireWorks(t, p, worker)
	// A setting of the database is for new sessions: those of the worker go on.
	executeOn(t, server, "ALTER DATABASE postgres SET default_transaction_read_only = on")
	require.Equal(t, http.StatusOK, worker.ready())
	require.Contains(t, p.run("", "doctor").out, "read-only")
}

// The worker finds the primary by itself, be the former one gone or read-only.
func TestFailover(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(t *testing.T, former *testservers.Server){
		"the primary is killed": func(t *testing.T, former *testservers.Server) { t.Helper(); require.NoError(t, former.Kill()) },
		"the primary is read-only": func(t *testing.T, former *testservers.Server) {
			t.Helper()
			executeOn(t, former.URL(), "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			primary := privatePostgres(t, testservers.StartPostgres)
			standby := privatePostgres(t, func(ctx context.Context) (*testservers.Server, error) {
				return testservers.StartStandby(ctx, primary)
			})
			first, err := url.Parse(primary.URL())
			require.NoError(t, err)
			second, err := url.Parse(standby.URL())
			require.NoError(t, err)
			first.Host += "," + second.Host
			p := newProgram(t, "DATABASE_URL="+first.String()+"&target_session_attrs=read-write")
			worker := p.start()
			requireWorks(t, p, worker)
			require.NotContains(t, p.run("", "doctor").out, "read-only")
			require.Contains(t, newProgram(t, "DATABASE_URL="+standby.URL()).run("", "doctor").out, "standby")

			end(t, primary)
			require.Eventually(t, func() bool { return worker.ready() == http.StatusServiceUnavailable }, soon, tick)
			executeOn(t, standby.URL(), "SELECT pg_promote()")
			requireWorks(t, p, worker)
		})
	}
}

package doctor_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/doctor"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/worker"
)

func connect(t *testing.T, database string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) }) // a test may have killed it
	return conn
}

func execute(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, s := range statements {
		_, err := conn.Exec(t.Context(), s)
		require.NoError(t, err, s)
	}
}

// asWorker returns the URL with a new role, which roles.sql has granted what it needs.
func asWorker(t *testing.T, database string) (limited, role string) {
	t.Helper()
	role = "worker_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	owner := connect(t, database)
	execute(t, owner, "CREATE ROLE "+role+" LOGIN PASSWORD 's3cret'")
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		_, err := owner.Exec(ctx, "DROP OWNED BY "+role+"; DROP ROLE "+role)
		require.NoError(t, err)
	})
	text, err := os.ReadFile("../../migrations/postgres/roles.sql")
	require.NoError(t, err)
	execute(t, owner, strings.ReplaceAll(string(text), `:"worker"`, role))
	u, err := url.Parse(database)
	require.NoError(t, err)
	u.User = url.UserPassword(role, "s3cret")
	return u.String(), role
}

func TestPostgres(t *testing.T) {
	t.Parallel()
	s := onPostgres(testservers.Postgres(t))
	b := migrated(t, s)
	tail, err := b.Tail(t.Context(), store.TailConfig{BatchSize: 1})
	require.NoError(t, err)
	require.NoError(t, tail.Close())
	examine(t, s).requireFinding(t, "append-only", doctor.Warning, "superuser", "roles.sql")

	s.DatabaseURL, _ = asWorker(t, s.DatabaseURL)
	found := examine(t, s)
	for _, check := range []string{
		"settings", "postgres", "schema", "clock", "append-only", "versions", "grants", "relay", "dead letters", "inbox",
	} {
		found.requireFinding(t, check, doctor.OK)
	}
}

func TestPostgresFaults(t *testing.T) {
	t.Parallel()
	type fault struct {
		make  func(t *testing.T, s *worker.Settings, owner *pgx.Conn)
		check string
		want  doctor.Status
		says  []string
	}
	statement := func(statements ...string) func(*testing.T, *worker.Settings, *pgx.Conn) {
		return func(t *testing.T, _ *worker.Settings, owner *pgx.Conn) {
			t.Helper()
			execute(t, owner, statements...)
		}
	}
	address := func(change func(*url.URL)) func(*testing.T, *worker.Settings, *pgx.Conn) {
		return func(t *testing.T, s *worker.Settings, _ *pgx.Conn) {
			t.Helper()
			u, err := url.Parse(s.DatabaseURL)
			require.NoError(t, err)
			change(u)
			s.DatabaseURL = u.String()
		}
	}
	for name, f := range map[string]fault{
		"it is down": {
			address(func(u *url.URL) { u.Host = "127.0.0.1:1" }),
			"postgres", doctor.Wrong,
			[]string{"127.0.0.1", "check whether it runs"},
		},
		"no such database": {
			address(func(u *url.URL) { u.Path += "_other" }),
			"postgres", doctor.Wrong,
			[]string{"does not exist", "create it"},
		},
		"no such role": {
			address(func(u *url.URL) { u.User = url.User("nobody_here") }),
			"postgres", doctor.Wrong,
			[]string{"nobody_here", "DATABASE_URL"},
		},
		"a newer schema": {
			statement("INSERT INTO worker_migrations (version_id, is_applied) VALUES (999, true)"),
			"schema", doctor.OK,
			[]string{"the schema is newer (version 999) than this program (", "), and compatible"},
		},
		"a newer schema that breaks older programs": {
			statement("INSERT INTO worker_migrations (version_id, is_applied) VALUES (999, true); COMMENT ON TABLE worker_migrations IS 'breaking: 998'"),
			"schema", doctor.Wrong,
			[]string{"version 999", "cannot work with version 998", "newer worker"},
		},
		"an old schema": {func(t *testing.T, s *worker.Settings, _ *pgx.Conn) {
			t.Helper()
			require.NoError(t, migrated(t, *s).MigrateDown(t.Context()))
		}, "schema", doctor.Wrong, []string{"this worker needs", "worker migrate up"}},
		"another service's table": {
			statement("DROP TABLE worker_migrations"),
			"schema", doctor.Wrong,
			[]string{"adopts it"},
		},
		"a table of another program": {
			statement("DROP TABLE worker_migrations; ALTER TABLE events DROP COLUMN user_id"),
			"schema", doctor.Wrong,
			[]string{"a table events that is not the contract's: user_id is missing, not uuid", "correct the columns"},
		},
		"no schema": {
			statement("DROP TABLE worker_migrations, events"),
			"schema", doctor.Wrong,
			[]string{"has no schema", "worker migrate up"},
		},
		"events without their guard": {
			statement("ALTER TABLE events DISABLE TRIGGER events_append_only"),
			"append-only", doctor.Wrong,
			[]string{"can be changed", "ENABLE TRIGGER"},
		},
		"nobody wakes the relay": {
			statement("DROP TRIGGER events_inserted ON events"), "append-only", doctor.Warning, []string{"events_inserted"},
		},
		"a right that is missing": {func(t *testing.T, s *worker.Settings, owner *pgx.Conn) {
			t.Helper()
			limited, role := asWorker(t, s.DatabaseURL)
			execute(t, owner, "REVOKE DELETE ON handled FROM "+role, "REVOKE USAGE ON SEQUENCE events_id_seq FROM "+role)
			s.DatabaseURL = limited
		}, "grants", doctor.Wrong, []string{"USAGE on events_id_seq", "DELETE on handled", "roles.sql"}},
		"no right to look": {func(t *testing.T, s *worker.Settings, owner *pgx.Conn) {
			t.Helper()
			limited, role := asWorker(t, s.DatabaseURL)
			execute(t, owner, "REVOKE SELECT ON worker_migrations FROM "+role)
			s.DatabaseURL = limited
		}, "schema", doctor.Wrong, []string{"may not read worker_migrations", "roles.sql"}},
		"a right too many": {func(t *testing.T, s *worker.Settings, owner *pgx.Conn) {
			t.Helper()
			limited, role := asWorker(t, s.DatabaseURL)
			execute(t, owner, "GRANT DELETE ON events TO "+role)
			s.DatabaseURL = limited
		}, "append-only", doctor.Warning, []string{"DELETE on events"}},
		"no relay yet": {statement(), "relay", doctor.Warning, []string{"no relay has started"}},
		"a foreign table with versions from 0": {
			statement("DROP TABLE worker_migrations; INSERT INTO events (event_type, aggregate_type, aggregate_id, " +
				"aggregate_version, tenant_id, correlation_id, event_data) VALUES ('E', 'A', gen_random_uuid(), 0, " +
				"gen_random_uuid(), gen_random_uuid(), '{}')"),
			"schema", doctor.Wrong,
			[]string{"cannot be adopted", "below 1", "(id 1)", "docs/operations.md"},
		},
		"versions from 0 after the adoption": {
			statement("INSERT INTO events (event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, " +
				"correlation_id, event_data) SELECT 'E', 'A', id, 0, id, id, '{}' FROM gen_random_uuid() AS id"),
			"versions", doctor.Wrong,
			[]string{"aggregate_version below 1", "1 (latest id 1)", "versions from 1"},
		},
		"restored from another cluster": {
			statement("INSERT INTO relay_position (transaction_id, id) VALUES ('1000000000000', 1)"),
			"relay", doctor.Wrong,
			[]string{"restored from a dump of another cluster", "worker migrate restored"},
		},
		"a relay without its position": {
			statement("INSERT INTO leases VALUES ('relay', '', 1, now())"),
			"relay", doctor.Wrong,
			[]string{"the row of relay_position is missing"},
		},
		"a relay that rests": {func(t *testing.T, s *worker.Settings, owner *pgx.Conn) {
			t.Helper()
			b := migrated(t, *s)
			tail, err := b.Tail(t.Context(), store.TailConfig{BatchSize: 1})
			require.NoError(t, err)
			require.NoError(t, tail.Close())
			require.NoError(t, b.Append(t.Context(), event(time.Now().Add(-time.Hour))))
			execute(t, owner, "UPDATE relay_position SET moved_at = now() - interval '10 minutes'")
			require.Eventually(t, func() bool { // until no older transaction of another test runs
				for _, err := range b.All(t.Context(), store.Position{}) {
					require.NoError(t, err)
					return true
				}
				return false
			}, patience, tick)
		}, "relay", doctor.Wrong, []string{"1 event not published", "the oldest was created 1h0m", "none for 10m", "/readyz"}},
		"dead letters in the store": {func(t *testing.T, s *worker.Settings, _ *pgx.Conn) {
			t.Helper()
			addLetters(t, migrated(t, *s))
		}, "dead letters", doctor.Warning, []string{"1 dead letter", "worker dlq list"}},
		"an inbox that nobody prunes": {
			statement("INSERT INTO handled VALUES (gen_random_uuid(), 'handler', '', now() - interval '40 days')"),
			"inbox", doctor.Warning,
			[]string{"beyond the retention"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := onPostgres(testservers.Postgres(t))
			migrated(t, s)
			f.make(t, &s, connect(t, s.DatabaseURL))
			found := examine(t, s)
			found.requireFinding(t, f.check, f.want, f.says...)
			for _, finding := range found {
				require.NotContains(t, finding.What+finding.Advice, "s3cret")
			}
		})
	}
}

// The doctor reports, on a separate server, inactive replication slots and transactions that hold back the relay.
func TestPostgresServer(t *testing.T) {
	t.Parallel()
	server, err := testservers.StartPostgres(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop()) })
	admin := connect(t, server.URL())
	var rules string
	require.NoError(t, admin.QueryRow(t.Context(), "SHOW hba_file").Scan(&rules))
	rules = testservers.OutsideRoot(rules)
	execute(t, admin, "ALTER SYSTEM SET max_prepared_transactions = 5")
	require.NoError(t, server.Kill())
	require.NoError(t, server.Start())
	s := onPostgres(server.URL())
	b := migrated(t, s)
	admin = connect(t, server.URL())
	limited := s
	var role string
	limited.DatabaseURL, role = asWorker(t, server.URL())
	found := examine(t, limited)
	found.requireFinding(t, "horizon", doctor.OK)
	found.requireFinding(t, "replication slots", doctor.OK)
	found.requireFinding(t, "connections", doctor.OK)

	execute(t, admin, "SELECT pg_create_physical_replication_slot('left_behind', true)")
	examine(t, s).requireFinding(t, "replication slots", doctor.Warning, "left_behind", "pg_drop_replication_slot('left_behind')")

	u, err := url.Parse(server.URL())
	require.NoError(t, err)
	query := u.Query()
	query.Set("application_name", "nightly_report")
	u.RawQuery = query.Encode()
	foreign, prepared := connect(t, u.String()), connect(t, server.URL())
	execute(t, foreign, "BEGIN", "CREATE TEMP TABLE about_pLaNtEd ()")
	execute(t, prepared, "BEGIN", "SELECT pg_current_xact_id()", "PREPARE TRANSACTION 'forgotten'")
	tail, err := b.Tail(t.Context(), store.TailConfig{BatchSize: 1, Start: store.StartEnd})
	require.NoError(t, err)
	require.NoError(t, tail.Close())
	require.NoError(t, b.Append(t.Context(), event(time.Now())))
	pid := fmt.Sprint(foreign.PgConn().PID())
	require.Eventually(t, func() bool {
		found = examine(t, s)
		return found.has("horizon", doctor.Warning, `application "nightly_report"`, "pid "+pid, "idle in transaction",
			"1 committed event cannot be published meanwhile", "pg_terminate_backend("+pid+")") &&
			found.has("horizon", doctor.Warning, `prepared transaction "forgotten"`, "ROLLBACK PREPARED")
	}, patience, tick)
	found.requireFinding(t, "relay", doctor.OK, "1 event not published yet: a running transaction holds back")
	examine(t, limited).requireFinding(t, "horizon", doctor.Warning, "pid "+pid, "may not see its details", "pg_read_all_stats")
	require.False(t, slices.ContainsFunc(found, func(f doctor.Finding) bool { return strings.Contains(f.What, "pLaNtEd") }))
	execute(t, foreign, "ROLLBACK")
	execute(t, admin, "ROLLBACK PREPARED 'forgotten'")
	examine(t, s).requireFinding(t, "horizon", doctor.OK)

	text, err := os.ReadFile(rules)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(rules, append([]byte("host all "+role+" 127.0.0.1/32 scram-sha-256\n"), text...), 0o600))
	execute(t, admin, "SELECT pg_reload_conf()")
	limited.DatabaseURL = strings.Replace(limited.DatabaseURL, "s3cret", "gu3ssed", 1)
	require.Eventually(t, func() bool {
		found = examine(t, limited)
		return found.has("postgres", doctor.Wrong, "password authentication failed", "correct the password") &&
			!found.has("postgres", doctor.Wrong, "gu3ssed")
	}, patience, tick)

	var crowd []*pgx.Conn
	for range 92 {
		crowd = append(crowd, connect(t, server.URL()))
	}
	examine(t, s).requireFinding(t, "connections", doctor.Warning, "max_connections")
	for _, c := range crowd {
		require.NoError(t, c.Close(t.Context()))
	}

	require.NoError(t, server.Pause())
	found = slices.Collect(doctor.Examine(t.Context(), doctor.Checks(s, 1), 2*time.Second))
	require.NoError(t, server.Resume())
	found.requireFinding(t, "postgres", doctor.Wrong)
	found.requireFinding(t, "clock", doctor.Skipped)
}

func TestTLS(t *testing.T) {
	t.Parallel()
	database, certificates := testservers.PostgresTLS(t)
	s := onPostgres(database + "&sslrootcert=" + certificates + "/ca.pem")
	examine(t, s).requireFinding(t, "postgres", doctor.OK, "over TLS")
	s.DatabaseURL = database + "&sslrootcert=" + certificates + "/other-ca.pem"
	examine(t, s).requireFinding(t, "postgres", doctor.Wrong, "certificate", "sslrootcert")

	broker, certificates := testservers.RabbitMQTLS(t)
	s = onFile(t)
	migrated(t, s)
	own := "&certfile=" + certificates + "/client.pem&keyfile=" + certificates + "/client.key"
	s.AMQP.URL = broker + "?cacertfile=" + certificates + "/ca.pem" + own
	examine(t, s).requireFinding(t, "rabbitmq", doctor.OK)
	s.AMQP.URL = broker + "?cacertfile=" + certificates + "/other-ca.pem" + own
	examine(t, s).requireFinding(t, "rabbitmq", doctor.Wrong, "certificate", "cacertfile")
}

package doctor

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/worker"
	"github.com/healz/worker/migrations"
)

const (
	postgresCheck = "postgres"
	schemaCheck   = "schema"
	horizonCheck  = "horizon"
	relayCheck    = "relay"
	lettersCheck  = "dead letters"
	inboxCheck    = "inbox"
)

const (
	// skewWarning and skewWrong are limits of the clock skew of worker and database: reads sort by created_at.
	skewWarning = time.Second
	skewWrong   = time.Minute
	// heldWarning and heldWrong are limits of the time that a transaction holds back the relay.
	heldWarning = 5 * time.Second
	heldWrong   = time.Minute
	// lagWarning and lagWrong are limits of the age of an unpublished event while the relay makes no progress.
	lagWarning = 10 * time.Second
	lagWrong   = time.Minute
	// recheck is the time after which a problem is checked again, as it may be temporary.
	recheck = 2 * time.Second
	// most is the limit of counts of events and letters.
	most = 10_000
)

var (
	//go:embed sql/lag.sql
	lagSQL string
	//go:embed sql/horizon.sql
	horizonSQL string
)

// postgresDoctor checks a Postgres database on read-only connections.
type postgresDoctor struct {
	settings worker.Settings
	now      func() time.Time
}

func postgresChecks(s worker.Settings) (server Check, others []Check) {
	d := postgresDoctor{settings: s, now: time.Now}
	check := func(name, needs string, run func(context.Context, *pgx.Conn, *Report) error) Check {
		return Check{Name: name, Needs: needs, Run: func(ctx context.Context, r *Report) error {
			return d.on(ctx, func(conn *pgx.Conn) error { return run(ctx, conn, r) })
		}}
	}
	relay := check(relayCheck, schemaCheck, d.relay)
	relay.Causes = []string{rabbitMQCheck, publishingCheck, horizonCheck}
	return Check{Name: postgresCheck, Needs: settingsCheck, Run: d.reach}, []Check{
		check(schemaCheck, postgresCheck, d.schema),
		check("clock", postgresCheck, d.clock),
		check("connections", postgresCheck, d.connections),
		check("replication slots", postgresCheck, d.slots),
		check("append-only", schemaCheck, d.appendOnly),
		check("versions", schemaCheck, d.versions),
		check("grants", schemaCheck, d.grants),
		check(horizonCheck, schemaCheck, d.horizon),
		relay,
		check(lettersCheck, schemaCheck, d.letters),
		check(inboxCheck, schemaCheck, d.inbox),
	}
}

// on calls do with a new connection, in a read-only transaction: behind a pooler no setting of the session is safe, and no
// prepared statement.
func (d postgresDoctor) on(ctx context.Context, do func(*pgx.Conn) error) error {
	config, err := pgx.ParseConfig(d.settings.DatabaseURL)
	if err != nil { // its text may quote the password
		return errors.New("the database URL is invalid")
	}
	config.RuntimeParams["application_name"] = "worker doctor"
	if config.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		config.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "BEGIN READ ONLY"); err != nil {
		return err
	}
	return do(conn)
}

func (d postgresDoctor) reach(ctx context.Context, r *Report) error {
	err := d.on(ctx, func(conn *pgx.Conn) error {
		var role string
		var standby, readOnly bool
		var pid uint32
		err := conn.QueryRow(ctx, `
			SELECT current_user, pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean, pg_backend_pid()`).
			Scan(&role, &standby, &readOnly, &pid)
		if err != nil {
			return err
		}
		_, encrypted := conn.PgConn().Conn().(*tls.Conn)
		r.fine("Postgres %s as role %s, %s", conn.PgConn().ParameterStatus("server_version"), role,
			map[bool]string{true: "over TLS", false: "without TLS"}[encrypted])
		if !encrypted && !isLocal(conn.Config().Host) {
			r.warn("patient data is sent to Postgres unencrypted", "use sslmode=verify-full in DATABASE_URL")
		}
		if pid != conn.PgConn().PID() {
			r.fine("a pooler stands before Postgres: the relay gets no notifications, and polls each second")
		}
		switch {
		case standby:
			r.wrong("the server is a standby, which is read-only",
				"set DATABASE_URL to the primary, or to all servers with target_session_attrs=read-write")
		case readOnly:
			r.wrong("the server is read-only: default_transaction_read_only is on",
				"set it to off for the server, database and role, or DATABASE_URL to the primary")
		}
		return nil
	})
	if err != nil {
		r.wrong(oneLine(err), adviceOnPostgres(err))
	}
	return nil
}

func adviceOnPostgres(err error) string {
	answer, ok := errors.AsType[*pgconn.PgError](err)
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	_, authority := errors.AsType[x509.UnknownAuthorityError](err)
	switch {
	case certificate || authority:
		return "set sslrootcert in DATABASE_URL to the CA of the server's certificate"
	case !ok:
		return "check whether it runs, and is reachable at this address"
	case answer.Code == "28P01":
		return "correct the password in DATABASE_URL"
	case answer.Code == "28000":
		return "correct the role in DATABASE_URL, or permit it in pg_hba.conf"
	case answer.Code == "3D000":
		return "correct the database in DATABASE_URL, or create it"
	case answer.Code == "08P01":
		return "a pooler refuses a setting in DATABASE_URL: use ALTER ROLE … SET for it, or the pooler's ignore_startup_parameters"
	case answer.Code == "53300":
		return "close connections, or raise max_connections"
	default:
		return "see the log of Postgres"
	}
}

func (d postgresDoctor) schema(ctx context.Context, conn *pgx.Conn, r *Report) error {
	db := stdlib.OpenDB(*conn.Config()) // never connected: only the migration files are read
	defer db.Close()
	migrator, err := migrations.Postgres(db)
	if err != nil {
		return err
	}
	var migrated, adoptable bool
	err = conn.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL, to_regclass('events') IS NOT NULL", migrations.Table).
		Scan(&migrated, &adoptable)
	if err != nil {
		return err
	}
	var s migrations.Schema
	if migrated {
		err = conn.QueryRow(ctx, migrations.SelectPostgres).Scan(&s.Version, &s.Breaking)
	}
	denied, answered := errors.AsType[*pgconn.PgError](err)
	switch {
	case answered && denied.Code == "42501":
		r.wrong("the role may not read "+migrations.Table, "grant its permissions: migrations/postgres/roles.sql")
	case err != nil:
		return err
	case s.Version == 0 && adoptable:
		if err := postgres.CheckAdoption(ctx, conn); errors.Is(err, store.ErrUnfitTable) {
			r.wrong(err.Error(), "then run `worker migrate up`")
			return nil
		} else if errors.Is(err, store.ErrForeignTable) {
			r.wrong(err.Error(), "correct the columns or the database in DATABASE_URL, then run `worker migrate up`")
			return nil
		} else if err != nil {
			return err
		}
		r.wrong("there is a table events without the additions of the worker", "run `worker migrate up`: it adopts it with its rows")
	default:
		r.add(judgeSchema(s, migrator.Latest()))
	}
	return nil
}

func judgeSchema(s migrations.Schema, latest int64) Finding {
	switch {
	case s.Version == 0:
		return wrongly("the database has no schema", "run `worker migrate up`, or `worker run` with --migrate")
	case s.Version < latest:
		return wrongly(fmt.Sprintf("the schema has version %d, and this worker needs %d", s.Version, latest), "run `worker migrate up`")
	case s.Breaking > latest:
		return wrongly(fmt.Sprintf("the schema is newer (version %d) than this program (%d), which cannot work with version %d",
			s.Version, latest, s.Breaking), "run the newer worker")
	case s.Version > latest:
		return fine("the schema is newer (version %d) than this program (%d), and compatible", s.Version, latest)
	default:
		return fine("version %d", s.Version)
	}
}

// versions looks for versions below 1 among the newest events only, as there is no index to find them by. Older ones were
// looked for when the table was adopted.
func (d postgresDoctor) versions(ctx context.Context, conn *pgx.Conn, r *Report) error {
	var count int
	var latest *int64
	err := conn.QueryRow(ctx, `
		SELECT count(*), max(id)
		FROM (SELECT id, aggregate_version FROM events ORDER BY id DESC LIMIT $1) AS newest
		WHERE aggregate_version < 1`, most).Scan(&count, &latest)
	switch {
	case err != nil:
		return err
	case count > 0:
		r.wrong(fmt.Sprintf("among the newest %d events are some with aggregate_version below 1, whose aggregates cannot be "+
			"loaded: %d (latest id %d)", most, count, *latest), "let the service that inserts them write versions from 1")
	default:
		r.fine("none below 1 among the newest %d events", most)
	}
	return nil
}

func (d postgresDoctor) appendOnly(ctx context.Context, conn *pgx.Conn, r *Report) error {
	var guards, wakes, super, owner bool
	var may []string
	err := conn.QueryRow(ctx, `
		SELECT
			EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgname = 'events_append_only' AND tgenabled IN ('O', 'A')),
			EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgname = 'events_inserted' AND tgenabled IN ('O', 'A')),
			(SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
			pg_has_role(relowner, 'USAGE'),
			ARRAY(SELECT p FROM unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE']) AS p WHERE has_table_privilege(c.oid, p))
		FROM pg_class AS c WHERE c.oid = 'events'::regclass`).Scan(&guards, &wakes, &super, &owner, &may)
	if err != nil {
		return err
	}
	if !guards {
		r.wrong("events can be changed and deleted: the trigger events_append_only is disabled or missing",
			"as owner: ALTER TABLE events ENABLE TRIGGER events_append_only; "+
				"if it is missing, restore it from migrations/postgres/00001_events.sql")
	}
	if !wakes {
		r.warn("the trigger events_inserted is disabled or missing: the relay gets no notifications, and only polls",
			"as owner: ALTER TABLE events ENABLE TRIGGER events_inserted")
	}
	const advice = "use a separate role for the worker: migrations/postgres/roles.sql"
	switch {
	case super:
		r.warn("the role is a superuser, which can remove the protection of events", advice)
	case owner:
		r.warn("the role owns the table events, and can remove its protection", advice)
	case len(may) > 0:
		r.warn("the role has "+strings.Join(may, ", ")+" on events, which it does not need", advice)
	}
	r.otherwise("events cannot be changed or deleted")
	return nil
}

func (d postgresDoctor) grants(ctx context.Context, conn *pgx.Conn, r *Report) error {
	var privileges, objects []string
	for _, g := range migrations.PostgresGrants() {
		privileges, objects = append(privileges, g.Privilege), append(objects, g.Object)
	}
	rows, _ := conn.Query(ctx, `
		SELECT privilege || ' on ' || object
		FROM unnest($1::text[], $2::text[]) AS wanted (privilege, object)
		WHERE NOT CASE privilege
			WHEN 'USAGE' THEN has_sequence_privilege(object, privilege)
			ELSE has_table_privilege(object, privilege)
		END`, privileges, objects)
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string]) // or the error of the query
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		r.wrong("the role lacks "+strings.Join(missing, ", "),
			"as owner: psql -v ON_ERROR_STOP=1 -v worker="+conn.Config().User+" -f migrations/postgres/roles.sql")
	}
	r.otherwise("the role has all permissions that the worker needs")
	return nil
}

func (d postgresDoctor) clock(ctx context.Context, conn *pgx.Conn, r *Report) error {
	var server time.Time
	before := d.now()
	if err := conn.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&server); err != nil {
		return err
	}
	trip := d.now().Sub(before)
	r.add(judgeClock(server.Sub(before.Add(trip/2)), trip))
	return nil
}

// judgeClock checks the clock skew. The round trip time limits its accuracy.
func judgeClock(skew, trip time.Duration) Finding {
	apart := max(0, skew.Abs()-trip/2)
	direction := "ahead of"
	if skew < 0 {
		direction = "behind"
	}
	what := fmt.Sprintf("the clock of Postgres is %s %s this machine's", apart.Round(time.Millisecond), direction)
	const advice = "synchronise both clocks by NTP: events are sorted by created_at"
	switch {
	case apart >= skewWrong:
		return wrongly(what, advice)
	case apart >= skewWarning:
		return warning(what, advice)
	default:
		return fine("the clocks of Postgres and of this machine are equal")
	}
}

func (d postgresDoctor) connections(ctx context.Context, conn *pgx.Conn, r *Report) error {
	var limit, used int
	err := conn.QueryRow(ctx, `
		SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int, count(*)
		FROM pg_stat_activity WHERE backend_type = 'client backend'`).Scan(&limit, &used)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%d of %d connections in use", used, limit)
	if used*10 > limit*9 {
		r.warn(what, "raise max_connections, or lower --database-conns of the workers")
	}
	r.otherwise("%s", what)
	return nil
}

type holder struct {
	Age                                             int
	PID                                             int
	GID, Role, Application, Database, Client, State string
	Seconds                                         *float64
}

func (d postgresDoctor) horizon(ctx context.Context, conn *pgx.Conn, r *Report) error {
	read := func() ([]holder, error) {
		rows, _ := conn.Query(ctx, horizonSQL) // CollectRows returns the error
		return pgx.CollectRows(rows, pgx.RowToStructByPos[holder])
	}
	first, err := read()
	var second []holder
	if err == nil && len(first) > 0 {
		if err = wait(ctx, recheck); err == nil {
			_, err = conn.Exec(ctx, "SELECT pg_stat_clear_snapshot()") // a transaction sees the sessions as it first did
		}
		if err == nil {
			second, err = read()
		}
	}
	if err != nil {
		return err
	}
	var waiting int
	err = conn.QueryRow(ctx, `
		SELECT count(*) FROM (
			SELECT FROM events WHERE transaction_id >= pg_snapshot_xmin(pg_current_snapshot()) LIMIT $1
		) AS held`, most+1).Scan(&waiting)
	if err != nil {
		return err
	}
	for _, h := range second {
		lasted := recheck
		if h.Seconds != nil {
			lasted = time.Duration(*h.Seconds * float64(time.Second))
		} else if !sawBefore(first, h) {
			continue
		}
		if lasted < heldWarning && h.Seconds != nil {
			continue
		}
		f := warning(h.describe(lasted)+"; "+counted(waiting, "committed event")+" cannot be published meanwhile", h.advice())
		if lasted >= heldWrong && waiting > 0 {
			f.Status = Wrong
		}
		r.add(f)
	}
	r.otherwise("no transaction holds back the relay")
	return nil
}

// sawBefore returns whether an earlier check found the session, whose details are hidden, in the same or an older
// transaction.
func sawBefore(earlier []holder, h holder) bool {
	return slices.ContainsFunc(earlier, func(e holder) bool { return e.PID == h.PID && e.GID == h.GID && h.Age >= e.Age })
}

func (h holder) describe(lasted time.Duration) string {
	switch {
	case h.GID != "":
		return fmt.Sprintf("the prepared transaction %q of role %s in database %s holds back the relay for %s",
			h.GID, h.Role, h.Database, ago(lasted))
	case h.Seconds == nil:
		return fmt.Sprintf("a transaction of the session with pid %d holds back the relay for more than %s; "+
			"this role may not see its details", h.PID, ago(lasted))
	default:
		return fmt.Sprintf("a transaction of role %s, application %q, database %s, client %s, pid %d, which is %s, "+
			"holds back the relay for %s", h.Role, h.Application, h.Database, cmp.Or(h.Client, "local"), h.PID, h.State, ago(lasted))
	}
}

func (h holder) advice() string {
	switch {
	case h.GID != "":
		return fmt.Sprintf("in database %s: COMMIT PREPARED '%s' or ROLLBACK PREPARED", h.Database, strings.ReplaceAll(h.GID, "'", "''"))
	case h.Seconds == nil:
		return "GRANT pg_read_all_stats to the role and run doctor again"
	default:
		return fmt.Sprintf("end it in its application, or: SELECT pg_terminate_backend(%d)", h.PID)
	}
}

type lag struct {
	Begun        bool
	Moved        *float64 // seconds since the position moved; infinite if it has not moved and the time is unknown
	Waiting, Own int
	Oldest       *float64 // seconds since the oldest of these was created
	Held         int      // committed events that a running transaction holds back
}

func (d postgresDoctor) relay(ctx context.Context, conn *pgx.Conn, r *Report) error {
	if err := postgres.CheckRestored(ctx, conn); errors.Is(err, store.ErrRestored) {
		r.wrong("the database was restored from a dump of another cluster, so that events would not be relayed",
			"run `worker migrate restored` as the owner of the tables")
		return nil
	} else if err != nil {
		return err
	}
	read := func() (l lag, err error) {
		var deleted bool
		err = conn.QueryRow(ctx, lagSQL, d.settings.Relay.OnlyOwn).Scan(&l.Begun, &deleted, &l.Moved, &l.Waiting, &l.Own, &l.Oldest, &l.Held)
		if deleted {
			err = store.ErrNoPosition
		}
		return l, err
	}
	l, err := read()
	if err == nil && l.stalled() >= lagWarning {
		if err = wait(ctx, recheck); err == nil {
			l, err = read()
		}
	}
	if err != nil {
		return err
	}
	r.add(l.judge(d.settings.Relay.OnlyOwn))
	return nil
}

// stalled returns how long there have been unpublished events and no progress.
func (l lag) stalled() time.Duration {
	if l.Waiting == 0 || l.Oldest == nil || l.Moved == nil {
		return 0
	}
	return time.Duration(min(*l.Oldest, *l.Moved) * float64(time.Second))
}

func (l lag) judge(onlyOwn bool) Finding {
	if !l.Begun {
		return warning("no relay has started on this database", "start `worker run`")
	}
	waiting := l.Waiting
	if onlyOwn {
		waiting = l.Own
	}
	if l.Held > 0 && waiting == 0 {
		return fine("%s not published yet: a running transaction holds back what was committed after its begin; all before that is published",
			counted(l.Held, "event"))
	}
	if waiting == 0 {
		return fine("all committed events are published")
	}
	what := counted(l.Waiting, "event") + " not published yet"
	if l.Oldest != nil {
		what += ", the oldest was created " + ago(time.Duration(*l.Oldest*float64(time.Second))) + " ago"
	}
	stalled := l.stalled()
	if stalled < lagWarning {
		return fine("%s; the relay makes progress", what)
	}
	if math.IsInf(*l.Moved, 1) {
		what += ", and the relay makes no progress"
	} else {
		what += ", and the relay has published none for " + ago(stalled)
	}
	f := warning(what, "check whether a worker runs; see its /readyz and its log")
	if stalled >= lagWrong {
		f.Status = Wrong
	}
	if l.Own == 0 {
		f.Status = Warning
		f.Advice = "all of them are from other programs: if the workers run with --relay-only-own, use it here, too; else " + f.Advice
	}
	return f
}

func (d postgresDoctor) slots(ctx context.Context, conn *pgx.Conn, r *Report) error {
	rows, _ := conn.Query(ctx, `
		SELECT slot_name::text, coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint
		FROM pg_replication_slots WHERE NOT active ORDER BY 2 DESC LIMIT 5`)
	var name string
	var kept int64
	_, err := pgx.ForEachRow(rows, []any{&name, &kept}, func() error {
		what := fmt.Sprintf("the replication slot %q has no reader, and keeps %s of log on disk", name, size(kept))
		r.warn(what, "start its reader, or: SELECT pg_drop_replication_slot('"+name+"')")
		return nil
	})
	if err != nil {
		return err
	}
	r.otherwise("none is inactive")
	return nil
}

func (d postgresDoctor) letters(ctx context.Context, conn *pgx.Conn, r *Report) error {
	var count int
	err := conn.QueryRow(ctx, "SELECT count(*) FROM (SELECT FROM dead_letters WHERE state = 'waiting' LIMIT $1) AS letters", most+1).Scan(&count)
	if err != nil {
		return err
	}
	r.add(judgeLetters(count))
	return nil
}

func (d postgresDoctor) inbox(ctx context.Context, conn *pgx.Conn, r *Report) error {
	var count int
	var oldest *float64
	err := conn.QueryRow(ctx, `
		SELECT count(*), (SELECT extract(epoch FROM clock_timestamp() - min(handled_at))::float8 FROM handled)
		FROM (SELECT FROM handled LIMIT $1) AS records`, most+1).Scan(&count, &oldest)
	if err != nil {
		return err
	}
	var age time.Duration
	if oldest != nil {
		age = time.Duration(*oldest * float64(time.Second))
	}
	r.add(judgeInbox(count, age, d.settings.InboxRetention))
	return nil
}

func judgeLetters(count int) Finding {
	if count == 0 {
		return fine("none waiting")
	}
	return warning(counted(count, "dead letter"), "see `worker dlq list`; fix the cause, then run `worker dlq replay`")
}

// pruneSlack is how long pruning may lag behind the retention.
const pruneSlack = time.Hour

func judgeInbox(count int, oldest, retention time.Duration) Finding {
	size := counted(count, "record")
	switch {
	case retention > 0 && oldest > retention+pruneSlack:
		return warning(fmt.Sprintf("%s, the oldest is %s old, which is beyond the retention of %s", size, ago(oldest), retention),
			"check whether a worker runs: the leader prunes the inbox")
	case count == 0:
		return fine("empty")
	default:
		return fine("%s, the oldest is %s old", size, ago(oldest))
	}
}

func counted(n int, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case n > most:
		return fmt.Sprintf("more than %d %ss", most, noun)
	default:
		return fmt.Sprintf("%d %ss", n, noun)
	}
}

func size(bytes int64) string { return humanize.IBytes(uint64(bytes)) }

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

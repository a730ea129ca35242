package postgres_test

import (
	"context"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
)

// changes are the ways to change what has happened.
var changes = []string{ //nolint:gochecknoglobals // a constant
	"UPDATE events SET event_data = 'null'",
	"UPDATE events SET event_data = 'null' WHERE false",
	"DELETE FROM events",
	"TRUNCATE events",
	`INSERT INTO events (event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, correlation_id,
		event_data) SELECT event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, correlation_id,
		'null' FROM events ON CONFLICT (event_id) DO UPDATE SET event_data = excluded.event_data`,
}

func requireInsufficientPrivilege(t *testing.T, err error) {
	t.Helper()
	var refusal *pgconn.PgError
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, "42501", refusal.Code)
}

func TestOwnerCannotChangeEvents(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	s, stream := open(t, address), storetest.NewStream()
	require.NoError(t, s.Append(t.Context(), stream.Next()))
	conn := connect(t, address)
	for _, change := range changes {
		_, err := conn.Exec(t.Context(), change)
		requireInsufficientPrivilege(t, err)
	}
	page, err := s.ByTenant(t.Context(), stream.TenantID, store.Query{})
	require.NoError(t, err)
	require.Len(t, page.Events, 1)
	require.JSONEq(t, `{"name":"Ana"}`, string(page.Events[0].Data))
}

// The worker does all its work as a role that roles.sql has granted what it needs, and that can change nothing.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	owner := migrated(t)
	role := "worker_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	admin := connect(t, owner)
	_, err := admin.Exec(t.Context(), "CREATE ROLE "+role+" LOGIN PASSWORD 'least'")
	require.NoError(t, err)
	t.Cleanup(func() { dropRole(t, owner, role) })
	runFile(t, owner, "roles.sql", map[string]string{"worker": role})
	address, err := url.Parse(owner)
	require.NoError(t, err)
	address.User = url.UserPassword(role, "least")
	s, err := postgres.Open(t.Context(), address.String(), postgres.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()

	stream := storetest.NewStream()
	require.NoError(t, s.Ping(t.Context()))
	_, err = s.MigrationStatus(t.Context())
	require.NoError(t, err)
	tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 10})
	first := stream.Next()
	require.NoError(t, s.Append(t.Context(), first))
	require.NoError(t, s.Record(t.Context(), "handler", first, stream.Take(1)))
	require.ErrorIs(t, s.Record(t.Context(), "handler", first, nil), store.ErrHandled)
	require.NoError(t, s.Park(t.Context(), "other", first))
	_, err = s.Parked(t.Context(), first, []string{"other"})
	require.NoError(t, err)
	pruned, err := s.PruneHandled(t.Context(), 0, 10)
	require.NoError(t, err)
	require.Equal(t, 1, pruned)
	tail.Take(t, 2)
	tail.Close(t)
	page, err := s.ByType(t.Context(), first.Type, store.Query{})
	require.NoError(t, err)
	require.Len(t, page.Events, 2)
	useLetters(t, deadletter.NewTable(s.SQL()))
	require.NoError(t, s.Try(t.Context(), func(ctx context.Context, d *store.DryRun) error {
		return d.AppendMany(ctx, stream.Take(1))
	}))

	conn := connect(t, address.String())
	for _, change := range changes {
		_, err := conn.Exec(t.Context(), change)
		requireInsufficientPrivilege(t, err)
	}
	for _, change := range []string{
		"DROP TABLE events", "ALTER TABLE events DISABLE TRIGGER ALL", "DROP TRIGGER events_append_only ON events",
		"UPDATE handled SET handled_at = now()", "TRUNCATE handled", "TRUNCATE dead_letters", "SET session_replication_role = replica",
	} {
		_, err := conn.Exec(t.Context(), change)
		requireInsufficientPrivilege(t, err)
	}

	restore(t, admin, farAhead)
	_, err = s.MigrateRestored(t.Context())
	require.ErrorContains(t, err, "permission denied", "that needs the owner")
}

// useLetters does all that a table of dead letters can do.
func useLetters(t *testing.T, table *deadletter.Table) {
	t.Helper()
	ctx := t.Context()
	body, err := storetest.NewStream().Next().MarshalJSON()
	require.NoError(t, err)
	event := deadletter.Arrival{Letter: deadletter.Complete(deadletter.Letter{Body: body, Failure: deadletter.Failure{Handler: "h", Reason: "r"}})}
	plain := deadletter.Arrival{Letter: deadletter.Complete(deadletter.Letter{Body: []byte("x")}), Redelivered: true}
	require.NoError(t, table.Ingest(ctx, []deadletter.Arrival{event, plain}))
	require.NoError(t, table.Acked(ctx, []deadletter.Arrival{event, plain}))
	event.ID, event.LastFailed, event.Reason = "1", time.Now().Add(time.Minute), "again"
	require.NoError(t, table.Ingest(ctx, []deadletter.Arrival{event}))
	require.NoError(t, table.Put(ctx, message.NewMessage("1", []byte("y")), deadletter.Failure{Reason: "r"}))
	var letters []deadletter.Letter
	for l, err := range table.Read(ctx, deadletter.Filter{}) {
		require.NoError(t, err)
		letters = append(letters, l)
	}
	require.Len(t, letters, 3)
	of := func(l deadletter.Letter) deadletter.Filter { return deadletter.Filter{IDs: []string{l.ID}} }
	for _, call := range []func() error{
		func() error { _, err := table.Find(ctx, letters[0].ID); return err },
		func() error { _, err := table.Count(ctx); return err },
		func() error { _, err := table.Groups(ctx, deadletter.Filter{}); return err },
		func() error { _, err := table.Failed(ctx, []uuid.UUID{uuid.New()}); return err },
		func() error {
			_, err := table.PutAside(ctx, of(letters[0]), deadletter.Discarded, audit.Actor{})
			return err
		},
		func() error {
			_, err := table.Restore(ctx, deadletter.Filter{States: []deadletter.State{deadletter.Discarded}}, audit.Actor{By: "ana"})
			return err
		},
		func() error {
			_, err := table.Edit(ctx, letters[2].ID, func(body []byte, _ func([]byte) error) ([]byte, error) {
				return deadletter.Patch(body, []byte(`{"event_data":{"x":1}}`))
			}, audit.Actor{By: "ana"})
			return err
		},
		func() error { return table.Settled(ctx, letters[2].ID, "r", []string{"h"}, true) },
	} {
		require.NoError(t, call())
	}
	replaying, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		deadletter.NewReplayer(table, taker{}, slog.New(slog.DiscardHandler)).Run(replaying, nil)
	}()
	var last deadletter.Progress
	for p, err := range table.Replay(ctx, of(letters[0]), deadletter.ReplayOptions{Handler: "renamed"}) {
		require.NoError(t, err)
		last = p
	}
	stop()
	<-ended
	require.Equal(t, 1, last.Sent)
	file, err := os.Create(filepath.Join(t.TempDir(), "letters"))
	require.NoError(t, err)
	defer file.Close()
	n, err := table.ExportAndRemove(ctx, of(letters[1]), file, audit.Actor{})
	require.NoError(t, err)
	require.Equal(t, 1, n)
	_, err = file.Seek(0, io.SeekStart)
	require.NoError(t, err)
	counts, err := table.Import(ctx, file, true, audit.Actor{})
	require.NoError(t, err)
	require.Equal(t, deadletter.ImportCounts{Lines: 1, Imported: 1}, counts)
	_, err = table.PurgeWaiting(ctx, audit.Actor{})
	require.NoError(t, err)
	n, err = table.PurgeDecided(ctx, time.Now().Add(time.Hour), 10, nil)
	require.NoError(t, err)
	require.Equal(t, 2, n, "what was edited and what was handled")
}

// taker is a bus that takes all.
type taker struct{}

func (taker) PublishLetters(_ context.Context, letters []deadletter.Release) ([]deadletter.Sending, error) {
	return make([]deadletter.Sending, len(letters)), nil
}

func dropRole(t *testing.T, owner, role string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, owner)
	require.NoError(t, err)
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "DROP OWNED BY "+role+"; DROP ROLE "+role)
	require.NoError(t, err)
}

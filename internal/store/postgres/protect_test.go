package postgres_test

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

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
	require.NoError(t, s.UnparkAll(t.Context()))
	pruned, err := s.PruneHandled(t.Context(), 0, 10)
	require.NoError(t, err)
	require.Equal(t, 1, pruned)
	tail.Take(t, 2)
	tail.Close(t)
	page, err := s.ByType(t.Context(), first.Type, store.Query{})
	require.NoError(t, err)
	require.Len(t, page.Events, 2)
	useShelf(t, s)
	useArchive(t, s)
	require.NoError(t, s.Try(t.Context(), func(ctx context.Context, trial store.Trial) error {
		return trial.AppendMany(ctx, stream.Take(1))
	}))

	conn := connect(t, address.String())
	for _, change := range changes {
		_, err := conn.Exec(t.Context(), change)
		requireInsufficientPrivilege(t, err)
	}
	for _, change := range []string{
		"DROP TABLE events", "ALTER TABLE events DISABLE TRIGGER ALL", "DROP TRIGGER events_append_only ON events",
		"UPDATE handled SET handled_at = now()", "TRUNCATE handled", "DELETE FROM archived_letters", "SET session_replication_role = replica",
	} {
		_, err := conn.Exec(t.Context(), change)
		requireInsufficientPrivilege(t, err)
	}
}

func useShelf(t *testing.T, s deadletter.Shelf) {
	t.Helper()
	_, err := s.AddLetter(t.Context(), deadletter.Letter{Body: []byte("{}")})
	require.NoError(t, err)
	letters, err := s.Letters(t.Context(), "", 1)
	require.NoError(t, err)
	_, err = s.RequestReplay(t.Context(), letters[0].ID)
	require.NoError(t, err)
	require.NoError(t, s.RemoveLetter(t.Context(), letters[0].ID))
	_, err = s.PurgeLetters(t.Context())
	require.NoError(t, err)
}

func useArchive(t *testing.T, a deadletter.ArchiveTable) {
	t.Helper()
	ids, err := a.AddArchived(t.Context(), []deadletter.ArchivedLetter{{Disposition: deadletter.Discarded}})
	require.NoError(t, err)
	_, err = a.ArchivedLetters(t.Context(), "", 1)
	require.NoError(t, err)
	require.NoError(t, a.BeginRestore(t.Context(), ids, "ana"))
	require.NoError(t, a.EndRestore(t.Context(), ids))
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

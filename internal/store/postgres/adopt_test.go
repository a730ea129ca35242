package postgres_test

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
	"github.com/healz/worker/internal/test/testservers"
)

// foreignSQL is the table as a NestJS service's own migration makes it.
const foreignSQL = `
CREATE TABLE events (
	id bigserial PRIMARY KEY NOT NULL,
	event_id uuid DEFAULT gen_random_uuid() NOT NULL,
	event_type varchar(100) NOT NULL,
	aggregate_type varchar(50) NOT NULL,
	aggregate_id uuid NOT NULL,
	aggregate_version integer NOT NULL,
	tenant_id uuid NOT NULL,
	clinic_id uuid,
	causation_id uuid,
	correlation_id uuid NOT NULL,
	user_id uuid,
	created_at timestamp with time zone DEFAULT now() NOT NULL,
	event_data jsonb NOT NULL,
	metadata jsonb DEFAULT '{}'::jsonb,
	CONSTRAINT events_event_id_unique UNIQUE (event_id)
);
CREATE UNIQUE INDEX events_aggregate_version_unique ON events (aggregate_id, aggregate_version);
CREATE INDEX idx_events_aggregate ON events (aggregate_type, aggregate_id);
CREATE INDEX idx_events_correlation ON events (correlation_id);
CREATE INDEX idx_events_causation ON events (causation_id);
CREATE INDEX idx_events_tenant ON events (tenant_id);
CREATE INDEX idx_events_type ON events (event_type);
CREATE INDEX idx_events_created_at ON events (created_at);`

// foreign returns the URL of a database in which another service has made the table, with rows.
func foreign(t *testing.T, rows []events.Event) string {
	t.Helper()
	url := testservers.Postgres(t)
	conn := connect(t, url)
	_, err := conn.Exec(t.Context(), foreignSQL)
	require.NoError(t, err)
	for _, e := range rows {
		insert(t, conn, e)
	}
	return url
}

func TestAdoptsTableWithRows(t *testing.T) {
	t.Parallel()
	stream := storetest.NewStream()
	old := stream.Take(3)
	url := foreign(t, old)
	s := open(t, url)

	require.ErrorIs(t, s.Ping(t.Context()), store.ErrNoSchema)
	require.NoError(t, s.Migrate(t.Context()))
	require.NoError(t, s.Ping(t.Context()))

	page, err := s.ByAggregate(t.Context(), stream.AggregateType, stream.AggregateID, store.Query{})
	require.NoError(t, err)
	requireIDs(t, old, page.Events)
	fresh := stream.Take(2)
	require.NoError(t, s.Append(t.Context(), fresh[0]))
	insert(t, connect(t, url), fresh[1])
	requireIDs(t, fresh, storetest.Subscribe(t, s, store.TailConfig{BatchSize: 10}).Take(t, 2))
}

func TestRelaysAdoptedRowsWhenTold(t *testing.T) {
	t.Parallel()
	stream := storetest.NewStream()
	want := stream.Take(3)
	s := open(t, foreign(t, want))
	require.NoError(t, s.Migrate(t.Context()))
	want = append(want, stream.Next())
	require.NoError(t, s.Append(t.Context(), want[3]))

	tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 10, Start: store.StartBeginning})

	requireIDs(t, want, tail.Take(t, 4))
}

// Ids may be below 1, of adopted rows as of those of a transaction that runs while the relay begins at the end.
func TestRelaysRowsWithLowIDs(t *testing.T) {
	t.Parallel()
	for _, start := range []store.Start{store.StartBeginning, store.StartEnd} {
		stream := storetest.NewStream()
		url := foreign(t, nil)
		conn := connect(t, url)
		_, err := conn.Exec(t.Context(), "ALTER SEQUENCE events_id_seq MINVALUE -100 RESTART WITH -5")
		require.NoError(t, err)
		want := stream.Take(2)
		insert(t, conn, want[0])
		s := open(t, url)
		require.NoError(t, s.Migrate(t.Context()))
		tx, err := connect(t, url).Begin(t.Context())
		require.NoError(t, err)
		insert(t, tx, want[1])
		tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 10, Start: start})
		require.NoError(t, tx.Commit(t.Context()))
		if start == store.StartEnd {
			want = want[1:]
		}
		requireIDs(t, want, tail.Take(t, len(want)))
	}
}

// A transaction that began before the migration must not fall behind the adopted rows.
func TestAdoptionPassesNoRunningTransaction(t *testing.T) {
	t.Parallel()
	stream := storetest.NewStream()
	url := foreign(t, stream.Take(1))
	tx, err := connect(t, url).Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "SELECT pg_current_xact_id()")
	require.NoError(t, err)
	s := open(t, url)
	require.NoError(t, s.Migrate(t.Context()))
	late := stream.Next()
	insert(t, tx, late)
	require.NoError(t, tx.Commit(t.Context()))

	requireIDs(t, []events.Event{late}, storetest.Subscribe(t, s, store.TailConfig{BatchSize: 10}).Take(t, 1))
}

func TestRefusesTableThatIsNotTheContracts(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ change, problem string }{
		"another type": {
			"ALTER TABLE events ALTER COLUMN event_type TYPE text", "event_type is text not null, not character varying(100)",
		},
		"nullable":      {"ALTER TABLE events ALTER COLUMN tenant_id DROP NOT NULL", "tenant_id is uuid, not uuid not null"},
		"missing":       {"ALTER TABLE events DROP COLUMN user_id", "user_id is missing, not uuid"},
		"no uniqueness": {"ALTER TABLE events DROP CONSTRAINT events_event_id_unique", "event_id is not unique"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := foreign(t, storetest.NewStream().Take(1))
			conn := connect(t, url)
			_, err := conn.Exec(t.Context(), test.change)
			require.NoError(t, err)
			s := open(t, url)

			err = s.Migrate(t.Context())

			require.ErrorIs(t, err, store.ErrForeignTable)
			require.ErrorContains(t, err, test.problem)
			require.NotContains(t, err.Error(), "DECLARE", "no text of a statement")
			require.ErrorIs(t, postgres.CheckAdoption(t.Context(), conn), store.ErrForeignTable)
			var touched bool
			require.NoError(t, conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM information_schema.columns
				WHERE table_name = 'events' AND column_name = 'transaction_id')`).Scan(&touched))
			require.False(t, touched)
		})
	}
}

// Rows that break the contract are named, and the table is left as it is. The doctor says the same: see package doctor.
func TestRefusesRowsThatBreakTheContract(t *testing.T) {
	t.Parallel()
	stream := storetest.NewStream()
	for name, test := range map[string]struct {
		change   string
		versions []int
		problem  string
	}{
		"versions from 0": {"", []int{0, 1, 2}, "rows with aggregate_version below 1, the first of an aggregate: 1 (id 1)"},
		"many":            {"", []int{0, -1, -2, -3, -4, -5, 7}, "below 1, the first of an aggregate: 6 (id 1 2 3 4 5 …)"},
		"duplicates": {
			"DROP INDEX events_aggregate_version_unique",
			[]int{1, 2, 3, 2, 2},
			"rows with the same aggregate_id and aggregate_version as another: 3 (id 2 4 5)",
		},
		"duplicates, with an index of that name that is not unique": {
			"DROP INDEX events_aggregate_version_unique; CREATE INDEX events_aggregate_version_unique ON events (aggregate_id)",
			[]int{1, 1},
			"as another: 2 (id 1 2); the index events_aggregate_version_unique is not a unique one",
		},
		"both": {"DROP INDEX events_aggregate_version_unique", []int{0, 0}, "below 1, the first of an aggregate: 2 (id 1 2); rows with the same"},
		"an index of that name that is not unique": {
			"DROP INDEX events_aggregate_version_unique; CREATE INDEX events_aggregate_version_unique ON events (aggregate_id, aggregate_version)",
			[]int{1, 2},
			"the index events_aggregate_version_unique is not a unique one",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := foreign(t, nil)
			conn := connect(t, url)
			_, err := conn.Exec(t.Context(), test.change)
			require.NoError(t, err)
			for _, version := range test.versions {
				insert(t, conn, stream.At(version))
			}
			s := open(t, url)

			err = s.Migrate(t.Context())

			require.ErrorIs(t, err, store.ErrUnfitTable)
			require.ErrorContains(t, err, test.problem)
			require.NotContains(t, err.Error(), "DECLARE", "no text of a statement")
			require.NotContains(t, err.Error(), string(stream.At(1).Data))
			var columns int
			require.NoError(t, conn.QueryRow(t.Context(),
				"SELECT count(*) FROM information_schema.columns WHERE table_name = 'events'").Scan(&columns))
			require.Equal(t, 14, columns)
			if name != "versions from 0" {
				return
			}
			text, err := os.ReadFile("../../../docs/operations.md")
			require.NoError(t, err)
			_, advice, _ := strings.Cut(string(text), "row by row:\n")
			advice, _, _ = strings.Cut(advice, "The service")
			_, err = conn.Exec(t.Context(), advice)
			require.NoError(t, err)
			require.NoError(t, s.Migrate(t.Context()), "as operations.md advises")
			page, err := s.ByAggregate(t.Context(), stream.AggregateType, stream.AggregateID, store.Query{})
			require.NoError(t, err)
			require.Len(t, page.Events, 3)
		})
	}
}

// The check reads the whole table. On a connection of the pool it would fail after [answerTimeout].
func TestAdoptionIsNotCheckedOnThePool(t *testing.T) {
	t.Parallel()
	s, err := postgres.Open(t.Context(), foreign(t, []events.Event{storetest.NewStream().At(0)}), postgres.Options{MaxConns: 1})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	conn, err := s.Pool().Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	require.ErrorIs(t, s.Migrate(ctx), store.ErrUnfitTable)
}

// A service can insert versions below 1 after the adoption. Reads hide no event, so that the aggregate is not loaded
// without one.
func TestVersionsBelow1AreRead(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	s, conn, stream := open(t, address), connect(t, address), storetest.NewStream()
	want := []int{-1, 0, 1, 2}
	for _, version := range want {
		insert(t, conn, stream.At(version))
	}

	var paged, streamed, after1 []int
	for q := (store.Query{Limit: 1}); ; {
		page, err := s.ByAggregate(t.Context(), stream.AggregateType, stream.AggregateID, q)
		require.NoError(t, err)
		for _, e := range page.Events {
			paged = append(paged, e.AggregateVersion)
		}
		if q.After = page.Next; q.After == "" {
			break
		}
	}
	for e, err := range s.Stream(t.Context(), stream.AggregateType, stream.AggregateID, 0) {
		require.NoError(t, err)
		streamed = append(streamed, e.AggregateVersion)
	}
	for e, err := range s.Stream(t.Context(), stream.AggregateType, stream.AggregateID, 1) {
		require.NoError(t, err)
		after1 = append(after1, e.AggregateVersion)
	}

	require.Equal(t, want, paged)
	require.Equal(t, want, streamed)
	require.Equal(t, []int{2}, after1)
}

func TestDownNeverDestroysEvents(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		url   func(*testing.T, []events.Event) string
		rows  int
		stays bool
	}{
		"of a foreign table with rows": {foreign, 3, true},
		"of an empty foreign table":    {foreign, 0, true},
		"of the worker's with rows":    {migratedWith, 3, true},
		"of the worker's, empty":       {migratedWith, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stream := storetest.NewStream()
			url := test.url(t, stream.Take(test.rows))
			s := open(t, url)
			conn := connect(t, url)
			require.NoError(t, s.Migrate(t.Context()))
			_, err := conn.Exec(t.Context(), `INSERT INTO relay_position (transaction_id, id)
				SELECT transaction_id, id FROM events ORDER BY transaction_id DESC, id DESC LIMIT 1`)
			require.NoError(t, err, "all is relayed")

			versions, err := s.MigrationStatus(t.Context())
			require.NoError(t, err)
			for range versions {
				require.NoError(t, s.MigrateDown(t.Context()))
			}

			require.ErrorIs(t, s.MigrateDown(t.Context()), store.ErrNoSchema)
			var exists bool
			require.NoError(t, conn.QueryRow(t.Context(), "SELECT to_regclass('events') IS NOT NULL").Scan(&exists))
			require.Equal(t, test.stays, exists)
			if test.stays {
				requireColumns(t, url)
				insert(t, conn, stream.Next())
				_, err := conn.Exec(t.Context(), "UPDATE events SET created_at = created_at")
				require.NoError(t, err, "the triggers are gone")
				var count int
				require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM events").Scan(&count))
				require.Equal(t, test.rows+1, count)
			}

			require.NoError(t, s.Migrate(t.Context()))
			require.NoError(t, s.Append(t.Context(), stream.Next()))
		})
	}
}

// What came after the migration, whoever wrote it, would be taken for adopted and passed over.
func TestDownKeepsAnAdoptedTableThatHasGoneOn(t *testing.T) {
	t.Parallel()
	stream := storetest.NewStream()
	url := foreign(t, stream.Take(3))
	s := open(t, url)
	require.NoError(t, s.Migrate(t.Context()))
	fresh := stream.Next()
	insert(t, connect(t, url), fresh)

	var err error
	for err == nil {
		err = s.MigrateDown(t.Context())
	}

	require.ErrorIs(t, err, store.ErrWouldLose)
	require.ErrorContains(t, err, "events that were not relayed yet")
	require.NoError(t, s.Migrate(t.Context()))
	tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 10})
	requireIDs(t, []events.Event{fresh}, tail.Take(t, 1))
}

// migratedWith returns the URL of a database whose table the worker made.
func migratedWith(t *testing.T, rows []events.Event) string {
	t.Helper()
	url := migrated(t)
	require.NoError(t, open(t, url).AppendMany(t.Context(), rows))
	return url
}

// requireColumns checks that the table is the contract's again, indexes and all.
func requireColumns(t *testing.T, url string) {
	t.Helper()
	conn := connect(t, url)
	var columns int
	require.NoError(t, conn.QueryRow(t.Context(),
		"SELECT count(*) FROM information_schema.columns WHERE table_name = 'events'").Scan(&columns))
	require.Equal(t, 14, columns)
	var indexes int
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_indexes WHERE tablename = 'events'
		AND indexname IN ('events_aggregate_version_unique', 'idx_events_aggregate', 'idx_events_correlation',
			'idx_events_causation', 'idx_events_tenant', 'idx_events_type', 'idx_events_created_at')`).Scan(&indexes))
	require.Equal(t, 7, indexes)
}

func TestMigrateTwiceAndAtOnce(t *testing.T) {
	t.Parallel()
	url := testservers.Postgres(t)
	results := make([]error, 3)
	var done sync.WaitGroup
	for i := range results {
		s := open(t, url)
		done.Go(func() { results[i] = s.Migrate(t.Context()) })
	}
	done.Wait()
	for _, err := range results {
		require.NoError(t, err)
	}

	s := open(t, url)
	require.NoError(t, s.Migrate(t.Context()))
	status, err := s.MigrationStatus(t.Context())
	require.NoError(t, err)
	require.Greater(t, len(status), 4)
	require.Equal(t, "events", status[0].Name)
	for i, v := range status {
		require.EqualValues(t, i+1, v.Version)
		require.False(t, v.AppliedAt.IsZero())
	}
}

func TestSchemas(t *testing.T) {
	t.Parallel()
	url := testservers.Postgres(t)
	conn := connect(t, url)
	_, err := conn.Exec(t.Context(), "CREATE SCHEMA one; CREATE SCHEMA other")
	require.NoError(t, err)
	one := open(t, withParameter(t, url, "search_path", "one"))
	other := open(t, withParameter(t, url, "search_path", "other"))
	require.NoError(t, one.Migrate(t.Context()))
	stream := storetest.NewStream()
	require.NoError(t, one.Append(t.Context(), stream.Next()))

	require.ErrorIs(t, other.Ping(t.Context()), store.ErrNoSchema)
	require.ErrorIs(t, other.Append(t.Context(), stream.Next()), store.ErrNoSchema)
	_, err = other.Tail(t.Context(), store.TailConfig{BatchSize: 1})
	require.ErrorIs(t, err, store.ErrNoSchema)
	require.NoError(t, other.Migrate(t.Context()))
	version, err := other.Version(t.Context(), stream.AggregateType, stream.AggregateID)
	require.NoError(t, err)
	require.Zero(t, version)

	_, err = conn.Exec(t.Context(), "INSERT INTO other.worker_migrations (version_id, is_applied) VALUES (99, true)")
	require.NoError(t, err)
	require.NoError(t, other.Ping(t.Context()))
	require.NoError(t, other.Migrate(t.Context()))
	require.ErrorIs(t, other.MigrateDown(t.Context()), store.ErrNewerSchema)
	_, err = conn.Exec(t.Context(), "COMMENT ON TABLE other.worker_migrations IS 'breaking: 98'")
	require.NoError(t, err)
	require.ErrorIs(t, other.Ping(t.Context()), store.ErrNewerSchema)
	require.ErrorIs(t, other.Migrate(t.Context()), store.ErrNewerSchema)
	_, err = conn.Exec(t.Context(),
		"DELETE FROM one.worker_migrations WHERE version_id = (SELECT max(version_id) FROM one.worker_migrations)")
	require.NoError(t, err)
	require.ErrorIs(t, one.Ping(t.Context()), store.ErrNoSchema, "an older schema")
}

// runFile runs one of the files that are no migrations, with psql's variables filled in.
func runFile(t *testing.T, url, name string, variables map[string]string) {
	t.Helper()
	text, err := os.ReadFile("../../../migrations/postgres/" + name)
	require.NoError(t, err)
	statements := string(text)
	for variable, value := range variables {
		statements = strings.ReplaceAll(statements, `:"`+variable+`"`, `"`+value+`"`)
	}
	_, err = connect(t, url).Exec(t.Context(), statements)
	require.NoError(t, err)
}

func requireIDs(t *testing.T, want, got []events.Event) {
	t.Helper()
	require.Len(t, got, len(want))
	for i := range want {
		require.Equal(t, want[i].ID, got[i].ID, "event %d is version %d", i, got[i].AggregateVersion)
	}
}

func TestDownLosesNothing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		version int // that is not taken back
		fill    func(*testing.T, *postgres.Store, *storetest.Stream)
	}{
		"what is parked": {6, func(t *testing.T, s *postgres.Store, stream *storetest.Stream) {
			t.Helper()
			require.NoError(t, s.Park(t.Context(), "h", stream.Next()))
		}},
		"dead letters": {9, func(t *testing.T, s *postgres.Store, _ *storetest.Stream) {
			t.Helper()
			require.NoError(t, deadletter.NewTable(s.SQL()).Ingest(t.Context(), []deadletter.Arrival{{Letter: deadletter.Letter{Body: []byte("x")}}}))
		}},
		"events that were not relayed": {3, func(t *testing.T, s *postgres.Store, stream *storetest.Stream) {
			t.Helper()
			require.NoError(t, s.Append(t.Context(), stream.Next()))
		}},
		"the record of what was handled": {2, func(t *testing.T, s *postgres.Store, stream *storetest.Stream) {
			t.Helper()
			require.NoError(t, s.Record(t.Context(), "h", stream.Next(), nil))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, migratedWith(t, nil))
			test.fill(t, s, storetest.NewStream())
			versions, err := s.MigrationStatus(t.Context())
			require.NoError(t, err)
			for range len(versions) - test.version {
				require.NoError(t, s.MigrateDown(t.Context()))
			}
			require.ErrorIs(t, s.MigrateDown(t.Context()), store.ErrWouldLose)
			require.NoError(t, s.Migrate(t.Context()))
		})
	}
}

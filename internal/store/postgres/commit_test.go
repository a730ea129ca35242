package postgres_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
	"github.com/healz/worker/internal/test/testservers"
)

// writers are all kinds of writes of a store: of its own, of the relay, and of other packages (ingest and replay of dead
// letters). The setting up is not part of them.
func writers(t *testing.T, s *postgres.Store) map[string]func() error {
	t.Helper()
	tail := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 10})
	fence, err := tail.TakeLease(t.Context(), "task", "me", time.Minute)
	require.NoError(t, err)
	_, err = s.SQL().DB.ExecContext(t.Context(), "CREATE TABLE notes (id uuid)")
	require.NoError(t, err)
	return map[string]func() error{
		"append":      func() error { return s.Append(t.Context(), storetest.NewStream().Next()) },
		"append many": func() error { return s.AppendMany(t.Context(), storetest.NewStream().Take(3)) },
		"record":      func() error { return s.Record(t.Context(), "h", storetest.NewStream().Next(), nil) },
		"record with work": func() error {
			ctx := s.Attempt(t.Context())
			require.NoError(t, postgres.InTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "INSERT INTO notes VALUES (gen_random_uuid())")
				return err
			}))
			return s.Record(ctx, "h", storetest.NewStream().Next(), nil)
		},
		"park":  func() error { return s.Park(t.Context(), "h", storetest.NewStream().Next()) },
		"lease": func() error { _, err := tail.TakeLease(t.Context(), "task", fence.Holder, time.Minute); return err },
		"write of another package": func() error {
			return s.SQL().Write(t.Context(), "note", func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, "INSERT INTO notes VALUES ($1)", uuid.New())
				return err
			})
		},
	}
}

// Row 16 of issue 11: a COMMIT that the server refuses is a failure of the call, whose outcome is known, and leaves nothing
// behind; the next call succeeds.
func TestRefusedCommitShows(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	s, admin := open(t, address), connect(t, address)
	calls := writers(t, s)
	_, err := admin.Exec(t.Context(), `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN RAISE check_violation USING MESSAGE = 'refused at the commit'; END $$`)
	require.NoError(t, err)
	tables := []string{"events", "handled", "parked", "leases", "notes"}
	for _, table := range tables {
		_, err := admin.Exec(t.Context(), fmt.Sprintf("CREATE CONSTRAINT TRIGGER refuse AFTER INSERT OR UPDATE ON %s "+
			"DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()", table))
		require.NoError(t, err)
	}
	rows := func() (n int) {
		require.NoError(t, admin.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM handled) + "+
			"(SELECT count(*) FROM parked) + (SELECT count(*) FROM notes)").Scan(&n))
		return n
	}
	for name, call := range calls {
		err := call()
		require.ErrorContains(t, err, "SQLSTATE 23514", name)
		require.NotErrorIs(t, err, store.ErrUnknownOutcome, name)
		require.Zero(t, rows(), name)
	}
	for _, table := range tables {
		_, err := admin.Exec(t.Context(), "DROP TRIGGER refuse ON "+table)
		require.NoError(t, err)
	}
	for name, call := range calls {
		require.NoError(t, call(), name)
	}
	require.NotZero(t, rows())
}

// Row 16 of issue 11: a connection that is cut while a transaction is committed is an error, and the next call succeeds. A
// write whose outcome cannot be known says so, also if a pooler, which has lost the connection, answers in the server's place.
func TestConnectionCutAtTheCommit(t *testing.T) {
	t.Parallel()
	for _, pooler := range []string{"none", "session", "transaction"} {
		t.Run("pooler "+pooler, func(t *testing.T) {
			t.Parallel()
			target, err := url.Parse(migrated(t))
			require.NoError(t, err)
			cutter := newCutter(t, target.Host)
			target.Host = cutter.address
			address := target.String()
			if pooler != "none" {
				address = testservers.PGBouncer(t, address, pooler)
			}
			s := open(t, address)
			for name, call := range writers(t, s) {
				require.NoError(t, call(), name) // the statements are prepared
				cutter.armed.Store(true)
				err := call()
				require.Error(t, err, name)
				require.False(t, cutter.armed.Load(), name)
				if name != "park" && name != "lease" { // which may be repeated
					require.ErrorIs(t, err, store.ErrUnknownOutcome, name)
				}
				require.Eventually(t, func() bool { return call() == nil }, 30*time.Second, 10*time.Millisecond, name)
			}

			// Concurrent appends share a statement, which no caller may repeat alone then.
			for range 5 {
				cutter.armed.Store(true)
				var appends sync.WaitGroup
				for range 20 {
					appends.Go(func() {
						err := s.Append(t.Context(), storetest.NewStream().Next())
						if err != nil && !errors.Is(err, store.ErrUnknownOutcome) {
							t.Errorf("an append that may be committed: %v", err)
						}
					})
				}
				appends.Wait()
				cutter.armed.Store(false)
			}
		})
	}
}

// cutter is a proxy that, when it is armed, cuts a connection as soon as the server has got a COMMIT, or a statement outside
// any transaction, whose answer is lost.
type cutter struct {
	address string
	armed   atomic.Bool
}

func newCutter(t *testing.T, target string) *cutter {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c := &cutter{address: listener.Addr().String()}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				return
			}
			running.Go(func() { c.pass(client, server) })
			running.Go(func() {
				_, _ = io.Copy(client, server)
				client.Close()
				server.Close()
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		running.Wait()
	})
	return c
}

func (c *cutter) pass(client, server net.Conn) {
	defer server.Close()
	defer client.Close()
	buffer := make([]byte, 64<<10)
	inTransaction := false
	for {
		n, err := client.Read(buffer)
		if err != nil {
			return
		}
		sent := buffer[:n]
		query := bytes.HasPrefix(sent, []byte("Q")) // of the simple protocol, behind its length
		is := func(word string) bool { return query && bytes.HasPrefix(sent[5:], []byte(word)) }
		inTransaction = inTransaction || is("begin")
		if !inTransaction && (sent[0] == 'P' || sent[0] == 'B') || is("commit") {
			if c.armed.CompareAndSwap(true, false) {
				client.Close()
				_, _ = server.Write(sent)
				return
			}
		}
		inTransaction = inTransaction && !is("commit") && !is("rollback")
		if _, err := server.Write(sent); err != nil {
			return
		}
	}
}

// Row 16 of issue 11: the timeouts of sessions that a database may set end sessions of the store, the relay and the
// listener. What they end is an outage, or a failure of the one call whose outcome is known, and all goes on.
func TestTimeoutsOfTheDatabase(t *testing.T) {
	t.Parallel()
	for _, setting := range []string{
		"idle_session_timeout", "idle_in_transaction_session_timeout", "statement_timeout", "lock_timeout", "transaction_timeout",
	} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			address := migrated(t)
			admin := connect(t, address)
			var known bool
			require.NoError(t, admin.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_settings WHERE name = $1)", setting).Scan(&known))
			if !known {
				require.Equal(t, "transaction_timeout", setting) // of Postgres 17
				return
			}
			_, err := admin.Exec(t.Context(), fmt.Sprintf("ALTER DATABASE %s SET %s = '300ms'",
				pgx.Identifier{admin.Config().Database}.Sanitize(), setting))
			require.NoError(t, err)
			s := open(t, address)
			// again does what a worker does when the database has ended a statement or a session.
			again := func(do func() error) {
				require.Eventually(t, func() bool {
					err := do()
					if err != nil {
						require.ErrorIs(t, err, store.ErrUnavailable)
					}
					return err == nil
				}, 30*time.Second, 10*time.Millisecond)
			}
			tail, err := s.Tail(t.Context(), store.TailConfig{BatchSize: 10})
			require.NoError(t, err)
			defer func() { require.NoError(t, tail.Close()) }()
			var fence store.Fence
			again(func() error {
				fence, err = tail.TakeLease(t.Context(), store.RelayTask, "a worker", time.Minute)
				return err
			})
			for range 3 {
				if setting == "idle_session_timeout" {
					again(func() error { return s.Ping(t.Context()) })
					requireSessionsEnd(t, admin)
				}
				e := storetest.NewStream().Next()
				again(func() error { return s.Append(t.Context(), e) })
				var batch store.Batch
				again(func() error {
					if batch, err = tail.Next(t.Context(), nil); err == nil && batch.Events == nil {
						return fmt.Errorf("%w: no batch yet", store.ErrUnavailable)
					}
					return err
				})
				require.Contains(t, string(batch.Events), e.ID.String())
				again(func() error { return tail.Move(t.Context(), batch.Position, fence) })
			}

			// A handler whose work keeps its transaction for too long has failed; others go on.
			cause := storetest.NewStream().Next()
			work := func(ctx context.Context, tx pgx.Tx) error {
				pid := tx.Conn().PgConn().PID()
				if setting == "statement_timeout" || setting == "transaction_timeout" {
					_, err := tx.Exec(ctx, "SELECT pg_sleep(60)")
					return err
				}
				if setting == "idle_in_transaction_session_timeout" {
					require.Eventually(t, func() bool {
						var ended bool
						err := admin.QueryRow(ctx, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", pid).Scan(&ended)
						return err == nil && ended
					}, 30*time.Second, 10*time.Millisecond)
				}
				_, err := tx.Exec(ctx, "SELECT 1")
				return err
			}
			for range 100 {
				ctx := s.Attempt(t.Context())
				require.NoError(t, postgres.InTx(ctx, work))
				if err = s.Record(ctx, "h", cause, nil); setting != "idle_session_timeout" || !errors.Is(err, store.ErrUnavailable) {
					break
				}
			}
			if setting == "idle_session_timeout" || setting == "lock_timeout" {
				require.NoError(t, err)
				return
			}
			var failed *store.WorkError
			require.ErrorAs(t, err, &failed)
			var handled []string
			again(func() error {
				handled, err = s.Handled(t.Context(), cause)
				return err
			})
			require.Empty(t, handled)
		})
	}
}

// requireSessionsEnd waits until no session of the store is idle any more.
func requireSessionsEnd(t *testing.T, admin *pgx.Conn) {
	t.Helper()
	require.Eventually(t, func() bool {
		var idle int
		err := admin.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
			AND application_name = 'worker' AND state = 'idle' AND query NOT LIKE '%LISTEN%'`).Scan(&idle)
		return err == nil && idle == 0
	}, 30*time.Second, 10*time.Millisecond)
}

// A panic in a transaction of another package, such as of the replay, ends the transaction.
func TestPanicInATransactionKeepsNoConnection(t *testing.T) {
	t.Parallel()
	s, err := postgres.Open(t.Context(), migrated(t), postgres.Options{MaxConns: 1})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	fault := errors.New("a fault")
	require.PanicsWithValue(t, fault, func() {
		_ = s.SQL().Write(ctx, "write", func(context.Context, *sql.Tx) error { panic(fault) })
	})
	require.NoError(t, s.Append(ctx, storetest.NewStream().Next()))
}

package postgres_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/storetest"
	"github.com/healz/worker/internal/test/testservers"
)

func TestOpenTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	const password = "pa55word"
	server, err := url.Parse(testservers.Postgres(t))
	require.NoError(t, err)
	unknownUser, unknownDatabase := *server, *server
	unknownUser.User = url.UserPassword("nobody_at_all", password)
	unknownDatabase.Path = "/no_such_database"
	for name, test := range map[string]struct {
		url         string
		unavailable bool
	}{
		"nothing listens":       {"postgres://u:" + password + "@127.0.0.1:1/db?connect_timeout=2", true},
		"no such host":          {"postgres://u:" + password + "@host.invalid/db?connect_timeout=2", true},
		"an unknown user":       {unknownUser.String(), false},
		"an unknown database":   {unknownDatabase.String(), false},
		"no URL":                {"://u:" + password + "@host", false},
		"a bad port":            {"postgres://u:" + password + "@host:port/db", false},
		"a bad escape":          {"postgres://u:" + password + "%zz@host/db", false},
		"a bad setting":         {"postgres://u:" + password + "@host/db?pool_max_conns=none", false},
		"a bad keyword":         {"host=h password='" + password, false},
		"the password in query": {"postgres://host:x/db?password=" + password, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := postgres.Open(t.Context(), test.url, postgres.Options{})
			require.Error(t, err)
			require.NotContains(t, err.Error(), password)
			require.Equal(t, test.unavailable, errors.Is(err, store.ErrUnavailable), "%v", err)
		})
	}
}

// What is JSON and the server does not take all the same is the event's fault: trying again would not help.
func TestJSONThatPostgresCannotHold(t *testing.T) {
	t.Parallel()
	s, stream := open(t, withParameter(t, migrated(t), "max_stack_depth", "100kB")), storetest.NewStream()
	deep := json.RawMessage(`{"a":` + strings.Repeat("[", 5_000) + strings.Repeat("]", 5_000) + `}`)
	batch := stream.Take(3)
	batch[1].Data = deep
	require.NoError(t, batch[1].Validate())

	requireUnfit(t, s.AppendMany(t.Context(), batch), "event_data", "event 2 of 3")
	requireUnfit(t, s.Record(t.Context(), "handler", storetest.NewStream().Next(), batch), "event_data", "event 2 of 3")
	batch[1].Data, batch[2].Metadata = json.RawMessage("1"), deep
	requireUnfit(t, s.AppendMany(t.Context(), batch), "metadata", "event 3 of 3")
	batch[2].Metadata = nil
	require.NoError(t, s.AppendMany(t.Context(), batch))
}

func withParameter(t *testing.T, address, name, value string) string {
	t.Helper()
	u, err := url.Parse(address)
	require.NoError(t, err)
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	return u.String()
}

func requireUnfit(t *testing.T, err error, field, where string) {
	t.Helper()
	var invalid *events.InvalidError
	require.ErrorAs(t, err, &invalid)
	require.Len(t, invalid.Fields, 1)
	require.Equal(t, field, invalid.Fields[0].Field)
	require.ErrorContains(t, err, where)
	require.NotErrorIs(t, err, store.ErrUnavailable)
}

func terminateAll(ctx context.Context, t *testing.T, db execer) {
	t.Helper()
	_, err := db.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	require.NoError(t, err)
}

// However sessions die during appends: what returned nil is there, and what returned an error is not, unless that says
// that it cannot know.
func TestSessionsTerminatedDuringAppends(t *testing.T) {
	t.Parallel()
	const writers, rounds = 6, 15
	address := migrated(t)
	s, admin := open(t, address), connect(t, address)
	type outcome struct {
		event events.Event
		err   error
	}
	results := make([][]outcome, writers)
	var stopped atomic.Bool
	var done sync.WaitGroup
	for i := range writers {
		done.Go(func() {
			for !stopped.Load() {
				e := storetest.NewStream().Next()
				var err error
				if len(results[i])%2 == 0 {
					err = s.Append(t.Context(), e)
				} else {
					err = s.Record(t.Context(), "handler", e, []events.Event{e})
				}
				results[i] = append(results[i], outcome{e, err})
			}
		})
	}
	pause := time.NewTicker(20 * time.Millisecond)
	defer pause.Stop()
	for range rounds {
		<-pause.C
		terminateAll(t.Context(), t, admin)
	}
	stopped.Store(true)
	done.Wait()

	succeeded, failed := 0, 0
	for _, outcomes := range results {
		for i, o := range outcomes {
			version, err := s.Version(t.Context(), o.event.AggregateType, o.event.AggregateID)
			require.NoError(t, err)
			handled, err := s.Handled(t.Context(), o.event)
			require.NoError(t, err)
			require.Equal(t, version == 1 && i%2 == 1, len(handled) == 1, "the record goes with its follow-ups")
			switch {
			case o.err == nil:
				succeeded++
				require.Equal(t, 1, version)
			case !errors.Is(o.err, store.ErrUnknownOutcome):
				failed++
				require.Zero(t, version, "%v", o.err)
				require.ErrorIs(t, o.err, store.ErrUnavailable)
			}
		}
	}
	require.NotZero(t, succeeded)
	require.NotZero(t, failed)
}

// A statement whose context ends is canceled, so that its outcome is known; and the connection serves on.
func TestCancellationDuringAppend(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	s, stream := open(t, address), storetest.NewStream()
	blocker, err := connect(t, address).Begin(t.Context())
	require.NoError(t, err)
	insert(t, blocker, stream.At(1)) // the append waits for what becomes of this version
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- s.Append(ctx, stream.At(1)) }()
	observer := connect(t, address)
	require.Eventually(t, func() bool {
		var waiting bool
		err := observer.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waiting)
		return err == nil && waiting
	}, time.Minute, 5*time.Millisecond)
	cancel()

	err = <-result

	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, store.ErrUnknownOutcome)
	require.NoError(t, blocker.Rollback(t.Context()))
	require.NoError(t, s.Append(t.Context(), stream.At(1)))
}

// A server that has gone silent in mid-append leaves the outcome unknown, and the call does not hang.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	address := migrated(t)
	target, err := url.Parse(address)
	require.NoError(t, err)
	through := newSilencer(t, target.Host)
	target.Host = through.address
	s, stream := open(t, target.String()), storetest.NewStream()
	require.NoError(t, s.Append(t.Context(), stream.Next()))
	through.silence()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()

	err = s.Append(ctx, stream.Next())

	require.ErrorIs(t, err, store.ErrUnknownOutcome)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	through.cut()
}

// silencer is a proxy that can keep connections open and pass nothing more.
type silencer struct {
	address string
	silence func()
	cut     func()
}

func newSilencer(t *testing.T, target string) *silencer {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	silent, silence := context.WithCancel(t.Context())
	var (
		running sync.WaitGroup
		mu      sync.Mutex
		open    = []io.Closer{listener}
	)
	running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := (&net.Dialer{}).DialContext(silent, "tcp", target)
			if err != nil {
				client.Close()
				return
			}
			mu.Lock()
			open = append(open, client, server)
			mu.Unlock()
			running.Go(func() { pass(silent, client, server) })
			running.Go(func() { pass(silent, server, client) })
		}
	})
	cut := sync.OnceFunc(func() {
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		running.Wait()
		silence()
	})
	t.Cleanup(cut)
	return &silencer{address: listener.Addr().String(), silence: silence, cut: cut}
}

// pass copies until an end is closed, and once it is to be silent swallows.
func pass(silent context.Context, from io.Reader, to io.Writer) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		if silent.Err() != nil {
			continue
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

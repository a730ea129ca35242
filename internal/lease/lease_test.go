package lease_test

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/lease"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/store/sqlite"
	"github.com/healz/worker/internal/test/testservers"
)

const (
	patience = 60 * time.Second
	tick     = 5 * time.Millisecond
	task     = "some task"
	// takeover is how long after the end of a holder another must be one: the promise is 5 s, the rest is for a busy machine.
	takeover = 8 * time.Second
)

// TestMain runs the tests, or, given a database, holds the lease until it is killed.
func TestMain(m *testing.M) {
	flag.Parse()
	if flag.NArg() == 1 {
		fmt.Fprintln(os.Stderr, hold(context.Background(), flag.Arg(0)))
		os.Exit(1)
	}
	testservers.Main(m)
}

func hold(ctx context.Context, address string) error {
	s, err := open(ctx, address)
	if err != nil {
		return err
	}
	tail, err := s.Tail(ctx, store.TailConfig{BatchSize: 1})
	if err != nil {
		return err
	}
	lease.New(tail, task).RunUntilTaken(ctx, func(ctx context.Context) {
		fmt.Println("held")
		<-ctx.Done()
	})
	return errors.New("the lease was lost")
}

type backend interface {
	Migrate(ctx context.Context) error
	Tail(ctx context.Context, c store.TailConfig) (*store.Tail, error)
	Close() error
}

func open(ctx context.Context, address string) (backend, error) {
	if strings.Contains(address, "://") {
		return postgres.Open(ctx, address, postgres.Options{})
	}
	return sqlite.Open(ctx, address)
}

// onBoth runs a test on a new database of each kind.
func onBoth(t *testing.T, test func(t *testing.T, address string)) {
	t.Helper()
	for name, create := range map[string]func(t *testing.T) string{
		"postgres": func(t *testing.T) string { t.Helper(); return testservers.Postgres(t) },
		"sqlite":   func(t *testing.T) string { t.Helper(); return filepath.Join(t.TempDir(), "test.db") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := create(t)
			s, err := open(t.Context(), address)
			require.NoError(t, err)
			require.NoError(t, s.Migrate(t.Context()))
			require.NoError(t, s.Close())
			test(t, address)
		})
	}
}

func tailOf(t *testing.T, address string) *store.Tail {
	t.Helper()
	s, err := open(t.Context(), address)
	require.NoError(t, err)
	tail, err := s.Tail(t.Context(), store.TailConfig{BatchSize: 1})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, tail.Close())
		require.NoError(t, s.Close())
	})
	return tail
}

// run runs the lease of a worker.
func run(t *testing.T, tail *store.Tail) (l *lease.Lease, stop func()) {
	t.Helper()
	l = lease.New(tail, task)
	require.ErrorIs(t, l.Status().Err, lease.ErrPending)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { l.Run(ctx) })
	stop = func() { cancel(); running.Wait() }
	t.Cleanup(stop)
	return l, stop
}

func requireHeld(t *testing.T, l *lease.Lease) {
	t.Helper()
	require.Eventually(t, l.Held, patience, tick)
}

func requireStandby(t *testing.T, l *lease.Lease) {
	t.Helper()
	require.Eventually(t, func() bool { return errors.Is(l.Status().Err, store.ErrNotLeader) }, patience, tick)
}

func TestOneHoldsAndAnotherFollowsAtAStop(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, address string) {
		t.Helper()
		one, stop := run(t, tailOf(t, address))
		requireHeld(t, one)
		fence := one.Status().Fence
		other, _ := run(t, tailOf(t, address))
		requireStandby(t, other)

		require.Never(t, func() bool { return !one.Held() || other.Held() }, 6*time.Second, 20*time.Millisecond,
			"the lease is renewed for longer than it lasts")
		require.Equal(t, fence, one.Status().Fence)

		stop()
		stopped := time.Now()
		require.False(t, one.Held())
		requireHeld(t, other)
		require.Less(t, time.Since(stopped), 3*time.Second, "the promise is one second, the rest is for a busy machine")
		require.Equal(t, fence.Number+1, other.Status().Fence.Number)
	})
}

func TestAnotherFollowsAKilledProcess(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, address string) {
		t.Helper()
		binary, err := os.Executable()
		require.NoError(t, err)
		process := exec.CommandContext(t.Context(), binary, address)
		out, err := process.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, process.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "held\n", line)
		l, _ := run(t, tailOf(t, address))
		requireStandby(t, l)

		require.NoError(t, process.Process.Kill())
		killed := time.Now()
		requireHeld(t, l)
		t.Logf("taken over after %s", time.Since(killed).Round(time.Millisecond))
		require.Less(t, time.Since(killed), takeover)
		require.Error(t, process.Wait(), "killed")
	})
}

// A holder that the database does not hear of stops before another begins, and says why. When it is back it waits.
func TestHolderThatCannotRenew(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, address string) {
		t.Helper()
		fault := errors.New("the network is gone")
		var away atomic.Bool
		tail := tailOf(t, address)
		cut := *tail
		cut.TakeLease = func(ctx context.Context, task, holder string, ttl time.Duration) (store.Fence, error) {
			if away.Load() {
				return store.Fence{}, fault
			}
			return tail.TakeLease(ctx, task, holder, ttl)
		}
		one, _ := run(t, &cut)
		requireHeld(t, one)
		other, _ := run(t, tailOf(t, address))
		requireStandby(t, other)

		away.Store(true)
		began := time.Now()
		require.Eventually(t, func() bool {
			if !other.Held() {
				return false
			}
			require.False(t, one.Held(), "both hold the lease")
			return true
		}, patience, tick)
		require.Less(t, time.Since(began), takeover)
		require.Eventually(t, func() bool { return errors.Is(one.Status().Err, fault) }, patience, tick)
		away.Store(false)
		requireStandby(t, one)
		require.True(t, other.Held())
	})
}

// Work that something else keeps from being done twice goes on until another is known to do it.
func TestWorkUntilTaken(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, address string) {
		t.Helper()
		fault := errors.New("the network is gone")
		var away atomic.Bool
		tail := tailOf(t, address)
		cut := *tail
		cut.TakeLease = func(ctx context.Context, task, holder string, ttl time.Duration) (store.Fence, error) {
			if away.Load() {
				return store.Fence{}, fault
			}
			return tail.TakeLease(ctx, task, holder, ttl)
		}
		l := lease.New(&cut, task)
		begun, ended := make(chan struct{}, 1), make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			defer close(ended)
			l.RunUntilTaken(ctx, func(ctx context.Context) {
				begun <- struct{}{}
				<-ctx.Done()
				ended <- struct{}{}
			})
		}()
		<-begun
		away.Store(true)
		other, _ := run(t, tailOf(t, address))
		requireHeld(t, other)
		require.False(t, l.Held())
		select {
		case <-ended:
			require.Fail(t, "work ended while nothing was known of another")
		default:
		}
		away.Store(false)
		<-ended
		cancel()
		<-ended
	})
}

// A database that does not answer for a while is no loss, if nobody else has taken the lease.
func TestStatementThatHangs(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, address string) {
		t.Helper()
		tail := tailOf(t, address)
		var hangs atomic.Bool
		slow := *tail
		slow.TakeLease = func(ctx context.Context, task, holder string, ttl time.Duration) (store.Fence, error) {
			if hangs.Load() {
				<-ctx.Done()
				return store.Fence{}, ctx.Err()
			}
			return tail.TakeLease(ctx, task, holder, ttl)
		}
		l, _ := run(t, &slow)
		requireHeld(t, l)
		status := l.Status()
		hangs.Store(true)
		require.Eventually(t, func() bool { return !l.Held() }, patience, tick)
		<-status.Changed
		hangs.Store(false)
		requireHeld(t, l)
		require.Equal(t, status.Fence, l.Status().Fence, "it is the same period")
	})
}

func TestSessionsOfAHolderDie(t *testing.T) {
	t.Parallel()
	address := testservers.Postgres(t)
	s, err := open(t.Context(), address)
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))
	require.NoError(t, s.Close())
	l, _ := run(t, tailOf(t, address))
	requireHeld(t, l)
	changed := l.Status().Changed
	conn, err := pgx.Connect(t.Context(), address)
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(t.Context()))
	_, err = conn.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
	require.NoError(t, err)
	select {
	case <-changed:
		require.Fail(t, "the lease was lost with the session")
	case <-time.After(6 * time.Second): // longer than it lasts
	}
}

func TestWorkEndsWithTheLease(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, address string) {
		t.Helper()
		one, _ := run(t, tailOf(t, address))
		begun, ended := make(chan struct{}), make(chan struct{})
		work := func(ctx context.Context) {
			begun <- struct{}{}
			<-ctx.Done()
			ended <- struct{}{}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() { one.Do(ctx, work) })
		<-begun
		other, stop := run(t, tailOf(t, address))
		requireStandby(t, other)

		one.Yield(t.Context(), 2*time.Second)
		<-ended
		requireHeld(t, other)
		requireStandby(t, one)
		stop()
		<-begun
		cancel()
		<-ended
		done.Wait()
	})
}

// Work that ends by itself is not begun again, and gives the lease to others.
func TestWorkThatEnds(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, address string) {
		t.Helper()
		runs := 0
		lease.New(tailOf(t, address), task).RunUntilTaken(t.Context(), func(context.Context) { runs++ })
		require.Equal(t, 1, runs)
		began := time.Now()
		other, _ := run(t, tailOf(t, address))
		requireHeld(t, other)
		require.Less(t, time.Since(began), 3*time.Second)
	})
}

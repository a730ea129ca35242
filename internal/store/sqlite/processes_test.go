package sqlite

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/storetest"
)

// TestMain runs the tests, or, given arguments, does what a test asks of a child process.
func TestMain(m *testing.M) {
	flag.Parse()
	if flag.NArg() == 0 {
		os.Exit(m.Run())
	}
	if err := act(context.Background(), flag.Arg(0), flag.Args()[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// child is the command of a process that does [act].
func child(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	binary, err := os.Executable()
	require.NoError(t, err)
	return exec.CommandContext(t.Context(), binary, args...)
}

// act is what a child does, on the database that args begin with.
func act(ctx context.Context, role string, args []string) error {
	s, err := Open(ctx, args[0])
	if role == "open" {
		fmt.Println(err)
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.Migrate(ctx); err != nil {
		return err
	}
	switch role {
	case "contend":
		err = contend(ctx, s, args[1], args[2])
	case "append":
		err = appendForever(ctx, s)
	}
	return errors.Join(err, s.Close())
}

// contend appends so many events to an aggregate of which others append too, and tells the id of each.
func contend(ctx context.Context, s *Store, aggregate, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	stream := storetest.NewStream()
	stream.AggregateID, stream.TenantID = uuid.MustParse(aggregate), uuid.MustParse(aggregate)
	for n > 0 {
		version, err := s.Version(ctx, stream.AggregateType, stream.AggregateID)
		if err != nil {
			return err
		}
		e := stream.At(version + 1)
		switch err := s.Append(ctx, e); {
		case err == nil:
			fmt.Println(e.ID)
			n--
		case errors.Is(err, events.ErrConflict):
			fmt.Println("conflict")
		default:
			return err
		}
	}
	return nil
}

// appendForever tells the ids of each batch when it has been appended.
func appendForever(ctx context.Context, s *Store) error {
	stream := storetest.NewStream()
	for {
		batch := stream.Take(7)
		if err := s.AppendMany(ctx, batch); err != nil {
			return err
		}
		for _, e := range batch {
			fmt.Println(e.ID)
		}
	}
}

func TestProcessesAppendToOneAggregate(t *testing.T) {
	t.Parallel()
	const processes, perProcess = 3, 40
	path, aggregate := newPath(t), uuid.New()
	type result struct {
		out []byte
		err error
	}
	results := make(chan result, processes)
	for range processes {
		c := child(t, "contend", path, aggregate.String(), strconv.Itoa(perProcess))
		go func() {
			out, err := c.CombinedOutput()
			results <- result{out, err}
		}()
	}
	var told []string
	for range processes {
		r := <-results
		require.NoError(t, r.err, string(r.out))
		for line := range strings.FieldsSeq(string(r.out)) {
			if line != "conflict" {
				told = append(told, line)
			}
		}
	}

	var found []string
	s := opened(t, path)
	for e, err := range s.Stream(t.Context(), "Patient", aggregate, 0) {
		require.NoError(t, err)
		found = append(found, e.ID.String())
		require.Equal(t, len(found), e.AggregateVersion)
	}
	require.Len(t, found, processes*perProcess)
	require.ElementsMatch(t, told, found)
	requireIntact(t, path, processes*perProcess)
}

func TestKilledWhileAppending(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	var told []string
	for range 3 {
		c := child(t, "append", path)
		out, err := c.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, c.Start())
		lines := bufio.NewScanner(out)
		for n := 0; n < 100 && lines.Scan(); n++ {
			told = append(told, lines.Text())
		}
		require.NoError(t, c.Process.Kill())
		for lines.Scan() { // what it told before it died
			if len(lines.Text()) == len(uuid.Nil.String()) {
				told = append(told, lines.Text())
			}
		}
		require.Error(t, c.Wait(), "killed")
	}

	found := make(map[string]bool)
	perAggregate := make(map[uuid.UUID]int)
	for r, err := range opened(t, path).All(t.Context(), store.Position{}) {
		require.NoError(t, err)
		found[r.Event.ID.String()] = true
		perAggregate[r.AggregateID]++
	}
	require.GreaterOrEqual(t, len(told), 300)
	for _, id := range told {
		require.True(t, found[id], "lost %s", id)
	}
	for _, count := range perAggregate {
		require.Zero(t, count%7, "a batch is whole or not there")
	}
	requireIntact(t, path, len(found))
}

func TestWakesAfterAnotherProcessHasAppended(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s, other := opened(t, path), opened(t, path) // two stores share no memory
	tail, err := s.Tail(t.Context(), store.TailConfig{BatchSize: 1})
	require.NoError(t, err)
	defer func() { require.NoError(t, tail.Close()) }()
	stream := storetest.NewStream()
	for range 3 {
		require.NoError(t, other.Append(t.Context(), stream.Next()))
		select {
		case <-tail.Wake:
		case <-time.After(5 * time.Second):
			require.Fail(t, "an append did not wake the tail")
		}
	}
}

func TestTailRefuses(t *testing.T) {
	t.Parallel()
	s := opened(t, newPath(t))
	_, err := s.Tail(t.Context(), store.TailConfig{})
	require.ErrorContains(t, err, "batch size must be 1 or more, not 0")
	_, err = s.Tail(t.Context(), store.TailConfig{BatchSize: 1, Start: "middle"})
	require.ErrorContains(t, err, `unknown start "middle"`)
}

// TestTailHoldsNothingBack lets the log be emptied while a batch is being handled.
func TestTailHoldsNothingBack(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s, stream := opened(t, path), storetest.NewStream()
	require.NoError(t, s.AppendMany(t.Context(), stream.Take(3)))
	subscription := storetest.Subscribe(t, s, store.TailConfig{BatchSize: 10})
	require.Len(t, subscription.Receive(t), 3)

	require.NoError(t, s.AppendMany(t.Context(), stream.Take(3)))
	var busy, frames, emptied int
	err := rawDB(t, path).QueryRowContext(t.Context(), "PRAGMA wal_checkpoint(RESTART)").Scan(&busy, &frames, &emptied)
	require.NoError(t, err)
	require.Zero(t, busy)
	require.Equal(t, frames, emptied)

	subscription.Ack(t)
	subscription.Take(t, 3)
}

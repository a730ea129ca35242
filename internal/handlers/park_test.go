package handlers_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/store/sqlite"
)

// stream returns the first n events of a new aggregate.
func stream(t *testing.T, n int) []events.Event {
	t.Helper()
	origin, id := events.Origin{TenantID: uuid.New()}, uuid.New()
	list := make([]events.Event, n)
	for i := range list {
		var err error
		list[i], err = events.New(origin, "Patient", id, i+1, registered{Name: fmt.Sprint(i + 1)})
		require.NoError(t, err)
	}
	return list
}

func TestWhatFollowsADeadLetterIsParked(t *testing.T) {
	t.Parallel()
	broken := true
	ran := map[string][]int{}
	b := newBenchAfter(t, handlers.Park, func(reg *handlers.Registry) {
		handlers.OnAll(reg, "fragile", func(_ context.Context, e events.Event, _ json.RawMessage) ([]events.Event, error) {
			if broken {
				return nil, handlers.Permanent(errors.New("broken"))
			}
			ran["fragile"] = append(ran["fragile"], e.AggregateVersion)
			return nil, nil
		})
		handlers.OnAll(reg, "sound", func(_ context.Context, e events.Event, _ json.RawMessage) ([]events.Event, error) {
			ran["sound"] = append(ran["sound"], e.AggregateVersion)
			return nil, nil
		})
	})
	e := stream(t, 6)
	requireFailure := func(err error, attempts int, reason string) {
		t.Helper()
		failed := failures(t, err)
		require.Len(t, failed, 1)
		require.Equal(t, "fragile", failed[0].Handler)
		require.Equal(t, attempts, failed[0].Attempts)
		require.Contains(t, failed[0].Reason, reason)
	}
	behind := func(i int) string { return "parked behind event " + e[i-1].ID.String() }

	requireFailure(b.deliver(e[0]), 1, "broken")
	broken = false
	requireFailure(b.deliver(e[1]), 0, behind(1))
	requireFailure(b.deliver(e[2]), 0, behind(1))
	require.NoError(t, b.deliver(stream(t, 1)[0]), "another aggregate")
	requireFailure(b.replay(e[2], "fragile"), 0, behind(1))
	broken = true
	requireFailure(b.replay(e[0], "fragile"), 1, "broken")
	broken = false
	require.NoError(t, b.replay(e[0], "fragile"))
	requireFailure(b.deliver(e[3]), 0, behind(2))
	for _, i := range []int{1, 2, 3} {
		require.NoError(t, b.replay(e[i], "fragile"))
	}
	require.NoError(t, b.deliver(e[4]))
	require.NoError(t, b.replay(e[1], "fragile"), "once more")

	require.Equal(t, []int{1, 1, 2, 3, 4, 5}, ran["fragile"], "the first is the other aggregate's")
	require.Equal(t, []int{1, 2, 3, 1, 4, 5}, ran["sound"], "it has not waited")
}

func TestWithoutParkingWhatFollowsADeadLetterGoesOn(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(reg *handlers.Registry) {
		handlers.OnAll(reg, "fragile", func(_ context.Context, e events.Event, _ json.RawMessage) ([]events.Event, error) {
			if e.AggregateVersion == 1 {
				return nil, handlers.Permanent(errors.New("broken"))
			}
			return nil, nil
		})
	})
	e := stream(t, 2)
	require.Error(t, b.deliver(e[0]))
	require.NoError(t, b.deliver(e[1]))
}

// The worker dies at any step, deliveries repeat, letters are replayed in any order: nothing is lost, nothing takes
// effect twice, and nothing overtakes.
func TestParkingIsSoundWhateverDies(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			parkAtRandom(t, rand.New(rand.NewPCG(seed, 0)))
		})
	}
}

func parkAtRandom(t *testing.T, random *rand.Rand) {
	t.Helper()
	const count = 12
	oneIn := func(n int) bool { return random.IntN(n) == 0 }
	healed := false
	b := newBenchAfter(t, handlers.Park, func(reg *handlers.Registry) {
		handlers.OnAll(reg, "h", func(ctx context.Context, e events.Event, _ json.RawMessage) ([]events.Event, error) {
			if !healed && oneIn(3) {
				return nil, handlers.Permanent(errors.New("broken"))
			}
			return nil, sqlite.InTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, "INSERT INTO effects (version) VALUES (?)", e.AggregateVersion)
				return err
			})
		})
	})
	db, err := sql.Open("sqlite", b.path+"?_busy_timeout=10000")
	require.NoError(t, err)
	defer db.Close()
	_, err = db.ExecContext(t.Context(), "CREATE TABLE effects (place INTEGER PRIMARY KEY AUTOINCREMENT, version INTEGER)")
	require.NoError(t, err)

	type delivery struct {
		event   events.Event
		handler string
	}
	var queue []delivery
	var letters []events.Event
	deliver := func() {
		if len(queue) == 0 {
			return
		}
		d := queue[0]
		if err := b.replay(d.event, d.handler); err != nil {
			failures(t, err)
			if !healed && oneIn(4) {
				return // died before the letter was put
			}
			letters = append(letters, d.event)
		}
		if !healed && oneIn(4) {
			return // died before the ack
		}
		queue = queue[1:]
	}
	replay := func(i int) {
		queue = append(queue, delivery{letters[i], "h"})
		if healed || !oneIn(4) { // died before the letter was taken away
			letters = slices.Delete(letters, i, i+1)
		}
	}
	coming := stream(t, count)
	for range 200 {
		switch {
		case oneIn(6) && len(coming) > 0:
			queue, coming = append(queue, delivery{coming[0], ""}), coming[1:]
		case oneIn(6) && len(letters) > 0:
			replay(random.IntN(len(letters)))
		default:
			deliver()
		}
	}
	for _, e := range coming {
		queue = append(queue, delivery{e, ""})
	}
	healed = true
	for len(queue)+len(letters) > 0 {
		for len(queue) > 0 {
			deliver()
		}
		for len(letters) > 0 {
			replay(0)
		}
	}

	rows, err := db.QueryContext(t.Context(), "SELECT version FROM effects ORDER BY place")
	require.NoError(t, err)
	defer rows.Close()
	var got, want []int
	for rows.Next() {
		var version int
		require.NoError(t, rows.Scan(&version))
		got = append(got, version)
	}
	require.NoError(t, rows.Err())
	for version := range count {
		want = append(want, version+1)
	}
	require.Equal(t, want, got)
}

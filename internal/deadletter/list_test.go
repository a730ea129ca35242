package deadletter_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/storetest"
)

func ids(letters []deadletter.Letter) []string {
	ids := make([]string, len(letters))
	for i, l := range letters {
		ids[i] = l.ID
	}
	return ids
}

// many ingests n letters, of which some fail at the same time.
func many(t *testing.T, table *deadletter.Table, n int) {
	t.Helper()
	arrivals := make([]deadletter.Arrival, n)
	for i := range arrivals {
		a := plain(fmt.Sprint(i))
		a.ID, a.Reason = fmt.Sprint(i), fmt.Sprintf("reason %d", i)
		a.LastFailed = a.LastFailed.Add(time.Duration(i/7) * time.Second)
		arrivals[i] = a
	}
	ingest(t, table, arrivals...)
}

func TestListIsInPages(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		const n = 2*deadletter.PageRows + 1
		many(t, table, n)
		for _, limit := range []int{0, 1, deadletter.PageRows - 1, deadletter.PageRows, deadletter.PageRows + 1, 2 * deadletter.PageRows, n, n + 1} {
			want := min(limit, n)
			if limit == 0 {
				want = n
			}
			letters := all(t, table, deadletter.Filter{Limit: limit})
			require.Len(t, letters, want)
			for i, l := range letters {
				require.Equal(t, fmt.Sprint(i), l.ID)
				require.Nil(t, l.Body)
			}
			read := 0
			for l, err := range table.Read(t.Context(), deadletter.Filter{Limit: limit}) {
				require.NoError(t, err)
				require.Equal(t, fmt.Sprint(read), string(l.Body))
				read++
			}
			require.Equal(t, want, read)
		}
		seven := deadletter.Filter{Reason: regexp.MustCompile("7$"), Limit: 60}
		require.Len(t, all(t, table, seven), 60)
		require.Equal(t, "597", all(t, table, seven)[59].ID)
		seven.Limit = 1000
		require.Len(t, all(t, table, seven), 100)

		n10, err := table.PutAside(t.Context(), deadletter.Filter{Limit: 10}, deadletter.Archived, audit.Actor{})
		require.NoError(t, err)
		require.Equal(t, 10, n10)
		all10 := all(t, table, deadletter.Filter{States: []deadletter.State{deadletter.Archived}})
		require.Equal(t, "9", all10[9].ID, "the oldest")
		aside, err := table.PutAside(t.Context(), deadletter.Filter{}, deadletter.Archived, audit.Actor{})
		require.NoError(t, err)
		require.Equal(t, n-10, aside)
		require.Len(t, all(t, table, deadletter.Filter{States: []deadletter.State{deadletter.Archived}}), n, "of equal times of decision")
		back, err := table.Restore(t.Context(), deadletter.Filter{}, audit.Actor{By: "ana"})
		require.NoError(t, err)
		require.Equal(t, n, back)
	})
}

func TestListWhileLettersChange(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		const n = 2*deadletter.PageRows + 100
		many(t, table, n)
		seen := map[string]bool{}
		for l, err := range table.List(t.Context(), deadletter.Filter{}) {
			require.NoError(t, err)
			require.False(t, seen[l.ID])
			seen[l.ID] = true
			if len(seen)%200 == 1 {
				_, err := table.PutAside(t.Context(), deadletter.Filter{IDs: []string{l.ID, "1050"}}, deadletter.Archived, audit.Actor{})
				require.NoError(t, err)
				ingest(t, table, plain(fmt.Sprint("new", len(seen))))
			}
		}
		require.Len(t, seen, n-1)
	})
}

func TestEachFilterAlone(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		wanted := letterOf(t, storetest.NewStream(), "wanted", "no address")
		wanted.ID = "wanted"
		wanted.LastFailed = wanted.LastFailed.Add(time.Hour)
		other := letterOf(t, storetest.NewStream(), "other", "no street")
		other.Body = []byte(`{"event_type":"Other"}`)
		other.Letter = deadletter.Complete(other.Letter)
		other.Type = "Other"
		none := plain("")
		ingest(t, table, wanted, other, none)
		e := wanted.Event
		for name, f := range map[string]deadletter.Filter{
			"id":          {IDs: []string{"wanted", "unknown"}},
			"event's id":  {IDs: []string{e.ID.String()}},
			"group":       {Group: wanted.Group},
			"type":        {Type: e.Type},
			"handler":     {Handler: "wanted"},
			"tenant":      {Tenant: e.TenantID},
			"aggregate":   {Aggregate: e.AggregateID},
			"correlation": {Correlation: e.CorrelationID},
			"since":       {Since: wanted.LastFailed},
			"reason":      {Reason: regexp.MustCompile("^no addr")},
		} {
			require.False(t, f.IsZero())
			require.Equal(t, []string{"wanted"}, ids(all(t, table, f)), name)
			groups, err := table.Groups(t.Context(), f)
			require.NoError(t, err)
			require.Len(t, groups, 1, name)
		}
		require.Len(t, all(t, table, deadletter.Filter{Until: wanted.LastFailed}), 2)
		require.Len(t, all(t, table, deadletter.Filter{Since: wanted.LastFailed.Add(time.Microsecond)}), 0)
		for name, f := range map[string]deadletter.Filter{
			"nil id":        {IDs: []string{uuid.Nil.String()}},
			"unknown group": {Group: "00000000"},
			"both":          {Handler: "wanted", Type: "Other"},
			"other state":   {States: []deadletter.State{deadletter.Archived}},
			"bad state":     {States: []deadletter.State{"' OR '' = '"}},
			"empty range":   {Since: wanted.LastFailed, Until: wanted.LastFailed},
		} {
			require.Empty(t, all(t, table, f), name)
		}
	})
}

func TestFind(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		a := letterOf(t, storetest.NewStream(), "one", "r")
		b := a
		b.Handler = "other"
		ingest(t, table, a, b)
		id := a.Event.ID.String()
		_, err := table.Find(t.Context(), id)
		require.ErrorContains(t, err, "2 dead letters are of the event")
		_, err = table.Find(t.Context(), "unknown")
		require.ErrorIs(t, err, deadletter.ErrNotFound)
		_, err = table.PutAside(t.Context(), deadletter.Filter{Handler: "one"}, deadletter.Archived, audit.Actor{By: "ana", Reason: "why"})
		require.NoError(t, err)
		require.Equal(t, "other", find(t, table, id).Handler, "the one that waits")
		archived := all(t, table, deadletter.Filter{States: []deadletter.State{deadletter.Archived}})
		require.Equal(t, "ana", find(t, table, archived[0].ID).Decided.By)
		failed, err := table.Failed(t.Context(), []uuid.UUID{a.Event.ID, uuid.New()})
		require.NoError(t, err)
		require.Equal(t, map[uuid.UUID]bool{a.Event.ID: true}, failed)
	})
}

func TestGroupsAreAsInGo(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		random := rand.New(rand.NewPCG(1, 2))
		tenants := []*storetest.Stream{storetest.NewStream(), storetest.NewStream(), storetest.NewStream()}
		pick := func(from ...string) string { return from[random.IntN(len(from))] }
		var arrivals []deadletter.Arrival
		for range 700 {
			var a deadletter.Arrival
			if random.IntN(5) == 0 {
				a = plain(uuid.NewString())
				a.ID = uuid.NewString()
			} else {
				a = letterOf(t, tenants[random.IntN(3)], "", "")
			}
			a.Handler, a.Reason = pick("", "a", "b"), pick("no 1", "no 2", "no way", "", "\xff", "no 'x'")
			a.FirstFailed = a.LastFailed.Add(time.Duration(random.IntN(50)) * time.Second)
			a.LastFailed = a.LastFailed.Add(time.Duration(random.IntN(50)) * time.Second)
			a.Headers = map[string]any{deadletter.ReplayCountKey: pick("", "1", "2")}
			a.Letter = deadletter.Complete(a.Letter)
			arrivals = append(arrivals, a)
		}
		ingest(t, table, arrivals...)
		_, err := table.PutAside(t.Context(), deadletter.Filter{Handler: "b", Limit: 30}, deadletter.Archived, audit.Actor{})
		require.NoError(t, err)
		for _, f := range []deadletter.Filter{
			{},
			{Handler: "b"},
			{Tenant: tenants[0].TenantID},
			{Since: arrivals[0].LastFailed},
			{States: []deadletter.State{deadletter.Archived}},
			{States: deadletter.AllStates()},
			{Handler: "unknown"},
		} {
			want, err := table.GroupsInGo(t.Context(), f)
			require.NoError(t, err)
			f.Limit = 1 // is not heeded
			got, err := table.Groups(t.Context(), f)
			require.NoError(t, err)
			if len(f.States) == 1 { // which of those that failed last at once is the newest differs
				for i := range got {
					want[i].Newest, got[i].Newest = "", ""
				}
			}
			require.Equal(t, want, got)
		}
	})
}

func TestCountIsBounded(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 7)
		for most, want := range map[int]int{6: 6, 7: 7, 8: 7} {
			n, err := table.CountUpTo(t.Context(), most)
			require.NoError(t, err)
			require.Equal(t, want, n)
		}
	})
}

func TestWithinBytes(t *testing.T) {
	t.Parallel()
	const most = store.PageBytes
	for name, test := range map[string]struct {
		sizes []int
		want  int
	}{
		"all":             {[]int{1, 2, 3}, 3},
		"just all":        {[]int{most - 3, 1, 2}, 3},
		"one too many":    {[]int{most - 3, 1, 3}, 2},
		"a large one":     {[]int{most + 1, 1}, 1},
		"behind others":   {[]int{1, 1, most}, 2},
		"only large ones": {[]int{2 * most, 2 * most}, 1},
	} {
		require.Equal(t, test.want, deadletter.WithinBytes(test.sizes...), name)
	}
}

func TestReadOfLargeLetters(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		body := string(make([]byte, store.PageBytes/3))
		for i := range 8 {
			a := plain(fmt.Sprint(i) + body)
			a.ID = fmt.Sprint(i)
			ingest(t, table, a)
		}
		n := 0
		for l, err := range table.Read(t.Context(), deadletter.Filter{}) {
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(n), l.ID)
			require.Equal(t, fmt.Sprint(n)[0], l.Body[0])
			require.Len(t, l.Body, l.Bytes)
			n++
		}
		require.Equal(t, 8, n)
	})
}

// parkedBehind says whether the next event of a stream has to wait.
func parkedBehind(t *testing.T, b backend, s *storetest.Stream, handler string) bool {
	t.Helper()
	parked, err := b.Parked(t.Context(), s.At(1000), []string{handler})
	require.NoError(t, err)
	return len(parked) > 0
}

func TestWhatIsParkedBehindLetters(t *testing.T) {
	t.Parallel()
	archive := func(t *testing.T, table *deadletter.Table, as deadletter.State) {
		t.Helper()
		n, err := table.PutAside(t.Context(), deadletter.Filter{Handler: "h"}, as, audit.Actor{By: "ana", Reason: "why"})
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
	for name, test := range map[string]struct {
		do    func(t *testing.T, table *deadletter.Table)
		stays bool
	}{
		"archived": {func(t *testing.T, table *deadletter.Table) {
			t.Helper()
			archive(t, table, deadletter.Archived)
		}, true},
		"restored": {func(t *testing.T, table *deadletter.Table) {
			t.Helper()
			archive(t, table, deadletter.Archived)
			n, err := table.Restore(t.Context(), deadletter.Filter{}, audit.Actor{By: "ben"})
			require.NoError(t, err)
			require.Equal(t, 1, n)
			for _, l := range all(t, table, deadletter.Filter{Handler: "h"}) {
				require.Equal(t, "ben", l.Decided.By)
			}
		}, true},
		"discarded": {func(t *testing.T, table *deadletter.Table) {
			t.Helper()
			archive(t, table, deadletter.Discarded)
		}, false},
		"purged": {func(t *testing.T, table *deadletter.Table) {
			t.Helper()
			n, err := table.PurgeWaiting(t.Context(), audit.Actor{})
			require.NoError(t, err)
			require.Equal(t, 2, n)
		}, false},
		"archived while others are purged": {func(t *testing.T, table *deadletter.Table) {
			t.Helper()
			archive(t, table, deadletter.Archived)
			_, err := table.PurgeWaiting(t.Context(), audit.Actor{})
			require.NoError(t, err)
		}, true},
		"archived and purged": {func(t *testing.T, table *deadletter.Table) {
			t.Helper()
			archive(t, table, deadletter.Archived)
			n, err := table.PurgeDecided(t.Context(), time.Now().Add(time.Minute), 10, nil)
			require.NoError(t, err)
			require.Equal(t, 1, n)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
				t.Helper()
				stream := storetest.NewStream()
				a := letterOf(t, stream, "h", "r")
				other := letterOf(t, storetest.NewStream(), "other", "r")
				ingest(t, table, a, other)
				require.NoError(t, b.Park(t.Context(), "h", a.Event))
				require.NoError(t, b.Park(t.Context(), "not this one", a.Event))
				require.True(t, parkedBehind(t, b, stream, "h"))

				test.do(t, table)

				require.Equal(t, test.stays, parkedBehind(t, b, stream, "h"))
			})
		})
	}
}

func TestPurgeWaitingReleasesWhatHasNoLetter(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		stream := storetest.NewStream()
		require.NoError(t, b.Park(t.Context(), "h", stream.Next()))
		_, err := table.PurgeWaiting(t.Context(), audit.Actor{})
		require.NoError(t, err)
		require.True(t, parkedBehind(t, b, stream, "h"), "its letter may still be in the broker's queue")

		write(t, b, "UPDATE parked SET parked_at = parked_at - "+map[store.Dialect]string{
			store.Postgres: "interval '2 days'", store.SQLite: "2 * 86400 * 1000000",
		}[b.SQL().Dialect])
		_, err = table.PurgeWaiting(t.Context(), audit.Actor{})
		require.NoError(t, err)
		require.False(t, parkedBehind(t, b, stream, "h"))
	})
}

func TestPurgeDecidedByAge(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 12)
		first := []string{"0", "1", "2", "3", "4"}
		_, err := table.PutAside(t.Context(), deadletter.Filter{IDs: first}, deadletter.Archived, audit.Actor{})
		require.NoError(t, err)
		between := time.Now()
		_, err = table.PutAside(t.Context(), deadletter.Filter{IDs: []string{"5", "6", "7"}}, deadletter.Discarded, audit.Actor{})
		require.NoError(t, err)
		require.NoError(t, table.Settled(t.Context(), "8", "r", nil, true))
		_, err = table.PutAside(t.Context(), deadletter.Filter{IDs: []string{"9"}}, deadletter.Archived, audit.Actor{})
		require.NoError(t, err)
		_, err = table.Restore(t.Context(), deadletter.Filter{IDs: []string{"9"}}, audit.Actor{By: "ana"})
		require.NoError(t, err)
		for _, test := range []struct {
			before time.Time
			want   int
		}{{between.Add(-time.Hour), 0}, {between, 3}, {between, 2}, {between, 0}, {time.Now().Add(time.Hour), 3}, {time.Now().Add(time.Hour), 1}} {
			n, err := table.PurgeDecided(t.Context(), test.before, 3, nil)
			require.NoError(t, err)
			require.Equal(t, test.want, n)
		}
		require.Equal(t, []string{"9", "10", "11"}, ids(everything(t, table)))
	})
}

func TestSettled(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		for name, test := range map[string]struct {
			handler  string
			state    deadletter.State
			handlers []string
			all      bool
			want     deadletter.State
		}{
			"by its handler":             {"h", deadletter.Waiting, []string{"other", "h"}, true, deadletter.Settled},
			"by its handler of several":  {"h", deadletter.Waiting, []string{"h"}, false, deadletter.Settled},
			"by others":                  {"h", deadletter.Waiting, []string{"other"}, true, deadletter.Waiting},
			"by none":                    {"h", deadletter.Waiting, nil, true, deadletter.Waiting},
			"of no handler":              {"", deadletter.Waiting, nil, true, deadletter.Settled},
			"of no handler, others fail": {"", deadletter.Waiting, []string{"h"}, false, deadletter.Settled},
			"archived meanwhile":         {"h", deadletter.Archived, []string{"h"}, true, deadletter.Archived},
			"discarded meanwhile":        {"h", deadletter.Discarded, []string{"h"}, true, deadletter.Discarded},
		} {
			write(t, b, "DELETE FROM dead_letters")
			t.Log(name)
			ingest(t, table, letterOf(t, storetest.NewStream(), test.handler, "r"))
			id := only(t, table).ID
			if test.state != deadletter.Waiting {
				_, err := table.PutAside(t.Context(), deadletter.Filter{}, test.state, audit.Actor{By: "ana"})
				require.NoError(t, err)
			}
			require.NoError(t, table.Settled(t.Context(), id, "r1", test.handlers, test.all))
			require.NoError(t, table.Settled(t.Context(), "unknown", "r1", test.handlers, test.all))
			l := only(t, table)
			require.Equal(t, test.want, l.State)
			if l.State == deadletter.Settled {
				require.Equal(t, "replay r1", l.Decided.By)
			}
		}
	})
}

// Concurrent calls share transactions, and each notes its own outcome.
func TestSettledConcurrently(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		const n = 40
		stream := storetest.NewStream()
		for i := range n {
			a := letterOf(t, stream, "h", "r")
			a.ID = strconv.Itoa(i)
			ingest(t, table, a)
		}
		var group errgroup.Group
		for i := range n {
			group.Go(func() error {
				var handlers []string
				if i%2 == 0 {
					handlers = []string{"other", "h"}
				}
				return table.Settled(t.Context(), strconv.Itoa(i), "r"+strconv.Itoa(i), handlers, true)
			})
		}
		require.NoError(t, group.Wait())
		for i := range n {
			l := find(t, table, strconv.Itoa(i))
			if i%2 == 0 {
				require.Equal(t, deadletter.Settled, l.State)
				require.Equal(t, "replay r"+strconv.Itoa(i), l.Decided.By)
			} else {
				require.Equal(t, deadletter.Waiting, l.State)
			}
		}
	})
}

// A letter whose handler is gone would otherwise be 'replaying' until the worker gives up on it.
func TestSettledWithoutItsHandler(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		ingest(t, table, letterOf(t, storetest.NewStream(), "gone", "r"))
		before := only(t, table)
		bus := &fakeBus{table: table, handle: func(ctx context.Context, r deadletter.Release) deadletter.Sending {
			return deadletter.Sending{Problem: table.Settled(ctx, r.ID, r.ReplayID, []string{"other"}, true)}
		}}
		defer bus.run(t)()
		steps, last, err := replay(t.Context(), table, deadletter.Filter{},
			deadletter.ReplayOptions{To: deadletter.ToBus, Patience: time.Minute})
		require.ErrorIs(t, err, deadletter.ErrTooManyFailures)
		require.Contains(t, steps, deadletter.FailedAgain)
		require.Equal(t, 1, last.FailedAgain)

		l := only(t, table)
		require.Equal(t, deadletter.Waiting, l.State)
		require.Contains(t, l.Reason, `handler "gone" is not registered`)
		require.NotEqual(t, before.Group, l.Group)
		require.Equal(t, 1, l.Replays)
		require.Equal(t, []deadletter.IncidentKind{deadletter.Failed, deadletter.Replayed}, []deadletter.IncidentKind{l.History[0].Kind, l.History[1].Kind})
	})
}

// Who archived a letter and why is still known once it was restored.
func TestRestoreKeepsTheDecision(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		ingest(t, table, letterOf(t, storetest.NewStream(), "h", "r"))
		_, err := table.PutAside(t.Context(), deadletter.Filter{}, deadletter.Archived, audit.Actor{By: "ana", Reason: "a test patient"})
		require.NoError(t, err)
		_, err = table.Restore(t.Context(), deadletter.Filter{}, audit.Actor{By: "bea"})
		require.NoError(t, err)
		l := only(t, table)
		require.Equal(t, "bea", l.Decided.By)
		require.Len(t, l.History, 1)
		require.Equal(t, deadletter.IncidentKind("archived"), l.History[0].Kind)
		require.Equal(t, "ana", l.History[0].By)
		require.Equal(t, "a test patient", l.History[0].Reason)
	})
}

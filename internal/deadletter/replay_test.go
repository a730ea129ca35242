package deadletter_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/storetest"
)

// fakeBus is a bus whose handler does with each letter what a test says. All it is given is recorded.
type fakeBus struct {
	table *deadletter.Table
	// handle is what becomes of a letter; nil: it is handled.
	handle func(ctx context.Context, r deadletter.Release) deadletter.Sending
	// fails is the error of a call, before anything is published.
	fails func(call int) error

	mu    sync.Mutex
	calls int
	got   []deadletter.Release
}

func (f *fakeBus) PublishLetters(ctx context.Context, letters []deadletter.Release) ([]deadletter.Sending, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.fails != nil {
		if err := f.fails(f.calls); err != nil {
			return nil, err
		}
	}
	sendings := make([]deadletter.Sending, len(letters))
	for i, l := range letters {
		f.got = append(f.got, l)
		if f.handle != nil {
			sendings[i] = f.handle(ctx, l)
			continue
		}
		if err := f.table.Settled(ctx, l.ID, l.ReplayID, []string{l.Handler}, true); err != nil {
			return nil, err
		}
	}
	return sendings, nil
}

func (f *fakeBus) sent() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids := make([]string, len(f.got))
	for i, l := range f.got {
		ids[i] = l.ID
	}
	return ids
}

// run has a worker replay until the test ends or it is told to stop.
func (f *fakeBus) run(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		deadletter.NewReplayer(f.table, f, testLogger(t)).Run(ctx, nil)
	}()
	stop = func() { cancel(); <-ended }
	t.Cleanup(stop)
	return stop
}

// fail has the handler of a letter fail again.
func (f *fakeBus) fail(ctx context.Context, r deadletter.Release) deadletter.Sending {
	again := failedAgain(r.Letter, r.ReplayID, r.To, r.Handler, "again")
	if err := f.table.Ingest(ctx, []deadletter.Arrival{again}); err != nil {
		panic(err)
	}
	return deadletter.Sending{}
}

func (f *fakeBus) settle(ctx context.Context, r deadletter.Release) deadletter.Sending {
	if err := f.table.Settled(ctx, r.ID, r.ReplayID, []string{r.Handler}, true); err != nil {
		panic(err)
	}
	return deadletter.Sending{}
}

func replay(ctx context.Context, table *deadletter.Table, f deadletter.Filter, o deadletter.ReplayOptions) (steps []deadletter.Step, last deadletter.Progress, err error) {
	for last, err = range table.Replay(ctx, f, o) {
		if last.Step != deadletter.NoWorker { // a fake bus has no lease
			steps = append(steps, last.Step)
		}
		if err != nil {
			return steps, last, err
		}
	}
	return steps, last, nil
}

// patience is how long a replay waits for what must come.
const patience = 20 * time.Second

func TestReplayTellsWhatBecomesOfEachLetter(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		for _, h := range []string{"handled", "fails", "problem", "elsewhere"} {
			ingest(t, table, letterOf(t, storetest.NewStream(), h, "no"))
		}
		f := &fakeBus{table: table}
		f.handle = func(ctx context.Context, r deadletter.Release) deadletter.Sending {
			switch r.Handler {
			case "fails":
				return f.fail(ctx, r)
			case "problem":
				return deadletter.Sending{Problem: errors.New("it is too large\x00")}
			case "elsewhere":
				return deadletter.Sending{Elsewhere: "billing"}
			default:
				return f.settle(ctx, r)
			}
		}
		f.run(t)
		var kept, again deadletter.Progress
		var last deadletter.Progress
		for p, err := range table.Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{MaxFailures: 1, Patience: patience}) {
			require.NoError(t, err)
			switch last = p; p.Step {
			case deadletter.Kept:
				kept = p
			case deadletter.FailedAgain:
				again = p
			default:
			}
		}
		require.Equal(t, deadletter.Done, last.Step)
		require.Equal(t, deadletter.Counts{Chosen: 4, Sent: 3, Handled: 1, FailedAgain: 1, Kept: 1, Unknown: 1}, last.Counts)
		require.Zero(t, last.InFlight())
		require.ErrorContains(t, kept.Problem, "it is too large")
		require.Equal(t, "problem", kept.Letter.Handler)
		require.Equal(t, "again", again.Letter.Reason)
		waiting := all(t, table, deadletter.Filter{})
		require.Len(t, waiting, 2)
		require.Equal(t, "problem", waiting[0].Handler)
		elsewhere := all(t, table, deadletter.Filter{Handler: "elsewhere", States: []deadletter.State{deadletter.Settled}})
		require.Len(t, elsewhere, 1)
		require.Contains(t, elsewhere[0].Decided.Reason, "billing")

		f.handle = f.settle
		_, resumed, err := replay(t.Context(), table, deadletter.Filter{}, deadletter.ReplayOptions{Patience: patience, Resume: last.ReplayID})
		require.NoError(t, err)
		require.Equal(t, deadletter.Counts{Chosen: 1, Sent: 1, Handled: 1}, resumed.Counts, "what failed again is passed over")
	})
}

func TestReplayKeepsTheOrder(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		random := rand.New(rand.NewPCG(3, 4))
		streams := []*storetest.Stream{storetest.NewStream(), storetest.NewStream(), storetest.NewStream()}
		var arrivals []deadletter.Arrival
		for i := range 600 {
			a := plain(fmt.Sprint(i))
			if i%3 > 0 {
				a = letterOf(t, streams[random.IntN(3)], "h", "r")
				if i%2 == 0 {
					a.Handler = "other"
				}
			}
			a.ID, a.LastFailed = fmt.Sprint(i), a.LastFailed.Add(time.Duration(random.IntN(100))*time.Second)
			arrivals = append(arrivals, a)
		}
		random.Shuffle(len(arrivals), func(i, j int) { arrivals[i], arrivals[j] = arrivals[j], arrivals[i] })
		ingest(t, table, arrivals...)
		bySQL, byGo, err := table.Choose(t.Context(), deadletter.Filter{}, "new")
		require.NoError(t, err)
		require.Equal(t, bySQL, byGo)
		require.Len(t, bySQL, len(arrivals))
		type line struct{ aggregate, handler string }
		lines := map[line][]deadletter.Arrival{}
		var order []line // by the oldest letter of each
		for _, a := range arrivals {
			l := line{a.Event.AggregateID.String(), a.Handler}
			if a.Event.AggregateVersion == 0 {
				l = line{handler: "alone " + a.ID}
			}
			if len(lines[l]) == 0 {
				order = append(order, l)
			}
			lines[l] = append(lines[l], a)
		}
		var want []string
		for _, l := range order {
			slices.SortFunc(lines[l], func(a, b deadletter.Arrival) int { return a.Event.AggregateVersion - b.Event.AggregateVersion })
			for _, a := range lines[l] {
				want = append(want, a.ID)
			}
		}
		require.Equal(t, want, bySQL)

		f := &fakeBus{table: table}
		f.run(t)
		_, last, err := replay(t.Context(), table, deadletter.Filter{}, deadletter.ReplayOptions{Patience: patience, Parallel: 70, MaxFailures: -1})
		require.NoError(t, err)
		require.Equal(t, deadletter.Counts{Chosen: 600, Sent: 600, Handled: 600}, last.Counts)
		require.Equal(t, bySQL, f.sent())
	})
}

func TestReplayOfSomeTakesTheOldest(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 30)
		for _, f := range []deadletter.Filter{{Limit: 5}, {Reason: regexp.MustCompile("^reason [0-4]$")}, {IDs: []string{"4", "3", "2", "1", "0", "x"}}} {
			_, last, err := replay(t.Context(), table, f, deadletter.ReplayOptions{DryRun: true})
			require.NoError(t, err)
			require.Equal(t, deadletter.Counts{Chosen: 5, Sent: 5}, last.Counts)
		}
		_, byGo, err := table.Choose(t.Context(), deadletter.Filter{Limit: 5}, "new")
		require.NoError(t, err)
		require.Equal(t, []string{"0", "1", "2", "3", "4"}, byGo)
	})
}

func TestReplayBeginsWithFewLetters(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 60)
		f := &fakeBus{table: table}
		f.handle = f.fail
		f.run(t)
		_, last, err := replay(t.Context(), table, deadletter.Filter{}, deadletter.ReplayOptions{MaxFailures: 2, Patience: patience})
		require.ErrorIs(t, err, deadletter.ErrTooManyFailures)
		require.Equal(t, deadletter.Counts{Chosen: 60, Sent: 3, FailedAgain: 3}, last.Counts)
		require.Len(t, f.sent(), 3)
		require.Len(t, all(t, table, deadletter.Filter{}), 60)

		f.mu.Lock()
		f.handle, f.got = f.settle, nil
		f.mu.Unlock()
		_, last, err = replay(t.Context(), table, deadletter.Filter{}, deadletter.ReplayOptions{MaxFailures: 0, Patience: patience, Resume: last.ReplayID})
		require.NoError(t, err)
		require.Equal(t, deadletter.Counts{Chosen: 57, Sent: 57, Handled: 57}, last.Counts)
	})
}

func TestReplayKeepsItsRate(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 4)
		f := &fakeBus{table: table}
		f.run(t)
		began := time.Now()
		_, last, err := replay(t.Context(), table, deadletter.Filter{}, deadletter.ReplayOptions{Rate: 4, MaxFailures: -1, Patience: patience})
		require.NoError(t, err)
		require.Equal(t, 4, last.Handled)
		require.GreaterOrEqual(t, time.Since(began), 3*time.Second/4)
	})
}

// A replay that waits for its rate has nothing to lose patience with.
func TestReplayHasPatienceOnlyWithWhatIsOnItsWay(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 2)
		f := &fakeBus{table: table}
		f.run(t)
		_, last, err := replay(t.Context(), table, deadletter.Filter{}, deadletter.ReplayOptions{Rate: 0.2, Patience: 4 * time.Second})
		require.NoError(t, err)
		require.Equal(t, 2, last.Handled)
	})
}

func TestReplayWithoutAWorkerGivesUp(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 3)
		_, last, err := replay(t.Context(), table, deadletter.Filter{}, deadletter.ReplayOptions{Patience: 300 * time.Millisecond, MaxFailures: 1})
		require.ErrorIs(t, err, deadletter.ErrNoOutcome)
		require.Equal(t, deadletter.Counts{Chosen: 3}, last.Counts)
		require.Len(t, all(t, table, deadletter.Filter{}), 3, "what was released is taken back")
	})
}

func TestReplayEndsWhenAllIsOnItsWay(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 3)
		f := &fakeBus{table: table, handle: func(context.Context, deadletter.Release) deadletter.Sending { return deadletter.Sending{} }}
		f.run(t)
		_, last, err := replay(t.Context(), table, deadletter.Filter{}, deadletter.ReplayOptions{})
		require.NoError(t, err)
		require.Equal(t, deadletter.Counts{Chosen: 3, Sent: 3}, last.Counts)
		require.Equal(t, 3, last.InFlight())
		replaying := all(t, table, deadletter.Filter{States: []deadletter.State{deadletter.Replaying}})
		require.Len(t, replaying, 3)

		now := time.Now()
		require.NoError(t, table.GiveUp(t.Context(), now.Add(14*time.Minute)))
		require.Empty(t, all(t, table, deadletter.Filter{}))
		require.NoError(t, table.GiveUp(t.Context(), now.Add(16*time.Minute)))
		require.Len(t, all(t, table, deadletter.Filter{}), 3, "nothing was heard of them")
		require.NoError(t, table.Settled(t.Context(), replaying[0].ID, last.ReplayID, nil, true))
		require.Len(t, all(t, table, deadletter.Filter{}), 2, "it was handled after all")
	})
}

// An edit releases its letter while no worker runs.
func TestWhatIsReleasedIsSentHoweverLate(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		ingest(t, table, letterOf(t, storetest.NewStream(), "h", "r"))
		_, err := table.Edit(t.Context(), only(t, table).ID, merge(`{"event_data":{"x":1}}`), audit.Actor{By: "ana"})
		require.NoError(t, err)
		require.NoError(t, table.GiveUp(t.Context(), time.Now().Add(time.Hour)))
		require.Len(t, all(t, table, deadletter.Filter{States: []deadletter.State{deadletter.Replaying}}), 1)
	})
}

func TestReplayIsCutOff(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 50)
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("enough")
		go func() { // no worker
			for ctx.Err() == nil {
				for _, err := range table.List(ctx, deadletter.Filter{States: []deadletter.State{deadletter.Replaying}}) {
					if err == nil {
						cancel(cause)
					}
				}
			}
		}()
		_, last, err := replay(ctx, table, deadletter.Filter{}, deadletter.ReplayOptions{})
		require.ErrorIs(t, err, cause)
		require.Equal(t, deadletter.Counts{Chosen: 50}, last.Counts)
		require.Len(t, all(t, table, deadletter.Filter{}), 50)

		for p, err := range table.Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{}) {
			require.NoError(t, err)
			require.Equal(t, deadletter.Begun, p.Step)
			break
		}
		require.Len(t, all(t, table, deadletter.Filter{}), 50, "nobody watches it any longer")
		_, _, err = replay(t.Context(), table, deadletter.Filter{}, deadletter.ReplayOptions{Rate: -1})
		require.Error(t, err)
		_, _, err = replay(t.Context(), table, deadletter.Filter{}, deadletter.ReplayOptions{Resume: "x"})
		require.Error(t, err)
	})
}

// What is being published when its replay ends is not published again by the next.
func TestReplayEndsWhileALetterIsPublished(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 1)
		ctx, end := context.WithCancel(t.Context())
		publishing, ended := make(chan struct{}), make(chan struct{})
		f := &fakeBus{table: table, handle: func(context.Context, deadletter.Release) deadletter.Sending {
			close(publishing) // a second call would panic
			<-ended
			return deadletter.Sending{}
		}}
		f.run(t)
		go func() {
			<-publishing
			end()
		}()
		_, _, err := replay(ctx, table, deadletter.Filter{}, deadletter.ReplayOptions{Patience: patience})
		require.ErrorIs(t, err, context.Canceled)
		require.Len(t, all(t, table, deadletter.Filter{}), 1, "it waits again")
		close(ended)

		replaying := deadletter.Filter{States: []deadletter.State{deadletter.Replaying}}
		require.Eventually(t, func() bool { return len(all(t, table, replaying)) == 1 }, patience, time.Millisecond)
		_, last, err := replay(t.Context(), table, deadletter.Filter{}, deadletter.ReplayOptions{Patience: patience})
		require.NoError(t, err)
		require.Zero(t, last.Chosen)
		f.settle(t.Context(), f.got[0])
		require.Empty(t, all(t, table, replaying))
	})
}

// A letter that is sent when its replay ends fails while the resumed replay has it in its list, but not sent again.
func TestResumedReplaySendsNoLetterThatHasFailedInIt(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 2)
		f := &fakeBus{table: table}
		f.handle = f.fail
		first := ""
		for p, err := range table.Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{Patience: patience}) {
			require.NoError(t, err)
			first = p.ReplayID
			break // nothing is sent
		}
		waiting := all(t, table, deadletter.Filter{})
		var steps []deadletter.Step
		o := deadletter.ReplayOptions{Resume: first, Patience: patience, MaxFailures: -1}
		var last deadletter.Progress
		for p, err := range table.Replay(t.Context(), deadletter.Filter{}, o) {
			require.NoError(t, err)
			if p.Step == deadletter.Begun {
				f.fail(t.Context(), deadletter.Release{Letter: waiting[0], ReplayID: first})
				f.run(t)
			}
			steps, last = append(steps, p.Step), p
		}
		require.Equal(t, deadletter.Counts{Chosen: 2, Sent: 2, FailedAgain: 2}, last.Counts, "%v", steps)
		require.Equal(t, []string{waiting[1].ID}, f.sent())
		for _, l := range all(t, table, deadletter.Filter{}) {
			require.Equal(t, 1, l.Replays)
		}
	})
}

func TestTwoReplaysSendNoLetterTwice(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 400)
		f := &fakeBus{table: table}
		f.run(t)
		var done sync.WaitGroup
		var last [2]deadletter.Progress
		var errs [2]error
		for i := range last {
			done.Go(func() {
				_, last[i], errs[i] = replay(t.Context(), table, deadletter.Filter{}, deadletter.ReplayOptions{Patience: patience, Parallel: 30, MaxFailures: -1})
			})
		}
		done.Wait()
		require.NoError(t, errors.Join(errs[:]...))
		require.Len(t, f.sent(), 400)
		require.Equal(t, 400, last[0].Handled+last[1].Handled)
		for _, p := range last {
			require.Equal(t, p.Chosen, p.Sent+p.Kept)
			require.Equal(t, p.Sent, p.Handled)
		}
	})
}

// What others do with letters while they are replayed is told, and a letter that somebody has decided on is not sent.
func TestLettersThatOthersTakeMeanwhile(t *testing.T) {
	t.Parallel()
	archive := func(ctx context.Context, table *deadletter.Table, id string) error {
		_, err := table.PutAside(ctx, deadletter.Filter{IDs: []string{id}}, deadletter.Archived, audit.Actor{})
		return err
	}
	for name, take := range map[string]func(ctx context.Context, b backend, table *deadletter.Table, id string) error{
		"archived": func(ctx context.Context, _ backend, table *deadletter.Table, id string) error {
			return archive(ctx, table, id)
		},
		"purged": func(ctx context.Context, _ backend, table *deadletter.Table, id string) error {
			if err := archive(ctx, table, id); err != nil {
				return err
			}
			_, err := table.PurgeDecided(ctx, time.Now().Add(time.Hour), 1, nil)
			return err
		},
		"handled": func(ctx context.Context, _ backend, table *deadletter.Table, id string) error {
			return table.Settled(ctx, id, "another", nil, true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
				t.Helper()
				many(t, table, 3)
				f := &fakeBus{table: table}
				f.handle = func(ctx context.Context, r deadletter.Release) deadletter.Sending {
					if r.ID == "0" {
						if err := take(ctx, b, table, "2"); err != nil {
							panic(err)
						}
					}
					return f.settle(ctx, r)
				}
				f.run(t)
				_, last, err := replay(t.Context(), table, deadletter.Filter{}, deadletter.ReplayOptions{Patience: patience, Parallel: 1})
				require.NoError(t, err)
				require.Equal(t, []string{"0", "1"}, f.sent())
				require.Equal(t, deadletter.Counts{Chosen: 3, Sent: 2, Handled: 2, Kept: 1}, last.Counts)
			})
		})
	}
}

// A letter that was sent and is gone then has no outcome.
func TestALetterThatIsGoneAfterItWasSent(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 1)
		f := &fakeBus{table: table, handle: func(context.Context, deadletter.Release) deadletter.Sending { return deadletter.Sending{} }}
		f.run(t)
		var last deadletter.Progress
		for p, err := range table.Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{Patience: patience}) {
			require.NoError(t, err)
			if last = p; p.Step == deadletter.Sent {
				write(t, b, "DELETE FROM dead_letters")
			}
		}
		require.Equal(t, deadletter.Counts{Chosen: 1, Sent: 1, Unknown: 1}, last.Counts)
	})
}

func TestReplayToARenamedHandler(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		ingest(t, table, letterOf(t, storetest.NewStream(), "old", "no 7"))
		was := only(t, table)
		f := &fakeBus{table: table}
		f.handle = f.fail
		f.run(t)
		_, last, err := replay(t.Context(), table, deadletter.Filter{Handler: "old"}, deadletter.ReplayOptions{Handler: "new", MaxFailures: -1, Patience: patience})
		require.NoError(t, err)
		require.Equal(t, 1, last.FailedAgain)
		require.Equal(t, "new", f.got[0].Message().Metadata.Get(bus.ReplayHandlerKey))
		l := only(t, table)
		require.Equal(t, was.ID, l.ID)
		require.Equal(t, "new", l.Handler)
		group, _ := deadletter.Fingerprint("new", l.Type, l.Reason)
		require.Equal(t, group, l.Group)
		var kinds []deadletter.IncidentKind
		for _, i := range l.History {
			kinds = append(kinds, i.Kind)
		}
		require.Equal(t, []deadletter.IncidentKind{deadletter.Failed, deadletter.Edited, deadletter.Replayed}, kinds)
		require.Contains(t, l.History[1].Reason, `from handler "old" to "new"`)
	})
}

func TestReplayerTriesAgain(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 3)
		f := &fakeBus{table: table, fails: func(call int) error {
			if call < 3 {
				return errors.New("the bus is away")
			}
			return nil
		}}
		f.run(t)
		_, last, err := replay(t.Context(), table, deadletter.Filter{}, deadletter.ReplayOptions{Patience: patience, MaxFailures: -1})
		require.NoError(t, err)
		require.Equal(t, 3, last.Handled)
		require.Equal(t, []string{"0", "1", "2"}, f.sent())
	})
}

// A worker that dies after it has published, before it has noted that, publishes again.
func TestReplayerThatDiesBeforeItsNote(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 2)
		f := &fakeBus{table: table, handle: func(context.Context, deadletter.Release) deadletter.Sending { return deadletter.Sending{} }}
		dying := dyingBus{f}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			deadletter.NewReplayer(table, dying, testLogger(t)).Run(ctx, nil)
		}()
		defer func() { cancel(); <-ended }()
		_, last, err := replay(t.Context(), table, deadletter.Filter{}, deadletter.ReplayOptions{Patience: patience, MaxFailures: -1})
		require.NoError(t, err)
		require.Equal(t, deadletter.Counts{Chosen: 2, Sent: 2, Handled: 2}, last.Counts)
		require.Equal(t, []string{"0", "1", "0", "1"}, f.sent())
	})
}

// dyingBus publishes, and then its first call fails.
type dyingBus struct{ *fakeBus }

func (d dyingBus) PublishLetters(ctx context.Context, letters []deadletter.Release) ([]deadletter.Sending, error) {
	sendings, err := d.fakeBus.PublishLetters(ctx, letters)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.calls == 1 {
		d.handle = d.settle
		return nil, errors.New("died")
	}
	return sendings, err
}

func TestReleasedMessage(t *testing.T) {
	t.Parallel()
	l := deadletter.Letter{
		ID: "7", Failure: deadletter.Failure{Handler: "h", Reason: "r"}, Body: []byte("x"), Replays: 2,
		Headers: map[string]any{"k": "v", "n": 7, bus.ReplayHandlerKey: "before"},
	}
	m := deadletter.Release{Letter: l, ReplayID: "r", To: deadletter.ToHandler}.Message()
	require.Equal(t, "h", m.Metadata.Get(bus.ReplayHandlerKey))
	require.Equal(t, "v", m.Metadata.Get("k"))
	require.Equal(t, "3", m.Metadata.Get(deadletter.ReplayCountKey))
	require.Equal(t, "7", m.Metadata.Get(deadletter.ReplayOfKey))
	require.Equal(t, "x", string(m.Payload))
	m = deadletter.Release{Letter: l, ReplayID: "r", To: deadletter.ToBus}.Message()
	require.NotContains(t, m.Metadata, bus.ReplayHandlerKey)
	l.Handler = ""
	m = deadletter.Release{Letter: l, ReplayID: "r", To: deadletter.ToHandler}.Message()
	require.Equal(t, "before", m.Metadata.Get(bus.ReplayHandlerKey), "the message was for one handler from its beginning")
}

// Letters fail again while the worker still notes that they are sent.
func TestIngestWhileSentLettersAreNoted(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		const n = 300
		many(t, table, n)
		failing := make(chan deadletter.Release, n)
		f := &fakeBus{table: table}
		f.handle = func(_ context.Context, r deadletter.Release) deadletter.Sending {
			failing <- r
			return deadletter.Sending{}
		}
		f.run(t)
		errs := make(chan error, 1)
		go func() {
			var batch []deadletter.Arrival
			for range n {
				r := <-failing
				if batch = append(batch, failedAgain(r.Letter, r.ReplayID, r.To, r.Handler, "again")); len(batch) == 50 {
					rand.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
					if err := table.Ingest(t.Context(), batch); err != nil {
						errs <- err
						return
					}
					batch = nil
				}
			}
			errs <- nil
		}()
		_, last, err := replay(t.Context(), table, deadletter.Filter{}, deadletter.ReplayOptions{Patience: patience, MaxFailures: -1})
		require.NoError(t, err)
		require.NoError(t, <-errs)
		require.Equal(t, n, last.FailedAgain)
		require.Len(t, f.sent(), n)
	})
}

// A letter is sent, fails again and is released anew, all before the worker notes that it was sent: it is sent once more.
func TestALetterReleasedAnewBeforeItsFirstSendingIsNoted(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 1)
		options := deadletter.ReplayOptions{Patience: patience, MaxFailures: -1}
		second := make(chan deadletter.Counts, 1)
		f := &fakeBus{table: table}
		f.handle = func(ctx context.Context, r deadletter.Release) deadletter.Sending {
			if len(f.got) > 1 {
				return f.settle(ctx, r)
			}
			f.fail(ctx, r)
			go func() {
				_, last, err := replay(ctx, table, deadletter.Filter{}, options)
				assert.NoError(t, err)
				second <- last.Counts
			}()
			assert.Eventually(t, func() bool {
				var releases int
				err := b.SQL().DB.QueryRowContext(ctx, "SELECT count(*) FROM dead_letters WHERE state = 'replaying' AND replays = 1").Scan(&releases)
				return err == nil && releases == 1
			}, patience, time.Millisecond)
			return deadletter.Sending{}
		}
		f.run(t)
		_, first, err := replay(t.Context(), table, deadletter.Filter{}, options)
		require.NoError(t, err)
		require.Equal(t, 1, first.FailedAgain+first.Kept, "kept by the second")
		require.Equal(t, deadletter.Counts{Chosen: 1, Sent: 1, Handled: 1}, <-second)
		require.Equal(t, []string{"0", "0"}, f.sent())
	})
}

func TestAReplayWithoutAWorkerSaysThatItWaitsForOne(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		tail, err := b.Tail(t.Context(), store.TailConfig{BatchSize: 1})
		require.NoError(t, err)
		defer func() { require.NoError(t, tail.Close()) }()
		many(t, table, 3)
		o := deadletter.ReplayOptions{Patience: 10 * time.Second}
		var steps []deadletter.Step
		var problem error
		for p, replayErr := range table.Replay(t.Context(), deadletter.Filter{}, o) {
			if err = replayErr; err == nil {
				steps, problem = append(steps, p.Step), p.Problem
			}
		}
		require.Equal(t, []deadletter.Step{deadletter.Begun, deadletter.NoWorker}, steps)
		require.ErrorContains(t, problem, "no worker leads")
		require.ErrorIs(t, err, deadletter.ErrNoOutcome)
		require.ErrorContains(t, err, "no worker leads")
		require.Len(t, all(t, table, deadletter.Filter{}), 3)

		o.Patience = time.Millisecond // the lease may be free for a moment only
		for p, replayErr := range table.Replay(t.Context(), deadletter.Filter{}, o) {
			require.NotEqual(t, deadletter.NoWorker, p.Step)
			err = replayErr
		}
		require.ErrorIs(t, err, deadletter.ErrNoOutcome)
		require.NotContains(t, err.Error(), "no worker")

		_, err = tail.TakeLease(t.Context(), store.RelayTask, "leader", time.Minute)
		require.NoError(t, err)
		for p, replayErr := range table.Replay(t.Context(), deadletter.Filter{}, o) {
			require.NotEqual(t, deadletter.NoWorker, p.Step)
			err = replayErr
		}
		require.ErrorIs(t, err, deadletter.ErrNoOutcome)
		require.NotContains(t, err.Error(), "no worker")
	})
}

// What a command says that it has done is what it has changed, whatever another does at the same time.
func TestCommandsAtOnceHaveEachLetterOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		const n = deadletter.PageRows + 100
		many(t, table, n)
		atOnce := func(do func(table *deadletter.Table) (int, error)) {
			t.Helper()
			var g errgroup.Group
			var sum atomic.Int64
			for range 3 {
				g.Go(func() error {
					done, err := do(deadletter.NewTable(b.SQL()))
					sum.Add(int64(done))
					return err
				})
			}
			require.NoError(t, g.Wait())
			require.EqualValues(t, n, sum.Load())
		}
		ctx := t.Context()
		atOnce(func(table *deadletter.Table) (int, error) {
			return table.PutAside(ctx, deadletter.Filter{}, deadletter.Archived, audit.Actor{By: "ana"})
		})
		atOnce(func(table *deadletter.Table) (int, error) {
			return table.Restore(ctx, deadletter.Filter{}, audit.Actor{By: "ben"})
		})
		var mu sync.Mutex
		var files strings.Builder
		atOnce(func(table *deadletter.Table) (int, error) {
			var file memoryFile
			removed, err := table.ExportAndRemove(ctx, deadletter.Filter{}, &file, audit.Actor{})
			mu.Lock()
			defer mu.Unlock()
			files.WriteString(file.String())
			if errors.Is(err, deadletter.ErrExporting) {
				require.Zero(t, removed+file.Len())
				err = nil
			}
			return removed, err
		})
		lines := strings.Split(strings.TrimSpace(files.String()), "\n")
		once := map[string]bool{}
		for _, line := range lines {
			once[line] = true
		}
		require.Equal(t, [2]int{n, n}, [2]int{len(lines), len(once)})
		atOnce(func(table *deadletter.Table) (int, error) {
			counts, err := table.Import(ctx, strings.NewReader(files.String()), false, audit.Actor{})
			return counts.Imported, err
		})
		atOnce(func(table *deadletter.Table) (int, error) { return table.PurgeWaiting(ctx, audit.Actor{}) })
	})
}

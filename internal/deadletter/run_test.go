package deadletter_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
)

func TestHistoryIsBounded(t *testing.T) {
	t.Parallel()
	var h deadletter.History
	for i := range 40 {
		h = h.With(deadletter.Incident{Kind: deadletter.Failed, Attempts: i, Reason: string(make([]byte, 1000))})
	}
	require.Len(t, h, deadletter.MaxIncidents)
	require.Equal(t, 0, h[0].Attempts)
	require.Equal(t, deadletter.Omitted, h[1].Kind)
	require.Equal(t, 40-(deadletter.MaxIncidents-1), h[1].Attempts, "how many are left out")
	require.Equal(t, 39, h[len(h)-1].Attempts)
	require.LessOrEqual(t, len(h.Header()), 32<<10, "it fits into a header")
}

// A letter is edited after it has failed, and fails again after it was replayed.
func TestHistoryIsInOrder(t *testing.T) {
	t.Parallel()
	kinds := func(l deadletter.Letter) []deadletter.IncidentKind {
		headers := map[string]any{}
		for key, value := range l.ReplayHeaders("r", deadletter.ToHandler, time.Now()) {
			headers[key] = value
		}
		var kinds []deadletter.IncidentKind
		for _, i := range deadletter.Complete(deadletter.Letter{Headers: headers}).History {
			kinds = append(kinds, i.Kind)
		}
		return kinds
	}
	require.Equal(t, []deadletter.IncidentKind{deadletter.Failed, deadletter.Replayed}, kinds(deadletter.Letter{}))
	edited := deadletter.Incident{Kind: deadletter.Edited}
	past := deadletter.History{{Kind: deadletter.Failed}, edited, {Kind: deadletter.Replayed}, edited}
	require.Equal(t, []deadletter.IncidentKind{
		deadletter.Failed, deadletter.Edited, deadletter.Replayed, deadletter.Failed, deadletter.Edited, deadletter.Replayed,
	}, kinds(deadletter.Letter{History: past}))
	require.Equal(t, edited, past[3], "the letter's own stays")
}

func TestFilter(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	l := deadletter.Complete(deadletter.Letter{
		ID: "7", Body: eventBody(1, "PatientMoved"),
		Failure: deadletter.Failure{Handler: "move", Reason: "no street 7", LastFailed: at},
	})
	for name, test := range map[string]struct {
		filter deadletter.Filter
		want   bool
	}{
		"all":         {deadletter.Filter{}, true},
		"id":          {deadletter.Filter{IDs: []string{"6", "7"}}, true},
		"event's id":  {deadletter.Filter{IDs: []string{l.Event.ID.String()}}, true},
		"other id":    {deadletter.Filter{IDs: []string{"6"}}, false},
		"group":       {deadletter.Filter{Group: l.Group}, true},
		"other group": {deadletter.Filter{Group: "00000000"}, false},
		"handler":     {deadletter.Filter{Handler: "welcome"}, false},
		"tenant":      {deadletter.Filter{Tenant: uuid.New()}, false},
		"since":       {deadletter.Filter{Since: at}, true},
		"until":       {deadletter.Filter{Until: at}, false},
		"both":        {deadletter.Filter{Type: "PatientMoved", Handler: "welcome"}, false},
	} {
		require.Equal(t, test.want, test.filter.Match(l), name)
	}
	require.False(t, deadletter.Filter{Until: at}.Match(deadletter.Letter{}), "it does not tell when it failed")
}

func TestLettersAreEncodedWithoutLoss(t *testing.T) {
	t.Parallel()
	l := deadletter.Complete(deadletter.Letter{
		ID: "7", Source: "lane-1", Body: []byte("\xff\x00"), Headers: map[string]any{"x": "ü"},
		Failure: deadletter.Failure{Handler: "h", Reason: "r", Attempts: 2, LastFailed: time.Unix(7, 5000).UTC()},
	})
	l.History = l.History.With(deadletter.Incident{Kind: deadletter.Edited, At: time.Unix(3, 0).UTC(), By: "ana"})
	l.Replays, l.ReplayID, l.ReplayOf = 3, "r", "5"
	line, err := l.Encode()
	require.NoError(t, err)
	decoded, err := deadletter.Decode(line)
	require.NoError(t, err)
	require.Equal(t, l, decoded)
	_, err = deadletter.Decode([]byte(`{"id": 7, "secret": "x"}`))
	require.Error(t, err)
	require.NotContains(t, err.Error(), "secret")
}

// worker takes up marked letters of a shelf as a Replayer does, until the test ends; fails tells which fail again.
func worker(t *testing.T, shelf *memoryShelf, fails func(deadletter.Letter) bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			marked, _ := shelf.ReplayRequested(ctx, 1)
			for _, r := range marked {
				if l := deadletter.Complete(r.Letter); fails(l) {
					again := deadletter.Letter{Failure: deadletter.Failure{Reason: "again", Handler: l.Handler}, Body: l.Body, Headers: map[string]any{}}
					for key, value := range l.ReplayHeaders(r.By.ReplayID, r.By.To, time.Now()) {
						again.Headers[key] = value
					}
					_, _ = shelf.AddLetter(ctx, again)
				}
				_ = shelf.RemoveLetter(ctx, r.ID)
			}
			<-time.After(time.Millisecond)
		}
	}()
}

func replay(t *testing.T, shelf *memoryShelf, o deadletter.ReplayOptions) (steps []deadletter.Step, last deadletter.Progress, err error) {
	t.Helper()
	for last, err = range deadletter.NewShelfQueue(shelf).Replay(t.Context(), deadletter.Filter{}, o) {
		if steps = append(steps, last.Step); err != nil {
			return steps, last, err
		}
	}
	return steps, last, nil
}

func TestReplayFollowsLettersOnAShelf(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		shelf := &memoryShelf{}
		fill(t, shelf, 500) // of two types by turns
		worker(t, shelf, func(l deadletter.Letter) bool { return l.Type == "PatientMoved" })
		o := deadletter.ReplayOptions{Parallel: 20, MaxFailures: 30, Patience: time.Minute}

		steps, last, err := replay(t, shelf, o)
		require.ErrorIs(t, err, deadletter.ErrTooManyFailures)
		require.Equal(t, deadletter.Begun, steps[0])
		require.Equal(t, 500, last.Chosen)
		require.GreaterOrEqual(t, last.FailedAgain, 31)
		require.Less(t, last.Sent, 120)
		require.Empty(t, shelf.marked(), "the marks are taken away")

		o.MaxFailures, o.Resume = -1, last.ReplayID
		before := len(shelf.all())
		steps, last, err = replay(t, shelf, o)
		require.NoError(t, err)
		require.Equal(t, deadletter.Done, steps[len(steps)-1])
		require.Less(t, last.Chosen, before, "what failed again is passed over")
		require.Equal(t, last.Chosen, last.Sent)
		require.Equal(t, last.Sent, last.Handled+last.FailedAgain)
		require.Len(t, shelf.all(), 250)
		for _, l := range shelf.all() {
			require.Equal(t, 1, deadletter.Complete(l).Replays)
		}
	})
}

func TestReplayBeginsWithFewLetters(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		shelf := &memoryShelf{}
		fill(t, shelf, 500)
		mended := false
		worker(t, shelf, func(deadletter.Letter) bool { return !mended })
		o := deadletter.ReplayOptions{MaxFailures: 3, Patience: time.Minute}

		_, last, err := replay(t, shelf, o)
		require.ErrorIs(t, err, deadletter.ErrTooManyFailures)
		require.Equal(t, 4, last.Sent, "no more than end it")
		require.Equal(t, 4, last.FailedAgain)

		mended = true
		began := time.Now()
		_, last, err = replay(t, shelf, o)
		require.NoError(t, err)
		require.Equal(t, 500, last.Handled)
		require.Less(t, time.Since(began), 5*time.Second, "and soon with all")
	})
}

func TestReplayKeepsItsRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		shelf := &memoryShelf{}
		fill(t, shelf, 51)
		worker(t, shelf, func(deadletter.Letter) bool { return false })
		began := time.Now()
		_, last, err := replay(t, shelf, deadletter.ReplayOptions{Rate: 10, Patience: time.Minute})
		require.NoError(t, err)
		require.Equal(t, 51, last.Handled)
		require.InDelta(t, 5, time.Since(began).Seconds(), 0.5)
	})
}

func TestReplayWithoutAWorkerGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		shelf := &memoryShelf{}
		fill(t, shelf, 30)
		_, last, err := replay(t, shelf, deadletter.ReplayOptions{Parallel: 10, MaxFailures: 20, Patience: time.Minute})
		require.ErrorIs(t, err, deadletter.ErrNoOutcome)
		require.Equal(t, 10, last.InFlight())
		require.Len(t, shelf.marked(), 10, "a worker that starts later takes them up")
	})
}

func TestReplayOnAShelfGoesByVersions(t *testing.T) {
	t.Parallel()
	shelf := &memoryShelf{}
	aggregate := uuid.New()
	for _, version := range []int{2, 3, 1} {
		body := fmt.Sprintf(`{"event_type":"T","aggregate_id":%q,"aggregate_version":%d}`, aggregate, version)
		_, err := shelf.AddLetter(t.Context(), deadletter.Letter{Body: []byte(body)})
		require.NoError(t, err)
	}
	require.Equal(t, []string{"3", "1", "2"}, sent(t, deadletter.NewShelfQueue(shelf).Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{})))
	require.Equal(t, []string{"3", "1", "2"}, shelf.marked())
}

// What a replay that was killed has marked does not go before what is marked anew.
func TestAResumedReplayOnAShelfKeepsTheOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		shelf := &memoryShelf{}
		fill(t, shelf, 40)
		killed, err := deadletter.ReplayOptions{}.Check()
		require.NoError(t, err)
		want := sent(t, deadletter.NewShelfQueue(shelf).Replay(t.Context(), deadletter.Filter{}, killed))
		require.Equal(t, want, shelf.marked())

		handled := make(chan string, len(want))
		o := deadletter.ReplayOptions{Resume: killed.Resume, Patience: time.Minute}
		for p, err := range deadletter.NewShelfQueue(shelf).Replay(t.Context(), deadletter.Filter{}, o) {
			require.NoError(t, err)
			if p.Step == deadletter.Begun {
				worker(t, shelf, func(l deadletter.Letter) bool { handled <- l.ID; return false })
			}
		}
		close(handled)
		var order []string
		for id := range handled {
			order = append(order, id)
		}
		require.Equal(t, want, order)
	})
}

func TestTakeAndReturnOnAShelf(t *testing.T) {
	t.Parallel()
	shelf := &memoryShelf{}
	fill(t, shelf, 250)
	q := deadletter.NewShelfQueue(shelf)
	full := errors.New("disk full")
	n, err := q.Take(t.Context(), deadletter.Filter{}, func(context.Context, []deadletter.Letter) error { return full })
	require.ErrorIs(t, err, full)
	require.Zero(t, n)
	require.Len(t, shelf.all(), 250, "what is not kept stays")
	var kept []deadletter.Letter
	n, err = q.Take(t.Context(), deadletter.Filter{Type: "PatientMoved"}, func(_ context.Context, letters []deadletter.Letter) error {
		kept = append(kept, letters...)
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, 125, n)
	require.Len(t, kept, 125)
	kept[0].Replays, kept[0].ReplayID = 2, "r"
	returned, err := q.Return(t.Context(), kept[:1])
	require.NoError(t, err)
	var all []deadletter.Letter
	for l, err := range q.List(t.Context(), deadletter.Filter{IDs: returned}) {
		require.NoError(t, err)
		all = append(all, l)
	}
	require.Len(t, all, 1)
	kept[0].ID = returned[0]
	require.Equal(t, kept[0], all[0])
	_, err = q.Return(t.Context(), []deadletter.Letter{{Raw: []byte("{}")}})
	require.ErrorIs(t, err, deadletter.ErrForeign)
}

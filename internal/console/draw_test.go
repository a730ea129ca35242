package console

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/causation"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/worker"
)

func began() time.Time { return time.Date(2026, 7, 1, 9, 0, 0, 0, time.UTC) }

// chain returns events, each the cause of the next, with the given pauses between them.
func chain(pauses ...time.Duration) causation.Tree {
	at := began()
	tree := causation.Tree{Nodes: []causation.Node{{Event: events.Event{ID: uuid.New(), CreatedAt: at}, Parent: -1, Stored: true}}}
	for i, pause := range pauses {
		at = at.Add(pause)
		tree.Nodes = append(tree.Nodes, causation.Node{
			Event: events.Event{ID: uuid.New(), CreatedAt: at}, Parent: i, Depth: i + 1, Stored: true,
		})
	}
	return tree
}

func TestDrawingKeepsOrderAndFits(t *testing.T) {
	t.Parallel()
	for name, tree := range map[string]causation.Tree{
		"one":           chain(),
		"at once":       chain(0, 0),
		"even":          chain(time.Second, time.Second, time.Second),
		"a long pause":  chain(10*time.Millisecond, 72*time.Hour, 5*time.Millisecond),
		"backwards":     chain(time.Second, -2*time.Second),
		"without times": {Nodes: []causation.Node{{Parent: -1}}},
	} {
		d := draw(tree)
		require.Len(t, d.Rows, len(tree.Nodes), name)
		for i, row := range d.Rows {
			require.False(t, math.IsNaN(row.At), name)
			require.Greater(t, row.At, float64(labelWidth), name)
			require.LessOrEqual(t, row.At, float64(drawWidth-plotRight), name)
			require.Less(t, row.Middle, d.Height, name)
			require.Equal(t, i > 0, row.From != "", name)
			for _, other := range d.Rows {
				if row.Event.CreatedAt.Before(other.Event.CreatedAt) {
					require.Less(t, row.At, other.At, name)
				}
			}
		}
		for i := 1; i < len(d.Ticks); i++ {
			require.Greater(t, d.Ticks[i].X-d.Ticks[i-1].X, 40.0, "%s: labels do not overlap", name)
		}
	}
	require.True(t, draw(chain(10*time.Millisecond, 72*time.Hour, 5*time.Millisecond)).Compressed)
	require.False(t, draw(chain(time.Second, time.Second, time.Second)).Compressed)
}

func TestDrawingTellsWhatBecameOfAnEvent(t *testing.T) {
	t.Parallel()
	tree := chain(time.Second)
	tree.Nodes[0].Handled = []store.Handling{{Handler: "first", At: began().Add(time.Second)}, {Handler: "last", At: began().Add(2 * time.Second)}}
	tree.Nodes[1].Failures = []causation.Failure{{LetterID: "a/b", State: deadletter.Waiting, Failure: deadletter.Failure{LastFailed: began().Add(3 * time.Second)}}}
	rows := draw(tree).Rows
	require.Len(t, rows[0].Spans, 2)
	require.Equal(t, "last +1", rows[0].Spans[1].Label)
	require.True(t, rows[0].Spans[1].Show)
	require.False(t, rows[0].Spans[0].Show)
	require.False(t, rows[0].Failed)
	require.True(t, rows[1].Failed)
	require.True(t, rows[1].Spans[0].Bad)
	require.Equal(t, "no handler", rows[1].Spans[0].Label)
	require.Equal(t, "/dead-letters/letter/a%2Fb", rows[1].Spans[0].Href)

	tree.Nodes[1].Failures[0].State = deadletter.Archived
	rows = draw(tree).Rows
	require.False(t, rows[1].Failed, "nobody has to decide any more")
	require.Equal(t, "no handler, archived", rows[1].Spans[0].Label)
}

func TestRatesAreOfTheLastSeconds(t *testing.T) {
	t.Parallel()
	var r recorder
	now := began()
	require.True(t, math.IsNaN(r.record(now, Totals{Handled: 100}).Handled), "of one sample there is no rate")
	require.True(t, math.IsNaN(r.record(now.Add(time.Millisecond), Totals{Handled: 100}).Handled))
	require.InDelta(t, 20, r.record(now.Add(2*time.Second), Totals{Handled: 140}).Handled, .01)
	for i := range 30 {
		r.record(now.Add(time.Duration(3+i)*time.Second), Totals{Handled: 140})
	}
	require.Zero(t, r.record(now.Add(33*time.Second), Totals{Handled: 140}).Handled)
	require.LessOrEqual(t, len(r.samples), 12)
	require.Zero(t, r.record(now.Add(34*time.Second), Totals{Handled: 0}).Handled, "a counter that began anew is no negative rate")
}

func TestPicturesSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := Status{Parts: map[string]worker.Part{
		"store": {State: "ok"}, "relay": {State: "ok (idle)"}, "bus": {State: "down", Problem: "no connection"}, "consumer": {State: "ok"},
	}, Lag: 5, LagSeconds: 90, Letters: 2}
	states := ""
	for _, box := range wide(s, unknownRates()).Stations {
		states += fmt.Sprintf("%s:%s ", box.Name, box.State)
	}
	require.Equal(t, "Append: Store:warn Relay: Bus:bad Handlers: Dead letters:bad ", states)
	require.Len(t, tall(s, unknownRates()).Stations, 6)
}

func TestFiguresForPeople(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		12 * time.Microsecond: "12 µs", 340 * time.Millisecond: "340 ms", 1500 * time.Millisecond: "1.5 s", 61 * time.Second: "1 min",
		50 * time.Hour: "2 d", -time.Second: "–1.0 s",
	} {
		require.Equal(t, want, took(d))
	}
	require.Equal(t, "1\u202f234\u202f567", count(1234567))
	require.Equal(t, "12", count(12))
	require.Empty(t, badge(0))
	require.Equal(t, "1\u202f000", badge(1000))
	require.Equal(t, "100\u202f000+", badge(store.MaxCount), "the count ends there")
	require.Equal(t, "–", rate(math.NaN()))
	require.Equal(t, "9.5/s", rate(9.5))
	require.Equal(t, "…9bcdef01", short("01234567-89ab-cdef-0123-45679bcdef01"))
}

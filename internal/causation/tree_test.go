package causation_test

import (
	"context"
	"encoding/json"
	"iter"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/causation"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store/sqlite"
)

func openStore(t *testing.T) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "events.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	require.NoError(t, s.Migrate(t.Context()))
	return s
}

// began is the time of the first event of the tests.
func began() time.Time { return time.Date(2026, 7, 30, 9, 0, 0, 0, time.UTC) }

// id is the id of the event with a name.
func id(name string) uuid.UUID { return uuid.NewSHA1(uuid.NameSpaceOID, []byte(name)) }

// chain returns events with one correlation id, a second apart, written as "event<cause". An event without a cause is a
// root.
func chain(correlation string, links ...string) []events.Event {
	list := make([]events.Event, len(links))
	for i, link := range links {
		name, cause, caused := strings.Cut(link, "<")
		list[i] = events.Event{
			ID: id(name), Type: name, AggregateType: "Patient", AggregateID: id("aggregate of " + name), AggregateVersion: 1,
			TenantID: id("tenant"), CorrelationID: id(correlation), CreatedAt: began().Add(time.Duration(i) * time.Second),
			CausationID: uuid.NullUUID{UUID: id(cause), Valid: caused}, Data: json.RawMessage(`{"name":"Ana"}`),
		}
	}
	return list
}

// drawn writes a tree's nodes as "depth name", the last of its siblings with a dot.
func drawn(tree causation.Tree) []string {
	lines := make([]string, len(tree.Nodes))
	for i, n := range tree.Nodes {
		lines[i] = strings.Repeat(" ", n.Depth) + n.Event.Type
		if n.Cause == causation.CauseMissing || n.Cause == causation.CauseCircular {
			lines[i] += " (" + string(n.Cause) + ")"
		}
		if n.Last {
			lines[i] += "."
		}
	}
	return lines
}

func TestLoadArrangesAChain(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ links, want []string }{
		"one event":          {[]string{"a"}, []string{"a."}},
		"one after another":  {[]string{"a", "b<a", "c<b"}, []string{"a.", " b.", "  c."}},
		"effects by time":    {[]string{"a", "b<a", "c<a", "d<b"}, []string{"a.", " b", "  d.", " c."}},
		"several beginnings": {[]string{"a", "b", "c<a", "d<b"}, []string{"a", " c.", "b.", " d."}},
		"a cause elsewhere":  {[]string{"a<command", "b<a"}, []string{"a (missing).", " b."}},
		"an effect that is older than its cause": {
			[]string{"b<a", "a", "c<b"}, []string{"a.", " b.", "  c."},
		},
		"its own cause":     {[]string{"a<a", "b<a"}, []string{"a (circular).", " b."}},
		"a cycle":           {[]string{"b<a", "a<b"}, []string{"b (circular).", " a."}},
		"a cycle of three":  {[]string{"a<c", "b<a", "c<b"}, []string{"a (circular).", " b.", "  c."}},
		"below a cycle":     {[]string{"x<a", "y<x", "a<b", "b<a"}, []string{"a (circular).", " x", "  y.", " b."}},
		"beside a cycle":    {[]string{"r", "a<b", "b<a", "s<r"}, []string{"r", " s.", "a (circular).", " b."}},
		"two cycles":        {[]string{"a<b", "c<d", "b<a", "d<c"}, []string{"a (circular)", " b.", "c (circular).", " d."}},
		"a cycle, met from": {[]string{"z<b", "a<b", "b<a"}, []string{"a (circular).", " b.", "  z."}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t)
			require.NoError(t, s.AppendMany(t.Context(), chain("chain", test.links...)))
			require.NoError(t, s.AppendMany(t.Context(), chain("another chain", "other")))

			tree, err := causation.Load(t.Context(), s, id("chain"), deadletter.NewTable(s.SQL()))
			require.NoError(t, err)
			require.Equal(t, test.want, drawn(tree))
			require.Equal(t, id("chain"), tree.CorrelationID)
			require.False(t, tree.Truncated)
			for i, n := range tree.Nodes {
				require.Nil(t, n.Event.Data)
				require.True(t, n.Stored)
				require.Less(t, n.Parent, i)
				if n.Cause == causation.CauseKnown {
					require.Equal(t, n.Event.CausationID.UUID, tree.Nodes[n.Parent].Event.ID)
				} else {
					require.Equal(t, -1, n.Parent)
				}
			}
		})
	}
}

func TestLoadByAnEventsID(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	require.NoError(t, s.AppendMany(t.Context(), chain("chain", "a", "b<a")))
	// An id that is a correlation id is used as such, even if it is also the id of another event.
	require.NoError(t, s.AppendMany(t.Context(), chain("another chain", "chain")))

	for _, given := range []uuid.UUID{id("chain"), id("a"), id("b")} {
		tree, err := causation.Load(t.Context(), s, given, deadletter.NewTable(s.SQL()))
		require.NoError(t, err)
		require.Equal(t, []string{"a.", " b."}, drawn(tree))
	}
	_, err := causation.Load(t.Context(), s, id("nothing"), deadletter.NewTable(s.SQL()))
	require.ErrorIs(t, err, causation.ErrNotFound)
}

func TestLoadTellsWhoHandledAndWhatFailed(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	list := chain("chain", "a", "b<a", "published<b")
	require.NoError(t, s.AppendMany(t.Context(), list[:2]))
	require.NoError(t, s.Record(t.Context(), "first", list[0], nil))
	require.NoError(t, s.Record(t.Context(), "second", list[0], nil))
	failure := deadletter.Failure{
		Reason: "no opening hours", Handler: "confirm", Attempts: 3, FirstFailed: began(), LastFailed: began().Add(time.Hour),
	}
	other := failure
	other.Handler = "note"
	table := deadletter.NewTable(s.SQL())
	require.NoError(t, table.Ingest(t.Context(), []deadletter.Arrival{
		letter(t, "1", list[1], failure), letter(t, "2", list[1], other), letter(t, "3", list[2], failure),
		letter(t, "4", chain("another chain", "other")[0], failure),
		{Letter: deadletter.Complete(deadletter.Letter{ID: "5", Body: []byte("no event"), Failure: failure})},
	}))

	for _, given := range []uuid.UUID{id("chain"), id("published")} {
		tree, err := causation.Load(t.Context(), s, given, table)
		require.NoError(t, err)
		require.Equal(t, []string{"a.", " b.", "  published."}, drawn(tree))
		require.Len(t, tree.Nodes[0].Handled, 2)
		require.Equal(t, "first", tree.Nodes[0].Handled[0].Handler)
		require.Empty(t, tree.Nodes[0].Failures)
		require.Len(t, tree.Nodes[1].Failures, 2)
		require.Equal(t, causation.Failure{LetterID: "1", State: deadletter.Waiting, Failure: failure}, tree.Nodes[1].Failures[0])
		require.True(t, tree.Nodes[1].Stored)
		require.False(t, tree.Nodes[2].Stored)
		require.Equal(t, 3, tree.Failures())
		require.Equal(t, began(), tree.Began())
		require.Equal(t, tree.Nodes[0].Handled[1].At, tree.Ended())
	}
}

func TestLoadTellsWhatHasBecomeOfLetters(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	list := chain("chain", "a", "b<a")
	require.NoError(t, s.AppendMany(t.Context(), list))
	table := deadletter.NewTable(s.SQL())
	failure := deadletter.Failure{Handler: "confirm", LastFailed: began()}
	require.NoError(t, table.Ingest(t.Context(), []deadletter.Arrival{
		letter(t, "1", list[0], failure), letter(t, "2", list[1], failure), letter(t, "3", chain("another chain", "other")[0], failure),
	}))
	n, err := table.PutAside(t.Context(), deadletter.Filter{IDs: []string{"2", "3"}}, deadletter.Discarded, audit.Actor{By: "Eve"})
	require.NoError(t, err)
	require.Equal(t, 2, n)

	tree, err := causation.Load(t.Context(), s, id("chain"), table)
	require.NoError(t, err)
	require.Equal(t, 1, tree.Failures())
	require.Equal(t, deadletter.Waiting, tree.Nodes[0].Failures[0].State)
	require.Equal(t, deadletter.Discarded, tree.Nodes[1].Failures[0].State)
	require.Equal(t, "2", tree.Nodes[1].Failures[0].LetterID)

	n, err = table.Restore(t.Context(), deadletter.Filter{IDs: []string{"2"}, States: []deadletter.State{deadletter.Discarded}}, audit.Actor{By: "Eve"})
	require.NoError(t, err)
	require.Equal(t, 1, n)
	tree, err = causation.Load(t.Context(), s, id("chain"), table)
	require.NoError(t, err)
	require.Equal(t, 2, tree.Failures())
	require.Len(t, tree.Nodes[1].Failures, 1)

	require.NoError(t, table.Settled(t.Context(), "2", "a replay", []string{"confirm"}, true))
	tree, err = causation.Load(t.Context(), s, id("chain"), table)
	require.NoError(t, err)
	require.Equal(t, 1, tree.Failures())
	require.Empty(t, tree.Nodes[1].Failures, "what is handled is no failure")
}

func TestLoadIsBounded(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	links := make([]string, causation.MaxEvents+1)
	for i := range links {
		links[i] = "e" + strings.Repeat("'", i%3) + time.Duration(i).String()
		if i > 0 {
			links[i] += "<" + strings.Split(links[i-1], "<")[0]
		}
	}
	list := chain("chain", links...)
	require.NoError(t, s.AppendMany(t.Context(), list[:causation.MaxEvents]))

	tree, err := causation.Load(t.Context(), s, id("chain"), deadletter.NewTable(s.SQL()))
	require.NoError(t, err)
	require.False(t, tree.Truncated)
	require.Len(t, tree.Nodes, causation.MaxEvents)
	require.Equal(t, causation.MaxEvents-1, tree.Nodes[causation.MaxEvents-1].Depth)
	var text, dot, object strings.Builder
	require.NoError(t, tree.WriteText(&text, 0))
	require.NoError(t, tree.WriteDOT(&dot))
	require.NoError(t, tree.WriteJSON(&object))
	for _, written := range []string{text.String(), dot.String(), object.String()} {
		require.Less(t, len(written), 600*causation.MaxEvents)
	}
	require.True(t, json.Valid([]byte(object.String())))

	require.NoError(t, s.Append(t.Context(), list[causation.MaxEvents]))
	tree, err = causation.Load(t.Context(), s, id("chain"), deadletter.NewTable(s.SQL()))
	require.NoError(t, err)
	require.True(t, tree.Truncated)
	require.Len(t, tree.Nodes, causation.MaxEvents)
}

func TestLoadFails(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	require.NoError(t, s.AppendMany(t.Context(), chain("chain", "a")))
	for _, given := range []uuid.UUID{id("chain"), id("nothing")} {
		_, err := causation.Load(t.Context(), s, given, brokenLetters{})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, causation.ErrLetters)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := causation.Load(ctx, s, id("chain"), deadletter.NewTable(s.SQL()))
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, causation.ErrLetters)
}

// letter is a dead letter of an event, as it arrives.
func letter(t *testing.T, letterID string, e events.Event, failure deadletter.Failure) deadletter.Arrival {
	t.Helper()
	body, err := json.Marshal(e)
	require.NoError(t, err)
	return deadletter.Arrival{Letter: deadletter.Complete(deadletter.Letter{ID: letterID, Body: body, Failure: failure})}
}

// brokenLetters are dead letters that cannot be read.
type brokenLetters struct{}

func (brokenLetters) List(context.Context, deadletter.Filter) iter.Seq2[deadletter.Letter, error] {
	return func(yield func(deadletter.Letter, error) bool) { yield(deadletter.Letter{}, context.DeadlineExceeded) }
}

func (brokenLetters) Find(context.Context, string) (deadletter.Letter, error) {
	return deadletter.Letter{}, context.DeadlineExceeded
}

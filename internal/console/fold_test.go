package console

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/causation"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// node returns an event of a wide tree. It is handled, failed, or neither.
func node(parent int, handled, failed bool) causation.Node {
	n := causation.Node{Event: events.Event{ID: uuid.New()}, Parent: parent, Depth: 1, Cause: causation.CauseKnown}
	if handled {
		n.Handled = []store.Handling{{Handler: "h"}}
	}
	if failed {
		n.Failures = []causation.Failure{{State: deadletter.Waiting}}
	}
	return n
}

func TestAFoldedTraceShowsWhatFailed(t *testing.T) {
	t.Parallel()
	wide := causation.Tree{Nodes: []causation.Node{node(-1, true, false)}}
	for i := range 1000 {
		wide.Nodes = append(wide.Nodes, node(0, i != 700, i == 900))
	}
	shown, folded, urgent := fold(wide, 50)
	require.Len(t, shown.Nodes, 50)
	require.Zero(t, urgent)
	require.Equal(t, wide.Nodes[901].Event.ID, shown.Nodes[49].Event.ID, "the one that failed")
	require.Equal(t, wide.Nodes[701].Event.ID, shown.Nodes[48].Event.ID, "the one that is not handled")
	hidden := 0
	for _, n := range folded {
		hidden += n
	}
	require.Equal(t, 951, hidden)
	require.Equal(t, []int{653, 199, 99}, folded[48:])
	for _, n := range shown.Nodes[1:] {
		require.Zero(t, n.Parent)
		require.Equal(t, causation.CauseKnown, n.Cause)
	}

	deep := chain(make([]time.Duration, 499)...)
	for i := range deep.Nodes {
		deep.Nodes[i].Handled = []store.Handling{{Handler: "h"}}
	}
	deep.Nodes[499].Handled, deep.Nodes[499].Failures = nil, []causation.Failure{{}}
	shown, folded, urgent = fold(deep, 10)
	require.Zero(t, urgent)
	require.Equal(t, deep.Nodes[499].Event.ID, shown.Nodes[9].Event.ID)
	require.Equal(t, 490, folded[0])
	require.Equal(t, causeFolded, shown.Nodes[0].Cause, "its cause is not shown, so it is not drawn as a root")
	require.Equal(t, -1, shown.Nodes[0].Parent)
	require.Len(t, draw(shown).Rows, 10)

	all := causation.Tree{Nodes: []causation.Node{node(-1, false, true), node(0, false, true), node(0, false, false)}}
	_, folded, urgent = fold(all, 1)
	require.Equal(t, []int{0, 2}, folded)
	require.Equal(t, 2, urgent, "that some are not shown is said")
	whole, folded, _ := fold(all, 3)
	require.Equal(t, all, whole)
	require.Equal(t, []int{0, 0, 0, 0}, folded)
}

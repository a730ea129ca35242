package bus_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
)

// take takes all that can be in flight at once.
func take(q *bus.KeyedQueue[string]) (items []string) {
	for {
		item, found := q.Next()
		if !found {
			return items
		}
		q.Take()
		items = append(items, item)
	}
}

func TestKeyedQueue(t *testing.T) {
	t.Parallel()
	var q bus.KeyedQueue[string]
	require.True(t, q.Empty())
	require.Empty(t, take(&q))
	for _, item := range []string{"a1", "b1", "a2", "a3", "b2"} {
		q.Add(item[:1], item)
	}
	require.Equal(t, []string{"a1", "b1"}, take(&q), "one of each key")
	require.Equal(t, 2, q.InFlight())
	require.Equal(t, 5, q.Len())
	q.Again("a", "a1")
	require.Equal(t, []string{"a1"}, take(&q), "before the later ones")
	q.Done("b")
	require.Equal(t, []string{"b2"}, take(&q))

	_, found := q.Remove("a", func(item string) bool { return item == "a1" })
	require.False(t, found, "it is in flight")
	item, found := q.Remove("a", func(item string) bool { return item == "a3" })
	require.True(t, found)
	require.Equal(t, "a3", item)
	require.Equal(t, 3, q.Len())
	q.Add("a", "a4")
	q.Add("c", "c1")
	require.ElementsMatch(t, []string{"a2", "c1"}, q.RemoveAll(func(item string) bool { return item != "a4" }))
	require.Empty(t, take(&q), "what is in flight blocks its key")
	require.Equal(t, 3, q.Len())
	q.Done("a")
	require.Equal(t, []string{"a4"}, take(&q))
	q.Done("a")
	q.Done("b")
	require.True(t, q.Empty())
	require.Zero(t, q.InFlight())
	require.Zero(t, q.Len())
}

package storetest

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/store"
)

// BenchmarkLoad reads an aggregate of a thousand small events: as its load does, in statements that are bounded by bytes,
// and as a page, in one. Only figures of one run compare.
func BenchmarkLoad(b *testing.B, s store.Store) {
	b.Helper()
	const count = 1000
	stream := NewStream()
	require.NoError(b, s.AppendMany(b.Context(), stream.Take(count)))
	for name, load := range map[string]func() int{
		"stream": func() (n int) {
			for _, err := range s.Stream(b.Context(), stream.AggregateType, stream.AggregateID, 0) {
				require.NoError(b, err)
				n++
			}
			return n
		},
		"one statement": func() int {
			page, err := s.ByAggregate(b.Context(), stream.AggregateType, stream.AggregateID, store.Query{Limit: count})
			require.NoError(b, err)
			return len(page.Events)
		},
	} {
		b.Run(fmt.Sprint(count, "/", name), func(b *testing.B) {
			for b.Loop() {
				require.Equal(b, count, load())
			}
		})
	}
}

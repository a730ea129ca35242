package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/test/heap"
)

// RunMemory holds a store to the memory that its reads may take. The test runs alone, as it measures the process.
func RunMemory(t *testing.T, s store.Store) {
	t.Helper()
	const count, size, mostLive = 16, 4<<20 - 100, 48 << 20
	defer debug.SetGCPercent(debug.SetGCPercent(10)) // only a collection tells what is live
	stream := NewStream()
	for range count {
		e := stream.Next()
		e.Data = fmt.Appendf(nil, "%q", bytes.Repeat([]byte("x"), size))
		e.Metadata = []byte(`{"a":1}`)
		require.NoError(t, s.Append(t.Context(), e))
		require.Eventually(t, func() bool { // once no older transaction runs
			last, err := s.ByID(t.Context(), e.ID)
			require.NoError(t, err)
			end, err := s.End(t.Context())
			require.NoError(t, err)
			return end == last.Position
		}, patience, 10*time.Millisecond)
	}
	type read func(context.Context, store.Query) (store.Page, error)
	reads := map[string]read{
		"aggregate": func(ctx context.Context, q store.Query) (store.Page, error) {
			return s.ByAggregate(ctx, stream.AggregateType, stream.AggregateID, q)
		},
		"correlation": func(ctx context.Context, q store.Query) (store.Page, error) {
			return s.ByCorrelation(ctx, stream.CorrelationID, q)
		},
		"type": func(ctx context.Context, q store.Query) (store.Page, error) {
			return s.ByType(ctx, stream.EventType, q)
		},
		"tenant": func(ctx context.Context, q store.Query) (store.Page, error) {
			return s.ByTenant(ctx, stream.TenantID, q)
		},
		"search": func(ctx context.Context, q store.Query) (store.Page, error) {
			return s.Search(ctx, store.Search{AggregateID: stream.AggregateID}, q)
		},
		"search by one of two indexes": func(ctx context.Context, q store.Query) (store.Page, error) {
			return s.Search(ctx, store.Search{TenantID: stream.TenantID, Type: stream.EventType}, q)
		},
	}
	measured := func(name string, most int, read func(t *testing.T) (events int)) {
		t.Run(name, func(t *testing.T) {
			end := heap.Peak(heap.Live)
			require.Equal(t, count, read(t))
			live := end()
			t.Logf("%d events of %d MiB took %d MiB", count, size>>20, live>>20)
			require.Less(t, live, most)
		})
	}
	check := func(t *testing.T, i int, e events.Event) {
		t.Helper()
		require.Equal(t, i+1, e.AggregateVersion)
		require.Len(t, e.Data, size+2)
	}
	measured("all", mostLive, func(t *testing.T) (n int) {
		t.Helper()
		for e, err := range s.All(t.Context(), store.Position{}) {
			require.NoError(t, err)
			check(t, n, e.Event)
			n++
		}
		return n
	})
	measured("stream", mostLive, func(t *testing.T) (n int) {
		t.Helper()
		for e, err := range s.Stream(t.Context(), stream.AggregateType, stream.AggregateID, 0) {
			require.NoError(t, err)
			check(t, n, e)
			n++
		}
		return n
	})
	for name, read := range reads {
		measured(name+", without data", 1<<20, func(t *testing.T) int {
			t.Helper()
			page, err := read(t.Context(), store.Query{Limit: count, WithoutData: true})
			require.NoError(t, err)
			require.Empty(t, page.Next)
			for _, e := range page.Events {
				require.Empty(t, e.Data)
				require.Empty(t, e.Metadata)
			}
			return len(page.Events)
		})
		if strings.HasPrefix(name, "search") {
			_, err := read(t.Context(), store.Query{MaxBytes: store.PageBytes})
			_, refused := errors.AsType[*store.QueryError](err)
			require.True(t, refused)
			continue
		}
		measured(name+", by bytes", mostLive, func(t *testing.T) (n int) {
			t.Helper()
			for q := (store.Query{Limit: store.MaxLimit, MaxBytes: store.PageBytes}); ; {
				page, err := read(t.Context(), q)
				require.NoError(t, err)
				require.Len(t, page.Events, store.PageBytes/(size+10))
				for _, e := range page.Events {
					want := n
					if e.AggregateVersion != n+1 {
						want = count - 1 - n // newest first
					}
					check(t, want, e)
					n++
				}
				if page.Next == "" {
					return n
				}
				q.After = page.Next
			}
		})
	}
}

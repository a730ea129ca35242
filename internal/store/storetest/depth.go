package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// Measured is a store that tells how much waits in it.
type Measured interface {
	Tailed
	Pools() []store.Pool
}

// RunDepth holds stores to what they tell of themselves. open returns a store on a new, migrated, empty database, and
// sees to its end; insert does what a program does that knows nothing of the worker.
func RunDepth(t *testing.T, open func(t *testing.T) (s Measured, insert func(t *testing.T, e events.Event))) {
	t.Helper()
	t.Run("backlog", func(t *testing.T) {
		t.Parallel()
		s, insert := open(t)
		all, own := tail(t, s, false), tail(t, s, true)
		b, err := all.Backlog(t.Context())
		require.NoError(t, err)
		require.Zero(t, b.Events)
		require.Equal(t, b.Position, b.Last)
		empty := b

		stream := NewStream()
		old, young := stream.Next(), stream.Next()
		old.CreatedAt = time.Now().Add(-time.Hour)
		young.CreatedAt = time.Now().Add(time.Hour) // a producer's clock
		require.NoError(t, s.AppendMany(t.Context(), []events.Event{old, young}))
		insert(t, NewStream().Next())
		b, err = all.Backlog(t.Context())
		require.NoError(t, err)
		require.Equal(t, 3, b.Events)
		require.Equal(t, empty.Position, b.Position)
		require.True(t, b.Last.IsBehind(b.Position))
		foreign := b.Last
		b, err = own.Backlog(t.Context())
		require.NoError(t, err)
		require.Equal(t, 2, b.Events)
		require.True(t, foreign.IsBehind(b.Last))

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = all.Backlog(ctx)
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("pools", func(t *testing.T) {
		t.Parallel()
		s, _ := open(t)
		require.NotEmpty(t, s.Pools())
		for _, p := range s.Pools() {
			require.NotEmpty(t, p.Name)
			require.Positive(t, p.Max)
			require.LessOrEqual(t, p.InUse+p.Idle, p.Max)
		}
	})
}

func tail(t *testing.T, s Measured, onlyOwn bool) *store.Tail {
	t.Helper()
	tail, err := s.Tail(t.Context(), store.TailConfig{BatchSize: 10, OnlyOwn: onlyOwn})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, tail.Close()) })
	return tail
}

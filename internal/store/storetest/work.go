package storetest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// Workplace is a store with a table of a handler's own, in which each number may stand once.
type Workplace struct {
	Store store.Store
	// Insert registers, with the store's InTx, the insertion of a number. It is an error, when the number is there, of
	// which IsTaken tells.
	Insert  func(ctx context.Context, number int) error
	IsTaken func(err error) bool
	// Then registers a call, behind what was registered before.
	Then func(ctx context.Context, call func() error) error
	// Numbers are the numbers in the table, in order.
	Numbers func(t *testing.T) []int
}

// RunWork holds stores to what is promised of the SQL that handlers register. Each call of open returns a store on a
// new, migrated, empty database, and sees to its end.
func RunWork(t *testing.T, open func(t *testing.T) Workplace) {
	t.Helper()
	runAll(t, open, map[string]func(*testing.T, Workplace){
		"is done with the record":              doesWork,
		"that fails leaves nothing":            failedWork,
		"that the database refuses is as well": refusedWork,
		"is not done again":                    doesWorkOnce,
		"is not done without the record":       noRecordNoWork,
		"of concurrent records one is done":    concurrentWork,
		"is registered by handlers alone":      misusedWork,
	})
}

func doesWork(t *testing.T, w Workplace) {
	t.Helper()
	cause, stream := NewStream().Next(), NewStream()
	ctx := w.Store.Attempt(t.Context())
	require.NoError(t, w.Insert(ctx, 1))
	require.NoError(t, w.Insert(ctx, 2))
	require.Empty(t, w.Numbers(t), "registered, and no more")

	require.NoError(t, w.Store.Record(ctx, "handler", cause, stream.Take(2)))

	require.Equal(t, []int{1, 2}, w.Numbers(t))
	require.Len(t, stored(t, w.Store, stream), 2)
	requireHandled(t, w.Store, cause, "handler")
}

func failedWork(t *testing.T, w Workplace) {
	t.Helper()
	cause, stream := NewStream().Next(), NewStream()
	followUps := stream.Take(2)
	odd := errors.New("odd")
	ctx := w.Store.Attempt(t.Context())
	require.NoError(t, w.Insert(ctx, 1))
	require.NoError(t, w.Then(ctx, func() error { return odd }))
	require.NoError(t, w.Then(ctx, func() error { t.Error("done behind what failed"); return nil }))

	require.Equal(t, &store.WorkError{Err: odd}, w.Store.Record(ctx, "handler", cause, followUps))

	require.Empty(t, w.Numbers(t))
	require.Empty(t, stored(t, w.Store, stream))
	requireHandled(t, w.Store, cause)

	ctx = w.Store.Attempt(t.Context())
	require.NoError(t, w.Insert(ctx, 1))
	require.NoError(t, w.Store.Record(ctx, "handler", cause, followUps))
	require.Equal(t, []int{1}, w.Numbers(t))
}

// A number that is taken is not taken for another writer's event, which would be tried again and again.
func refusedWork(t *testing.T, w Workplace) {
	t.Helper()
	cause, stream := NewStream().Next(), NewStream()
	ctx := w.Store.Attempt(t.Context())
	require.NoError(t, w.Insert(ctx, 1))
	tries := 0
	require.NoError(t, w.Then(ctx, func() error { tries++; return nil }))
	require.NoError(t, w.Insert(ctx, 1))

	err := w.Store.Record(ctx, "handler", cause, stream.Take(1))

	require.True(t, w.IsTaken(err), "%v", err)
	require.NotErrorIs(t, err, store.ErrUnavailable)
	require.Equal(t, 1, tries)
	require.Empty(t, w.Numbers(t))
	require.Empty(t, stored(t, w.Store, stream))
	requireHandled(t, w.Store, cause)
}

func doesWorkOnce(t *testing.T, w Workplace) {
	t.Helper()
	cause := NewStream().Next()
	for i, want := range []error{nil, store.ErrHandled, store.ErrHandled} {
		ctx := w.Store.Attempt(t.Context())
		require.NoError(t, w.Insert(ctx, i))
		require.ErrorIs(t, w.Store.Record(ctx, "handler", cause, nil), want)
	}
	require.Equal(t, []int{0}, w.Numbers(t))
}

func noRecordNoWork(t *testing.T, w Workplace) {
	t.Helper()
	cause, stream := NewStream().Next(), NewStream()
	ctx := w.Store.Attempt(t.Context())
	require.NoError(t, w.Insert(ctx, 1))

	var gap *store.GapError
	require.ErrorAs(t, w.Store.Record(ctx, "handler", cause, []events.Event{stream.At(7)}), &gap)

	require.Empty(t, w.Numbers(t))
	requireHandled(t, w.Store, cause)
}

func concurrentWork(t *testing.T, w Workplace) {
	t.Helper()
	const writers = 8
	cause := NewStream().Next()
	results := make([]error, writers)
	var done sync.WaitGroup
	for i := range writers {
		done.Go(func() {
			ctx := w.Store.Attempt(t.Context())
			results[i] = errors.Join(w.Insert(ctx, i), w.Store.Record(ctx, "handler", cause, NewStream().Take(1)))
		})
	}
	done.Wait()

	var won []int
	for i, err := range results {
		if err == nil {
			won = append(won, i)
			continue
		}
		require.ErrorIs(t, err, store.ErrHandled)
	}
	require.Len(t, won, 1)
	require.Equal(t, won, w.Numbers(t))
}

func misusedWork(t *testing.T, w Workplace) {
	t.Helper()
	require.ErrorIs(t, w.Insert(t.Context(), 1), store.ErrNoTransaction, "outside a handler")
	ctx := w.Store.Attempt(t.Context())
	require.NoError(t, w.Store.Record(ctx, "handler", NewStream().Next(), nil))
	require.ErrorIs(t, w.Insert(ctx, 1), store.ErrNoTransaction, "too late")
	require.ErrorIs(t, w.Insert(store.WithWork[struct{}](t.Context()), 1), store.ErrNoTransaction, "on another store")
	require.Empty(t, w.Numbers(t))
}

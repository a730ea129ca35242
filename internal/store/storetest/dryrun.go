package storetest

import (
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// RunDryRun holds stores to [store.DryRun]. Each call of open returns a store on a new, migrated, empty database, and sees
// to its end. The store has the method Try.
func RunDryRun(t *testing.T, open func(t *testing.T) Workplace) {
	t.Helper()
	runAll(t, open, map[string]func(*testing.T, Workplace){
		"sees what it does, and leaves nothing": leavesNothing,
		"undoes what fails":                     undoesFailed,
		"undoes what fails first":               undoesFailedFirst,
		"has the errors of the store":           refusesInDryRun,
		"is of no use after its end":            endsDryRun,
	})
}

func dryRun(t *testing.T, w Workplace, do func(ctx context.Context, d *store.DryRun)) {
	t.Helper()
	s := w.Store.(interface {
		Try(ctx context.Context, do func(context.Context, *store.DryRun) error) error
	})
	odd := errors.New("odd")
	require.Equal(t, odd, s.Try(t.Context(), func(ctx context.Context, d *store.DryRun) error {
		do(ctx, d)
		return odd
	}), "the error is its caller's")
}

// record is a handler's try that inserts a number.
func record(ctx context.Context, w Workplace, d *store.DryRun, cause events.Event, number int, followUps ...events.Event) error {
	return d.Savepoint(ctx, func(ctx context.Context) error {
		ctx = d.Attempt(ctx)
		return errors.Join(w.Insert(ctx, number), d.Record(ctx, "handler", cause, followUps))
	})
}

func leavesNothing(t *testing.T, w Workplace) {
	t.Helper()
	causes, stream := NewStream().Take(2), NewStream()
	first := stream.Next()
	require.NoError(t, w.Store.Append(t.Context(), first))
	require.NoError(t, w.Store.Park(t.Context(), "handler", causes[0]))
	requireUntouched := func() {
		t.Helper()
		requireSame(t, []events.Event{first}, stored(t, w.Store, stream))
		requireHandled(t, w.Store, causes[0])
		require.Empty(t, w.Numbers(t))
		waits, err := w.Store.Parked(t.Context(), causes[1], []string{"handler"})
		require.NoError(t, err)
		require.Equal(t, map[string]uuid.UUID{"handler": causes[0].ID}, waits)
	}
	dryRun(t, w, func(ctx context.Context, d *store.DryRun) {
		followUps := stream.Take(2)
		require.NoError(t, record(ctx, w, d, causes[0], 1, followUps...))
		appended := stream.Next()
		require.NoError(t, d.AppendMany(ctx, []events.Event{appended}))

		seen := collect(t, d.Stream(ctx, stream.AggregateType, stream.AggregateID, 1))
		requireSame(t, append(followUps, appended), seen)
		handled, err := d.Handled(ctx, causes[0])
		require.NoError(t, err)
		require.Equal(t, []string{"handler"}, handled)
		waits, err := d.Parked(ctx, causes[1], []string{"handler"})
		require.NoError(t, err)
		require.Empty(t, waits)
		require.True(t, w.IsTaken(record(ctx, w, d, causes[1], 1)))
		require.NoError(t, record(ctx, w, d, causes[1], 2))
		requireUntouched()
	})
	requireUntouched()
	require.NoError(t, w.Store.Append(t.Context(), stream.At(2)), "what was tried can be done")
}

func undoesFailed(t *testing.T, w Workplace) {
	t.Helper()
	causes, stream := NewStream().Take(3), NewStream()
	odd := errors.New("odd")
	dryRun(t, w, func(ctx context.Context, d *store.DryRun) {
		require.NoError(t, record(ctx, w, d, causes[0], 1, stream.Take(1)...))
		require.Equal(t, odd, d.Savepoint(ctx, func(ctx context.Context) error {
			ctx = d.Attempt(ctx)
			require.NoError(t, w.Insert(ctx, 2))
			require.NoError(t, d.Record(ctx, "handler", causes[1], []events.Event{stream.At(2)}))
			return odd
		}))
		require.True(t, w.IsTaken(d.Savepoint(ctx, func(ctx context.Context) error {
			ctx = d.Attempt(ctx)
			return errors.Join(w.Insert(ctx, 2), w.Insert(ctx, 1), d.Record(ctx, "handler", causes[1], nil))
		})), "also what the database refuses")
		require.NoError(t, record(ctx, w, d, causes[1], 2, stream.Take(1)...))
		require.Len(t, collect(t, d.Stream(ctx, stream.AggregateType, stream.AggregateID, 0)), 2)
	})
	require.Empty(t, w.Numbers(t))
}

func undoesFailedFirst(t *testing.T, w Workplace) {
	t.Helper()
	causes := NewStream().Take(2)
	odd := errors.New("odd")
	dryRun(t, w, func(ctx context.Context, d *store.DryRun) {
		require.Equal(t, odd, d.Savepoint(ctx, func(ctx context.Context) error {
			require.NoError(t, d.Record(d.Attempt(ctx), "handler", causes[0], nil))
			return odd
		}))
		handled, err := d.Handled(ctx, causes[0])
		require.NoError(t, err)
		require.Empty(t, handled)
		require.NoError(t, record(ctx, w, d, causes[0], 1))
	})
	requireHandled(t, w.Store, causes[0])
}

func refusesInDryRun(t *testing.T, w Workplace) {
	t.Helper()
	cause, stream := NewStream().Next(), NewStream()
	first := stream.Next()
	require.NoError(t, w.Store.Append(t.Context(), first))
	dryRun(t, w, func(ctx context.Context, d *store.DryRun) {
		record := func(followUps ...events.Event) error {
			return d.Record(d.Attempt(ctx), "handler", cause, followUps)
		}
		var gap *store.GapError
		var duplicate *store.DuplicateError
		require.ErrorAs(t, record(stream.At(7)), &gap)
		require.ErrorAs(t, d.AppendMany(ctx, []events.Event{first}), &duplicate)
		require.ErrorIs(t, record(stream.At(1)), events.ErrConflict)
		second := stream.Next()
		require.NoError(t, record(second))
		require.ErrorIs(t, record(), store.ErrHandled)
		require.ErrorIs(t, d.AppendMany(ctx, []events.Event{stream.At(2)}), events.ErrConflict)
		changed := cause
		changed.Data = []byte(`{"name":"Eva"}`)
		require.ErrorIs(t, d.Record(d.Attempt(ctx), "other", changed, nil), store.ErrContradiction)
		_, err := d.Handled(ctx, changed)
		require.ErrorIs(t, err, store.ErrContradiction)
		require.Len(t, collect(t, d.Stream(ctx, stream.AggregateType, stream.AggregateID, 0)), 2, "it goes on")
	})
}

func endsDryRun(t *testing.T, w Workplace) {
	t.Helper()
	stream := NewStream()
	var kept *store.DryRun
	dryRun(t, w, func(ctx context.Context, d *store.DryRun) {
		kept = d
		require.NoError(t, d.AppendMany(ctx, stream.Take(1)))
	})
	ctx := kept.Attempt(t.Context())
	require.ErrorIs(t, kept.AppendMany(ctx, stream.Take(1)), store.ErrDryRunOver)
	require.ErrorIs(t, kept.Record(ctx, "handler", stream.Next(), nil), store.ErrDryRunOver)
	for _, err := range kept.Stream(ctx, stream.AggregateType, stream.AggregateID, 0) {
		require.ErrorIs(t, err, store.ErrDryRunOver)
	}
	require.Empty(t, stored(t, w.Store, stream))
}

package workertest

import (
	"context"
	"iter"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker"
	"github.com/healz/worker/internal/store"
)

// Streams is an event store in memory, with the rules and the errors of the real ones, for a [worker.Repository] in
// tests. Its zero value is empty. It is safe for concurrent use.
type Streams struct {
	mu       sync.Mutex
	appended []worker.Event
}

// Given appends what has happened to an aggregate, oldest first, with the [Origin].
func (s *Streams) Given(t testing.TB, aggregateType string, aggregateID uuid.UUID, history ...worker.Data) {
	t.Helper()
	version := 0
	for e, err := range s.Stream(t.Context(), aggregateType, aggregateID, 0) {
		require.NoError(t, err, "given")
		version = e.AggregateVersion
	}
	batch := make([]worker.Event, len(history))
	for i, data := range history {
		batch[i] = event(t, aggregateType, aggregateID, version+i+1, data)
	}
	require.NoError(t, s.AppendMany(t.Context(), batch), "given")
}

// Events returns all events in the order in which they were appended.
func (s *Streams) Events() []worker.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.appended)
}

// AppendMany appends all events or none; its errors are those of [worker.Store].
func (s *Streams) AppendMany(ctx context.Context, batch []worker.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := store.CheckBatch(batch); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	heads := make(map[uuid.UUID]*worker.Event)
	for _, e := range s.appended {
		heads[e.AggregateID] = &e
		if i := slices.IndexFunc(batch, func(b worker.Event) bool { return b.ID == e.ID }); i >= 0 {
			return store.InBatch(batch, i, &store.DuplicateError{EventID: e.ID})
		}
	}
	for i, e := range batch {
		if err := store.CheckNext(heads[e.AggregateID], e); err != nil {
			return store.InBatch(batch, i, err)
		}
		heads[e.AggregateID] = &e
	}
	s.appended = append(s.appended, batch...)
	return nil
}

// Stream yields the events of an aggregate after the given version, by version ascending, as they are when it begins.
func (s *Streams) Stream(
	ctx context.Context, aggregateType string, aggregateID uuid.UUID, afterVersion int,
) iter.Seq2[worker.Event, error] {
	return func(yield func(worker.Event, error) bool) {
		for _, e := range s.Events() {
			if e.AggregateType != aggregateType || e.AggregateID != aggregateID || e.AggregateVersion <= afterVersion {
				continue
			}
			if err := ctx.Err(); err != nil {
				yield(worker.Event{}, err)
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

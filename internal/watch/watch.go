// Package watch follows a store: it yields events as they are committed. It only reads, and so is in nobody's way.
package watch

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

const (
	// poll is how often it is looked for new events, each time at the cost of a lookup in an index.
	poll = 250 * time.Millisecond
	// maxWait is the longest wait between two tries to reach a store that is away.
	maxWait = 2 * time.Second
)

// Store is what is followed.
type Store interface {
	All(ctx context.Context, after store.Position) iter.Seq2[store.Recorded, error]
	End(ctx context.Context) (store.Position, error)
	Since(ctx context.Context, t time.Time) (store.Position, error)
}

// Filter chooses events by all that is set; the zero value chooses all.
type Filter struct {
	TenantID      uuid.UUID
	CorrelationID uuid.UUID
	Type          string
	AggregateType string
	AggregateID   uuid.UUID
	// Since is when an event must have been created at the earliest.
	Since time.Time
}

// Match tells whether f chooses the event.
func (f Filter) Match(e events.Event) bool {
	return (f.TenantID == uuid.Nil || f.TenantID == e.TenantID) &&
		(f.CorrelationID == uuid.Nil || f.CorrelationID == e.CorrelationID) &&
		(f.Type == "" || f.Type == e.Type) &&
		(f.AggregateType == "" || f.AggregateType == e.AggregateType) &&
		(f.AggregateID == uuid.Nil || f.AggregateID == e.AggregateID) &&
		!e.CreatedAt.Before(f.Since)
}

// Events yields the events that f chooses in commit order, each once, until ctx ends: first those since f.Since, or none
// if that is zero, and then each as it is committed. While the store is away it waits, after a call of away with the
// error, and goes on where it was, after a call with nil. It ends with an error that time does not heal, and without one
// when ctx ends.
func Events(ctx context.Context, s Store, f Filter, away func(error)) iter.Seq2[events.Event, error] {
	return func(yield func(events.Event, error) bool) {
		w := watcher{away: away, waits: backoff.NewExponentialBackOff()}
		w.waits.InitialInterval, w.waits.MaxInterval = poll, maxWait
		var position store.Position
		begin := func() (err error) {
			if f.Since.IsZero() {
				position, err = s.End(ctx)
			} else {
				position, err = s.Since(ctx, f.Since)
			}
			return err
		}
		stopped := false
		read := func() error {
			for r, err := range s.All(ctx, position) {
				if err != nil {
					return err
				}
				position = r.Position
				if f.Match(r.Event) && !yield(r.Event, nil) {
					stopped = true
					return nil
				}
			}
			return nil
		}
		err := w.try(ctx, begin)
		for err == nil && !stopped && w.wait(ctx, poll) {
			err = w.try(ctx, read)
		}
		if err != nil && !stopped && ctx.Err() == nil {
			yield(events.Event{}, err)
		}
	}
}

// watcher waits for a store that is away.
type watcher struct {
	away  func(error)
	waits *backoff.ExponentialBackOff
}

// try tries until the store is there.
func (w watcher) try(ctx context.Context, do func() error) error {
	gone := false
	for {
		err := do()
		if err == nil && gone {
			w.away(nil)
			w.waits.Reset()
		}
		if err == nil || ctx.Err() != nil || !errors.Is(err, store.ErrUnavailable) {
			return err
		}
		if !gone {
			gone = true
			w.away(err)
		}
		if !w.wait(ctx, w.waits.NextBackOff()) {
			return ctx.Err()
		}
	}
}

// wait tells whether ctx goes on.
func (watcher) wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Package watch follows a store: it yields events as they are committed. It only reads.
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
	// pollInterval is the interval of polls for new events. A poll is an index lookup.
	pollInterval = 250 * time.Millisecond
	// maxBackoff is the maximum backoff while the store is unavailable.
	maxBackoff = 2 * time.Second
)

// Store is the part of a store that is followed.
type Store interface {
	All(ctx context.Context, after store.Position) iter.Seq2[store.Recorded, error]
	End(ctx context.Context) (store.Position, error)
	Since(ctx context.Context, t time.Time) (store.Position, error)
}

// Filter matches events by all fields that are set. The zero value matches all events.
type Filter struct {
	TenantID      uuid.UUID
	CorrelationID uuid.UUID
	Type          string
	AggregateType string
	AggregateID   uuid.UUID
	// Since is the earliest creation time.
	Since time.Time
}

// Match returns whether the filter matches the event.
func (f Filter) Match(e events.Event) bool {
	return (f.TenantID == uuid.Nil || f.TenantID == e.TenantID) &&
		(f.CorrelationID == uuid.Nil || f.CorrelationID == e.CorrelationID) &&
		(f.Type == "" || f.Type == e.Type) &&
		(f.AggregateType == "" || f.AggregateType == e.AggregateType) &&
		(f.AggregateID == uuid.Nil || f.AggregateID == e.AggregateID) &&
		!e.CreatedAt.Before(f.Since)
}

// Events yields the events that f matches in commit order, each once: first those since f.Since, unless that is zero, then
// each as it is committed. If the store becomes unavailable, it calls onUnavailable with the error, and retries; when the
// store is available again, it calls onUnavailable with nil and continues at its position. It ends without an error when ctx
// ends, and with any other error of the store.
func Events(ctx context.Context, s Store, f Filter, onUnavailable func(error)) iter.Seq2[events.Event, error] {
	return func(yield func(events.Event, error) bool) {
		r := retrier{onUnavailable: onUnavailable, backoff: backoff.NewExponentialBackOff()}
		r.backoff.InitialInterval, r.backoff.MaxInterval = pollInterval, maxBackoff
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
			for e, err := range s.All(ctx, position) {
				if err != nil {
					return err
				}
				position = e.Position
				if f.Match(e.Event) && !yield(e.Event, nil) {
					stopped = true
					return nil
				}
			}
			return nil
		}
		err := r.retry(ctx, begin)
		for err == nil && !stopped && wait(ctx, pollInterval) {
			err = r.retry(ctx, read)
		}
		if err != nil && !stopped && ctx.Err() == nil {
			yield(events.Event{}, err)
		}
	}
}

type retrier struct {
	onUnavailable func(error)
	backoff       *backoff.ExponentialBackOff
}

func (r retrier) retry(ctx context.Context, do func() error) error {
	unavailable := false
	for {
		err := do()
		if err == nil && unavailable {
			r.onUnavailable(nil)
			r.backoff.Reset()
		}
		if err == nil || ctx.Err() != nil || !errors.Is(err, store.ErrUnavailable) {
			return err
		}
		if !unavailable {
			unavailable = true
			r.onUnavailable(err)
		}
		if !wait(ctx, r.backoff.NextBackOff()) {
			return ctx.Err()
		}
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

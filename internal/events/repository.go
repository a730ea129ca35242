package events

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/google/uuid"
)

var (
	// ErrConflict is in the chain of the error that a store returns for a version already taken: another writer
	// appended to the aggregate first.
	ErrConflict = errors.New("concurrency conflict")
	// ErrNotFound says that an aggregate has no events.
	ErrNotFound = errors.New("aggregate not found")
	// ErrOtherTenant says that an aggregate belongs to another tenant than the one that asks for it.
	ErrOtherTenant = errors.New("the aggregate belongs to another tenant")
)

// commandAttempts is how often Execute runs a command that meets a conflict. Each attempt starts from the
// winner's events, so running out of them takes as many writers as attempts on one aggregate at once.
const commandAttempts = 5

// Streams is what a [Repository] needs of an event store.
type Streams interface {
	// AppendMany appends all events or none; a taken version is an error that wraps [ErrConflict].
	AppendMany(ctx context.Context, events []Event) error
	// Stream yields the events of an aggregate after the given version, by version ascending.
	Stream(ctx context.Context, aggregateType string, aggregateID uuid.UUID, afterVersion int) iter.Seq2[Event, error]
}

// Repository loads aggregates of one kind and saves what they raise. It is safe for concurrent use.
type Repository[A Aggregate] struct {
	streams Streams
	empty   func() A
}

// NewRepository returns the repository of the aggregates that empty makes: each call must return a new one.
func NewRepository[A Aggregate](streams Streams, empty func() A) *Repository[A] {
	return &Repository[A]{streams: streams, empty: empty}
}

// Load returns the aggregate as its events made it. The error is [ErrNotFound] when there are none and
// [ErrOtherTenant] when they are of another tenant than origin's; origin is what its next events inherit.
func (r *Repository[A]) Load(ctx context.Context, origin Origin, id uuid.UUID) (A, error) {
	a, err := r.load(ctx, origin, id)
	if err == nil && a.root().version == 0 {
		return a, fmt.Errorf("load %s %s: %w", a.AggregateType(), id, ErrNotFound)
	}
	return a, err
}

// Save appends what a has raised, all or nothing, and clears it. The error wraps [ErrConflict] when the
// aggregate has moved on since it was loaded; a is then of no further use.
func (r *Repository[A]) Save(ctx context.Context, a A) error {
	root := a.root()
	if len(root.uncommitted) == 0 {
		return nil
	}
	if err := r.streams.AppendMany(ctx, root.uncommitted); err != nil {
		return fmt.Errorf("save %s %s: %w", a.AggregateType(), root.id, err)
	}
	root.ClearUncommitted()
	return nil
}

// Execute runs a command on an aggregate, new or existing, and saves the outcome. On a concurrency conflict
// the command runs again on the newer aggregate, so it must have no effect but the events it raises. The
// command's own error is returned as it is, and nothing is saved.
func (r *Repository[A]) Execute(ctx context.Context, origin Origin, id uuid.UUID, command func(A) error) (A, error) {
	for attempt := 1; ; attempt++ {
		a, err := r.decide(ctx, origin, id, command)
		if err != nil {
			return a, err
		}
		err = r.Save(ctx, a)
		if err == nil || !errors.Is(err, ErrConflict) || attempt == commandAttempts {
			return a, err
		}
	}
}

// Decide runs a command and returns what it raises without saving it. It is for handlers: the events that a
// handler returns are appended together with the record that it has handled its event.
func (r *Repository[A]) Decide(
	ctx context.Context, origin Origin, id uuid.UUID, command func(A) error,
) ([]Event, error) {
	a, err := r.decide(ctx, origin, id, command)
	if err != nil {
		return nil, err
	}
	return a.root().Uncommitted(), nil
}

func (r *Repository[A]) decide(ctx context.Context, origin Origin, id uuid.UUID, command func(A) error) (A, error) {
	a, err := r.load(ctx, origin, id)
	if err == nil {
		err = command(a)
	}
	return a, err
}

// load returns no aggregate along with an error: it may be another tenant's.
func (r *Repository[A]) load(ctx context.Context, origin Origin, id uuid.UUID) (A, error) {
	var none A
	a := r.empty()
	if err := Load(a, r.streams.Stream(ctx, a.AggregateType(), id, 0)); err != nil {
		return none, err
	}
	if err := Begin(a, id, origin); err != nil {
		return none, err
	}
	return a, nil
}

package store

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

// TrialLimit bounds how long a [Trial] keeps others waiting, from its first write on.
const TrialLimit = 5 * time.Second

// ErrTrialOver says that a trial is used after its end.
var ErrTrialOver = errors.New("the trial is over: a handler must be done when it returns")

// Trial is a transaction in which handlers are tried: they run on what the store has and on what those before them in
// the trial have done, and at its end all of it is undone. Nobody else ever sees any of it: no row, no note that changed,
// and no wake of the relay; only numbers that sequences have given are not given again.
//
// The transaction begins with the first write. From then on it keeps others waiting: on Postgres the relay, for the whole
// database, and whoever handles the same event; on SQLite all who write. So a trial is short; see [TrialLimit].
//
// A trial belongs to one goroutine. A handler that it runs may read from several.
type Trial interface {
	events.Streams

	// Apart runs do, and undoes what it has written if it returns an error, also one of a statement, which it returns.
	// When that cannot be undone, as the transaction is lost, the error wraps [ErrUnavailable], and the trial is over.
	Apart(ctx context.Context, do func(context.Context) error) error

	// Handled, Attempt, Record and Parked are as those of [Store].
	Handled(ctx context.Context, e events.Event) ([]string, error)
	Attempt(ctx context.Context) context.Context
	Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error
	Parked(ctx context.Context, e events.Event, handlers []string) (map[string]uuid.UUID, error)
}

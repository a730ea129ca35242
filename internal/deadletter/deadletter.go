// Package deadletter is where messages rest that no handler could handle: looked into, replayed, and never lost.
//
// With RabbitMQ they lie in the failed queue of the contract; without it on a [Shelf], a table of the store. Commands
// work on either through [Queue], and the poison middleware fills either through [Sink].
package deadletter

import (
	"context"
	"iter"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

// Keys under which a letter's [Failure] travels with its message. The first three are Watermill's own, so that its
// tools understand them.
const (
	ReasonKey      = "reason_poisoned"
	HandlerKey     = "handler_poisoned"
	TopicKey       = "topic_poisoned"
	AttemptsKey    = "attempts_poisoned"
	FirstFailedKey = "first_failed_at" // RFC 3339 with milliseconds, UTC
	LastFailedKey  = "last_failed_at"
)

// MaxReasonBytes bounds a reason, which travels in a header: longer ones are cut at a character's edge.
const MaxReasonBytes = 1024

// Failure says why a message became a dead letter.
type Failure struct {
	// Reason is the text of the last error. It quotes nothing of event_data.
	Reason string
	// Handler is the name of the handler that failed; "" when the message reached none, as when it is no event.
	Handler string
	// Attempts is how often the handler was tried; 0 when the message was parked behind another.
	Attempts    int
	FirstFailed time.Time
	LastFailed  time.Time
	// MayPass tells that trying again later may help: what was tried is exhausted, and the error is not permanent. A
	// letter does not keep it.
	MayPass bool
}

// Letter is a message that failed, with the story of its failure. Only Body and Headers are certain: the message may
// come from a program that knows nothing of the worker, and its body need not be an event.
type Letter struct {
	// ID names the letter in its queue: unique there, stable while it lies there.
	ID string
	// Event is the body's event, as far as it could be read.
	Event events.Event
	Failure
	// Source is where a replay puts the letter: the queue on a broker.
	Source string
	// Headers are the message's headers without those of the failure; values as the broker gave them.
	Headers map[string]any
	Body    []byte
}

// Filter chooses letters; the zero value chooses all.
type Filter struct {
	// ID matches a letter's ID or its event's id.
	ID string
	// Type matches the event's type.
	Type string
}

// Match tells whether f chooses the letter.
func (f Filter) Match(l Letter) bool {
	if f.ID != "" && f.ID != l.ID && (l.Event.ID == uuid.Nil || f.ID != l.Event.ID.String()) {
		return false
	}
	return f.Type == "" || f.Type == l.Event.Type
}

// Sink takes the messages that failed.
type Sink interface {
	// Put makes m a dead letter; its body and headers stay as they are. When it returns nil the letter is safe, and m
	// can be acked; on an error m must stay where it is. It keeps trying for as long as ctx lives only where the fault
	// is certain to pass. The context must not be that of a handler, which may be over.
	Put(ctx context.Context, m *message.Message, f Failure) error
}

// Postponer is a Sink that can first have a message handled again later.
type Postponer interface {
	Sink
	// Postpone has the handler that failed handle m again, and returns after how long, or 0 if m is to be Put, as it was
	// postponed often enough or the failure will not pass. For errors and ctx see Sink.
	Postpone(ctx context.Context, m *message.Message, f Failure) (time.Duration, error)
}

// Queue is a place where dead letters lie.
type Queue interface {
	// List yields the letters, oldest first, and leaves the queue as it was, order and count, also when the caller
	// stops early or dies.
	List(ctx context.Context) iter.Seq2[Letter, error]
	// Replay sends the letters that f chooses back to where they came from, oldest first, and yields each once it is
	// safely on its way and can no longer be lost. Letters that fail while it runs are not taken up again. The letters
	// that f does not choose stay where they are, in their order.
	Replay(ctx context.Context, f Filter) iter.Seq2[Letter, error]
	// Purge destroys all letters and returns how many.
	Purge(ctx context.Context) (int, error)
}

// Shelf is the table in which a store keeps dead letters when there is no broker. The store gives each letter its id, in
// the order in which they were added. All methods are safe for concurrent use.
type Shelf interface {
	// AddLetter puts a letter on the shelf and gives it an id; l.ID is ignored.
	AddLetter(ctx context.Context, l Letter) error
	// Letters returns up to limit letters after the one with the given id ("" is the beginning), oldest first.
	Letters(ctx context.Context, afterID string, limit int) ([]Letter, error)
	// RequestReplay marks a letter, for the worker that runs to take up. It reports whether there is such a letter.
	RequestReplay(ctx context.Context, id string) (bool, error)
	// ReplayRequested returns up to limit marked letters, oldest first.
	ReplayRequested(ctx context.Context, limit int) ([]Letter, error)
	// RemoveLetter takes a letter off the shelf, once its replay is safe. Removing one that is gone is no error.
	RemoveLetter(ctx context.Context, id string) error
	// PurgeLetters destroys all letters and returns how many. Nothing is parked behind them any longer.
	PurgeLetters(ctx context.Context) (int, error)
}

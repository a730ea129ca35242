// Package deadletter is where messages rest that no handler could handle: looked into, replayed, and never lost.
//
// With RabbitMQ they lie in the failed queue of the contract; without it on a [Shelf], a table of the store. Commands
// work on either through [Queue], and the poison middleware fills either through [Sink].
package deadletter

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
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

var errEncoding = errors.New("this is no dead letter as an export writes it")

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

// Queue is a place where dead letters lie. All methods are safe for concurrent use; an error that wraps [ErrBusy] says that
// another of them, of whatever process, has the letters in hand.
type Queue interface {
	// List yields the letters that f chooses, oldest first, and leaves the queue as it was, order and count, also when
	// the caller stops early or dies. Letters that come while it runs are not yielded. The letters do not share memory.
	List(ctx context.Context, f Filter) iter.Seq2[Letter, error]
	// Replay sends the letters that f chooses back to where they came from, and yields each step: first Begun, last Done,
	// unless an error ends it, which is yielded with the last counts. A letter leaves the queue once it is safely on its
	// way and can no longer be lost; one that is sent while the process dies may be sent again.
	//
	// Letters of one aggregate and handler are sent by their versions, all others oldest first. Letters that fail while it
	// runs are not taken up again. Those that f does not choose stay where they are, in their order.
	Replay(ctx context.Context, f Filter, o ReplayOptions) iter.Seq2[Progress, error]
	// Take takes the letters that f chooses out of the queue, oldest first, some at a time: they leave it once keep has
	// returned nil for them, and if it has not, they stay. It returns how many left. When the process dies in between, the
	// letters that were kept are still in the queue: keep is called for them again. keep may be called while the
	// connection holds what is not yet taken, and is to return within minutes.
	Take(ctx context.Context, f Filter, keep func(ctx context.Context, letters []Letter) error) (int, error)
	// Return puts letters into the queue, behind the others, as they were when they were listed: message and failure. It
	// returns their ids there, which on a shelf are new ones. Body and History are the letters' own, and may have been
	// changed. When it fails some of them may be in the queue. A letter of the other kind of queue is [ErrForeign] if
	// something of it would be lost, and then none is put.
	Return(ctx context.Context, letters []Letter) (ids []string, err error)
	// Purge destroys all letters and returns how many.
	Purge(ctx context.Context) (int, error)
}

// Shelf is the table in which a store keeps dead letters when there is no broker. The store gives each letter its id, in
// the order in which they were added. All methods are safe for concurrent use.
type Shelf interface {
	// AddLetter puts a letter on the shelf and returns the id that it has there; l.ID is ignored.
	AddLetter(ctx context.Context, l Letter) (id string, err error)
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

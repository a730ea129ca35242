package deadletter

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/healz/worker/internal/bus"
)

const (
	// page is how many letters are read from the shelf at once.
	page = 100
	// replayInterval is how often a worker looks for letters to be replayed.
	replayInterval = 500 * time.Millisecond
)

// ReplayCountKey is the header that counts how often a message was replayed.
const ReplayCountKey = "replay_count"

// ShelfSink puts dead letters on a shelf.
type ShelfSink struct{ shelf Shelf }

// NewShelfSink returns the Sink over a shelf.
func NewShelfSink(shelf Shelf) *ShelfSink { return &ShelfSink{shelf: shelf} }

// Put implements [Sink].
func (s *ShelfSink) Put(ctx context.Context, m *message.Message, f Failure) error {
	source := message.SubscribeTopicFromCtx(m.Context()) //nolint:contextcheck // the topic is in the message's own context
	l := Letter{Failure: f, Source: source, Headers: make(map[string]any, len(m.Metadata)), Body: m.Payload}
	for key, value := range m.Metadata {
		l.Headers[key] = value
	}
	if err := s.shelf.AddLetter(ctx, l); err != nil {
		return fmt.Errorf("put a message on the shelf: %w", err)
	}
	return nil
}

// ShelfQueue is the Queue over a shelf. Its letters are replayed by the worker that runs on the same store.
type ShelfQueue struct{ shelf Shelf }

// NewShelfQueue returns the Queue over a shelf.
func NewShelfQueue(shelf Shelf) *ShelfQueue { return &ShelfQueue{shelf: shelf} }

// List implements [Queue].
func (q *ShelfQueue) List(ctx context.Context) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		for after := ""; ; {
			letters, err := q.shelf.Letters(ctx, after, page)
			if err != nil {
				yield(Letter{}, fmt.Errorf("list dead letters: %w", err))
				return
			}
			for _, l := range letters {
				if !yield(l, nil) {
					return
				}
			}
			if len(letters) < page {
				return
			}
			after = letters[len(letters)-1].ID
		}
	}
}

// Replay implements [Queue]: it marks the letters, for the worker to take up. Those that fail again are new letters, which
// it does not mark.
func (q *ShelfQueue) Replay(ctx context.Context, f Filter) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		var chosen []Letter
		for l, err := range q.List(ctx) {
			if err != nil {
				yield(Letter{}, err)
				return
			}
			if f.Match(l) {
				l.Body = nil // not needed again, and there may be many
				chosen = append(chosen, l)
			}
		}
		for _, l := range chosen {
			found, err := q.shelf.RequestReplay(ctx, l.ID)
			if err != nil {
				yield(l, fmt.Errorf("replay dead letter %s: %w", l.ID, err))
				return
			}
			if found && !yield(l, nil) {
				return
			}
		}
	}
}

// Purge implements [Queue].
func (q *ShelfQueue) Purge(ctx context.Context) (int, error) { return q.shelf.PurgeLetters(ctx) }

// Replayer takes up the letters of a shelf that are marked for replay, while a worker runs.
type Replayer struct {
	shelf     Shelf
	publisher bus.BatchPublisher
	leads     func() bool
	logger    *slog.Logger
}

// NewReplayer returns a replayer from shelf to publisher. leads tells whether this worker is the one among several that
// replays: two would both take up a letter.
func NewReplayer(shelf Shelf, publisher bus.BatchPublisher, leads func() bool, logger *slog.Logger) *Replayer {
	return &Replayer{shelf: shelf, publisher: publisher, leads: leads, logger: logger}
}

// Run replays marked letters, oldest first, until ctx is done. A letter leaves the shelf once its message was handled, or
// has become a letter again; when that fails it is tried again later.
func (r *Replayer) Run(ctx context.Context) {
	ticker := time.NewTicker(replayInterval)
	defer ticker.Stop()
	for {
		if !r.leads() {
			// another worker does it
		} else if err := r.replay(ctx); err != nil && ctx.Err() == nil {
			r.logger.WarnContext(ctx, "cannot replay dead letters, will try again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// replay replays the letters that are marked now.
func (r *Replayer) replay(ctx context.Context) error {
	for {
		letters, err := r.shelf.ReplayRequested(ctx, page)
		if err != nil || len(letters) == 0 {
			return err
		}
		for _, l := range letters {
			if err := r.publisher.PublishBatch(ctx, []*message.Message{messageOf(l)}); err != nil {
				return fmt.Errorf("replay dead letter %s: %w", l.ID, err)
			}
			if err := r.shelf.RemoveLetter(context.WithoutCancel(ctx), l.ID); err != nil {
				return fmt.Errorf("remove replayed dead letter %s: %w", l.ID, err)
			}
		}
	}
}

// messageOf is the message that a letter was, for the handler that failed.
func messageOf(l Letter) *message.Message {
	m := bus.NewMessage(l.Body)
	for key, value := range l.Headers {
		text, ok := value.(string)
		if !ok {
			continue // the in-process bus carries only text, so nothing else came from it
		}
		m.Metadata.Set(key, text)
	}
	count, _ := strconv.Atoi(m.Metadata.Get(ReplayCountKey)) // absent is none
	m.Metadata.Set(ReplayCountKey, strconv.Itoa(count+1))
	if l.Handler != "" {
		m.Metadata.Set(bus.ReplayHandlerKey, l.Handler)
	}
	return m
}

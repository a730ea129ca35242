package deadletter

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"maps"
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
	if _, err := s.shelf.AddLetter(ctx, l); err != nil {
		return fmt.Errorf("put a message on the shelf: %w", err)
	}
	return nil
}

// ShelfQueue is the Queue over a shelf. Its letters are replayed by the worker that runs on the same store.
type ShelfQueue struct{ shelf Shelf }

// NewShelfQueue returns the Queue over a shelf.
func NewShelfQueue(shelf Shelf) *ShelfQueue { return &ShelfQueue{shelf: shelf} }

// List implements [Queue].
func (q *ShelfQueue) List(ctx context.Context, f Filter) iter.Seq2[Letter, error] {
	return f.Choose(func(yield func(Letter, error) bool) {
		for after := ""; ; {
			letters, err := q.shelf.Letters(ctx, after, page)
			if err != nil {
				yield(Letter{}, fmt.Errorf("list dead letters: %w", err))
				return
			}
			for _, l := range letters {
				if !yield(Complete(l), nil) {
					return
				}
			}
			if len(letters) < page {
				return
			}
			after = letters[len(letters)-1].ID
		}
	})
}

// Replay implements [Queue]: it marks the letters, for the worker to take up. Those that fail again are new letters, which
// it does not mark.
func (q *ShelfQueue) Replay(ctx context.Context, f Filter, o ReplayOptions) iter.Seq2[Progress, error] {
	return func(yield func(Progress, error) bool) {
		o, err := o.Check()
		p := Progress{ReplayID: o.Resume}
		if err != nil {
			yield(p, err)
			return
		}
		var chosen []Letter
		for l, err := range q.List(ctx, f) {
			if err != nil {
				yield(p, err)
				return
			}
			l.Body = nil // not needed again, and there may be many
			chosen = append(chosen, l)
		}
		p.Chosen = len(chosen)
		for _, l := range chosen {
			found, err := q.shelf.RequestReplay(ctx, l.ID)
			if err != nil {
				yield(p, fmt.Errorf("replay dead letter %s: %w", l.ID, err))
				return
			}
			if !found {
				continue
			}
			p.Step, p.Letter = Sent, l
			p.Sent++
			if !yield(p, nil) {
				return
			}
		}
		p.Step, p.Letter = Done, Letter{}
		yield(p, nil)
	}
}

// Take implements [Queue].
func (q *ShelfQueue) Take(ctx context.Context, f Filter, keep func(context.Context, []Letter) error) (int, error) {
	taken := 0
	take := func(batch []Letter) error {
		if len(batch) == 0 {
			return nil
		}
		if err := keep(ctx, batch); err != nil {
			return err
		}
		for _, l := range batch {
			if err := q.shelf.RemoveLetter(ctx, l.ID); err != nil {
				return fmt.Errorf("remove dead letter %s, which is kept elsewhere: %w", l.ID, err)
			}
			taken++
		}
		return nil
	}
	var batch []Letter
	for l, err := range q.List(ctx, f) {
		if err != nil {
			return taken, err
		}
		if batch = append(batch, l); len(batch) == page {
			if err := take(batch); err != nil {
				return taken, err
			}
			batch = nil
		}
	}
	return taken, take(batch)
}

// Return implements [Queue].
func (q *ShelfQueue) Return(ctx context.Context, letters []Letter) ([]string, error) {
	for _, l := range letters {
		if l.Raw != nil {
			return nil, fmt.Errorf("return dead letter %s: %w", l.ID, ErrForeign)
		}
	}
	ids := make([]string, len(letters))
	for i, l := range letters {
		var err error
		if ids[i], err = q.shelf.AddLetter(ctx, withHistory(l)); err != nil {
			return nil, fmt.Errorf("return dead letter %s: %w", l.ID, err)
		}
	}
	return ids, nil
}

// withHistory is a letter with the headers from which its history is read again.
func withHistory(l Letter) Letter {
	headers := maps.Clone(l.Headers)
	if headers == nil {
		headers = map[string]any{}
	}
	for key, value := range map[string]string{
		HistoryKey: l.History.Header(), ReplayIDKey: l.ReplayID, ReplayOfKey: l.ReplayOf, ReplayCountKey: strconv.Itoa(l.Replays),
	} {
		if value != "" && value != "0" {
			headers[key] = value
		}
	}
	l.Headers = headers
	return l
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

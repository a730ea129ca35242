package deadletter

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/healz/worker/internal/bus"
)

const (
	// page is how many letters are read from the shelf at once, and replayPage how many to be replayed: those are, even if
	// the replay is ended meanwhile.
	page       = 100
	replayPage = 20
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
		if key != bus.ReplayHandlerKey || value != f.Handler { // a replay sets it again
			l.Headers[key] = value
		}
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
	return f.Choose(q.behind(ctx, ""))
}

// behind yields the letters behind the one with the id, or all.
func (q *ShelfQueue) behind(ctx context.Context, id string) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		for {
			letters, err := q.shelf.Letters(ctx, id, page)
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
			id = letters[len(letters)-1].ID
		}
	}
}

// Replay implements [Queue]: it marks the letters, for the worker to take up. One has been handled, or has failed again,
// when it has left the shelf. Marks that the worker has not come to are taken away when the replay is cut short.
func (q *ShelfQueue) Replay(ctx context.Context, f Filter, o ReplayOptions) iter.Seq2[Progress, error] {
	return func(yield func(Progress, error) bool) {
		o, err := o.Check()
		if err != nil {
			yield(Progress{}, err)
			return
		}
		s := &shelfSender{ShelfQueue: q, options: o}
		letters, err := s.begin(ctx, f)
		if err != nil {
			yield(Progress{ReplayID: o.Resume}, err)
			return
		}
		run, err := NewRun(o, s, len(letters), yield)
		for i := 0; err == nil && i < len(letters); i++ {
			err = run.Offer(ctx, letters[i])
		}
		if err == nil {
			err = run.Finish(ctx)
		}
		if err != nil && !errors.Is(err, ErrNoOutcome) {
			err = errors.Join(err, q.shelf.CancelReplay(context.WithoutCancel(ctx), o.Resume))
		}
		run.End(err)
	}
}

// shelfSender is a replay from a shelf.
type shelfSender struct {
	*ShelfQueue

	options ReplayOptions
	// last are the ids of the latest letters that have been looked at. Letters may appear a little out of order.
	last []string
}

// begin returns the letters to be sent, in their order. Marks that a replay has left behind which is resumed are taken away:
// the later letters of an aggregate would go before those that are marked anew.
func (s *shelfSender) begin(ctx context.Context, f Filter) ([]Letter, error) {
	if !s.options.DryRun {
		if err := s.shelf.CancelReplay(ctx, s.options.Resume); err != nil {
			return nil, fmt.Errorf("replay dead letters: %w", err)
		}
	}
	return s.choose(ctx, f)
}

// choose returns the letters to be sent, in their order, without their bodies, as there may be many.
func (s *shelfSender) choose(ctx context.Context, f Filter) ([]Letter, error) {
	plan := NewPlan()
	var chosen, ordered []Letter
	for l, err := range s.behind(ctx, "") {
		if err != nil {
			return nil, err
		}
		s.see(l)
		if f.Match(l) && l.ReplayID != s.options.Resume && (f.Limit == 0 || len(chosen) < f.Limit) {
			plan.Add(l)
			chosen = append(chosen, l.light())
		}
	}
	for _, l := range chosen {
		err := plan.Meet(l.ID, func() error {
			ordered = append(ordered, l)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return ordered, nil
}

// outOfOrder is how many letters may still be added behind one that has a higher id.
const outOfOrder = 100

func (s *shelfSender) see(l Letter) {
	if s.last = append(s.last, l.ID); len(s.last) > 2*outOfOrder {
		s.last = append([]string{}, s.last[outOfOrder:]...)
	}
}

// Send implements [Sender].
func (s *shelfSender) Send(ctx context.Context, letters []Letter) ([]error, error) {
	ids := make([]string, len(letters))
	for i, l := range letters {
		ids[i] = l.ID
	}
	found, err := s.shelf.RequestReplay(ctx, ids, ReplayRequest{ReplayID: s.options.Resume, To: s.options.To})
	if err != nil {
		return nil, fmt.Errorf("replay dead letters: %w", err)
	}
	kept := make([]error, len(letters))
	for i, id := range ids {
		if !slices.Contains(found, id) {
			kept[i] = errGone
		}
	}
	return kept, nil
}

var errGone = errors.New("somebody else has taken it meanwhile")

// Outcomes implements [Sender].
func (s *shelfSender) Outcomes(ctx context.Context, sent []Letter) ([]string, []Letter, error) {
	awaiting, err := s.shelf.AwaitingReplay(ctx, s.options.Resume)
	if err != nil {
		return nil, nil, fmt.Errorf("follow the replay: %w", err)
	}
	var back []Letter
	after := ""
	if len(s.last) > outOfOrder {
		after = s.last[len(s.last)-1-outOfOrder]
	}
	for l, err := range s.behind(ctx, after) {
		if err != nil {
			return nil, nil, err
		}
		if !slices.Contains(s.last, l.ID) {
			s.see(l)
		}
		if l.ReplayID == s.options.Resume {
			back = append(back, l.light())
		}
	}
	waiting := make(map[string]bool, len(awaiting))
	for _, id := range awaiting {
		waiting[id] = true
	}
	var gone []string
	for _, l := range sent {
		if !waiting[l.ID] {
			gone = append(gone, l.ID)
		}
	}
	return gone, back, nil
}

// Traceable implements [Sender].
func (s *shelfSender) Traceable(Letter) bool { return true }

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
		letters, err := r.shelf.ReplayRequested(ctx, replayPage)
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

// messageOf is the message that a letter was.
func messageOf(r Requested) *message.Message {
	l := Complete(r.Letter)
	m := bus.NewMessage(l.Body)
	for key, value := range l.Headers {
		text, ok := value.(string)
		if !ok {
			continue // the in-process bus carries only text, so nothing else came from it
		}
		m.Metadata.Set(key, text)
	}
	if r.By.To == ToBus {
		delete(m.Metadata, bus.ReplayHandlerKey)
	}
	for key, value := range l.ReplayHeaders(r.By.ReplayID, r.By.To, time.Now()) {
		m.Metadata.Set(key, value)
	}
	return m
}

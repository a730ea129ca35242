package deadletter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/inprocess"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store/sqlite"
)

// memoryShelf is a shelf that can be told to fail.
type memoryShelf struct {
	mu        sync.Mutex
	last      int
	letters   []deadletter.Letter
	requested []deadletter.Requested
	err       error
}

func (s *memoryShelf) lock() func() {
	s.mu.Lock()
	return s.mu.Unlock
}

func (s *memoryShelf) failWith(err error) {
	defer s.lock()()
	s.err = err
}

func (s *memoryShelf) AddLetter(_ context.Context, l deadletter.Letter) (string, error) {
	defer s.lock()()
	if s.err != nil {
		return "", s.err
	}
	s.last++
	l.ID = strconv.Itoa(s.last)
	l.Event = events.ParsePartial(l.Body)
	s.letters = append(s.letters, l)
	return l.ID, nil
}

func (s *memoryShelf) Letters(_ context.Context, afterID string, limit int) ([]deadletter.Letter, error) {
	defer s.lock()()
	after, _ := strconv.Atoi(afterID)
	return s.first(limit, func(l deadletter.Letter) bool {
		id, _ := strconv.Atoi(l.ID)
		return id > after
	}), s.err
}

func (s *memoryShelf) RequestReplay(_ context.Context, ids []string, r deadletter.ReplayRequest) ([]string, error) {
	defer s.lock()()
	if s.err != nil {
		return nil, s.err
	}
	var found []string
	for _, id := range ids {
		if i := slices.IndexFunc(s.letters, func(l deadletter.Letter) bool { return l.ID == id }); i >= 0 {
			s.requested = slices.DeleteFunc(s.requested, func(r deadletter.Requested) bool { return r.ID == id })
			s.requested = append(s.requested, deadletter.Requested{Letter: s.letters[i], By: r})
			found = append(found, id)
		}
	}
	return found, nil
}

func (s *memoryShelf) ReplayRequested(_ context.Context, limit int) ([]deadletter.Requested, error) {
	defer s.lock()()
	return slices.Clone(s.requested[:min(limit, len(s.requested))]), s.err
}

func (s *memoryShelf) AwaitingReplay(_ context.Context, replayID string) ([]string, error) {
	defer s.lock()()
	var ids []string
	for _, r := range s.requested {
		if r.By.ReplayID == replayID {
			ids = append(ids, r.ID)
		}
	}
	return ids, s.err
}

func (s *memoryShelf) CancelReplay(_ context.Context, replayID string) error {
	defer s.lock()()
	s.requested = slices.DeleteFunc(s.requested, func(r deadletter.Requested) bool { return r.By.ReplayID == replayID })
	return s.err
}

func (s *memoryShelf) RemoveLetter(_ context.Context, id string) error {
	defer s.lock()()
	if s.err == nil {
		s.letters = slices.DeleteFunc(s.letters, func(l deadletter.Letter) bool { return l.ID == id })
		s.requested = slices.DeleteFunc(s.requested, func(r deadletter.Requested) bool { return r.ID == id })
	}
	return s.err
}

func (s *memoryShelf) PurgeLetters(context.Context) (int, error) {
	defer s.lock()()
	n := len(s.letters)
	s.letters = nil
	return n, s.err
}

func (s *memoryShelf) marked() []string {
	defer s.lock()()
	var ids []string
	for _, r := range s.requested {
		ids = append(ids, r.ID)
	}
	return ids
}

func (s *memoryShelf) all() []deadletter.Letter {
	defer s.lock()()
	return slices.Clone(s.letters)
}

func (s *memoryShelf) first(limit int, chosen func(deadletter.Letter) bool) []deadletter.Letter {
	var found []deadletter.Letter
	for _, l := range s.letters {
		if len(found) < limit && chosen(l) {
			found = append(found, l)
		}
	}
	return found
}

// publisher records messages and can be told to fail.
type publisher struct {
	mu        sync.Mutex
	published []*message.Message
	err       error
	// block, when set, keeps PublishBatch from returning before it is closed or its context is done.
	block chan struct{}
}

func (p *publisher) PublishBatch(ctx context.Context, batch []*message.Message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.published = append(p.published, batch...)
	if p.block != nil {
		select {
		case <-p.block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return p.err
}

func (p *publisher) failWith(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

func (p *publisher) messages() []*message.Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.published)
}

func eventBody(n int, eventType string) []byte {
	return fmt.Appendf(nil, `{"event_id": "0198c9ab-0000-7000-8000-%012d", "event_type": %q}`, n, eventType)
}

// fill puts n letters on a shelf, in turn of two types.
func fill(t *testing.T, shelf deadletter.Shelf, n int) {
	t.Helper()
	sink := deadletter.NewShelfSink(shelf)
	for i := range n {
		m := bus.NewMessage(eventBody(i+1, []string{"PatientRegistered", "PatientMoved"}[i%2]))
		f := deadletter.Failure{Reason: "no such patient", Handler: "welcome-patient", Attempts: 3}
		require.NoError(t, sink.Put(t.Context(), m, f))
	}
}

func ids(t *testing.T, letters func(yield func(deadletter.Letter, error) bool)) []string {
	t.Helper()
	var got []string
	for l, err := range letters {
		require.NoError(t, err)
		got = append(got, l.ID)
	}
	return got
}

// sent reads the ids of all letters that a replay sends.
func sent(t *testing.T, steps iter.Seq2[deadletter.Progress, error]) []string {
	t.Helper()
	var got []string
	for p, err := range steps {
		require.NoError(t, err)
		if p.Step == deadletter.Sent {
			got = append(got, p.Letter.ID)
		}
	}
	return got
}

func numbered(from, to, step int) []string {
	var texts []string
	for i := from; i <= to; i += step {
		texts = append(texts, strconv.Itoa(i))
	}
	return texts
}

func TestShelfSinkKeepsTheMessageAndTheFailure(t *testing.T) {
	t.Parallel()
	shelf := &memoryShelf{}
	m := message.NewMessage("id", []byte("\xff no event"))
	m.Metadata = message.Metadata{"x-custom": "ü", bus.EventTypeKey: "PatientMoved"}
	f := deadletter.Failure{
		Reason: "it is no event", Handler: "welcome-patient", Attempts: 7,
		FirstFailed: time.Unix(1, 0).UTC(), LastFailed: time.Unix(2, 0).UTC(),
	}

	require.NoError(t, deadletter.NewShelfSink(shelf).Put(t.Context(), m, f))

	require.Equal(t, []deadletter.Letter{{
		ID: "1", Failure: f, Body: []byte("\xff no event"),
		Headers: map[string]any{"x-custom": "ü", bus.EventTypeKey: "PatientMoved"},
	}}, shelf.letters)
}

func TestShelfSinkFails(t *testing.T) {
	t.Parallel()
	full := errors.New("disk full")
	err := deadletter.NewShelfSink(&memoryShelf{err: full}).Put(t.Context(), message.NewMessage("id", nil), deadletter.Failure{})
	require.ErrorIs(t, err, full)
}

func TestListPagesAndLeavesTheShelfAsItWas(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 99, 100, 101, 250} {
		shelf := &memoryShelf{}
		fill(t, shelf, n)
		before := slices.Clone(shelf.letters)
		q := deadletter.NewShelfQueue(shelf)
		require.Equal(t, numbered(1, n, 1), ids(t, q.List(t.Context(), deadletter.Filter{})))
		for _, err := range q.List(t.Context(), deadletter.Filter{}) { // a caller who stops early
			require.NoError(t, err)
			break
		}
		require.Equal(t, before, shelf.letters)
		require.Empty(t, shelf.requested)
	}
}

func TestListFails(t *testing.T) {
	t.Parallel()
	away := errors.New("the store is away")
	count := 0
	for _, err := range deadletter.NewShelfQueue(&memoryShelf{err: away}).List(t.Context(), deadletter.Filter{}) {
		require.ErrorIs(t, err, away)
		count++
	}
	require.Equal(t, 1, count)
}

func TestReplayMarksWhatTheFilterChooses(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		filter deadletter.Filter
		want   []string
	}{
		"all":               {deadletter.Filter{}, numbered(1, 250, 1)},
		"by type":           {deadletter.Filter{Type: "PatientMoved"}, numbered(2, 250, 2)},
		"by letter":         {deadletter.Filter{IDs: []string{"7"}}, []string{"7"}},
		"by event":          {deadletter.Filter{IDs: []string{"0198c9ab-0000-7000-8000-000000000009"}}, []string{"9"}},
		"by event and type": {deadletter.Filter{IDs: []string{"9"}, Type: "PatientMoved"}, nil},
		"none":              {deadletter.Filter{IDs: []string{"251"}}, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			shelf := &memoryShelf{}
			fill(t, shelf, 250)
			replayed := sent(t, deadletter.NewShelfQueue(shelf).Replay(t.Context(), test.filter, deadletter.ReplayOptions{}))
			require.Equal(t, test.want, replayed)
			require.ElementsMatch(t, test.want, shelf.marked())
			require.Len(t, shelf.letters, 250, "they stay until the worker has replayed them")
		})
	}
}

func TestReplayTakesNoLetterTwice(t *testing.T) {
	t.Parallel()
	shelf := &memoryShelf{}
	fill(t, shelf, 3)
	var replayed []string
	for p, err := range deadletter.NewShelfQueue(shelf).Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{}) {
		require.NoError(t, err)
		if p.Step != deadletter.Sent {
			continue
		}
		l := p.Letter
		replayed = append(replayed, l.ID)
		require.NoError(t, shelf.RemoveLetter(t.Context(), l.ID)) // a worker replays it at once,
		fill(t, shelf, 1)                                         // and it fails again
	}
	require.Equal(t, []string{"1", "2", "3"}, replayed)
}

func TestReplayPassesOverLettersThatAreGone(t *testing.T) {
	t.Parallel()
	shelf := &memoryShelf{}
	fill(t, shelf, 3)
	var replayed []string
	one := deadletter.ReplayOptions{Parallel: 1}
	for p, err := range deadletter.NewShelfQueue(shelf).Replay(t.Context(), deadletter.Filter{}, one) {
		require.NoError(t, err)
		if p.Step != deadletter.Sent {
			continue
		}
		replayed = append(replayed, p.Letter.ID)
		for _, id := range []string{p.Letter.ID, "2"} {
			require.NoError(t, shelf.RemoveLetter(t.Context(), id))
		}
	}
	require.Equal(t, []string{"1", "3"}, replayed)
}

func TestPurge(t *testing.T) {
	t.Parallel()
	shelf := &memoryShelf{}
	fill(t, shelf, 3)
	n, err := deadletter.NewShelfQueue(shelf).Purge(t.Context())
	require.NoError(t, err)
	require.Equal(t, 3, n)
	require.Empty(t, shelf.letters)
}

// run runs a replayer in the background until the test ends.
func run(t *testing.T, shelf deadletter.Shelf, p bus.BatchPublisher) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		deadletter.NewReplayer(shelf, p, func() bool { return true }, slog.New(slog.DiscardHandler)).Run(ctx)
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

func TestReplayerRepublishesTheMessageAsItWas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		shelf, p := &memoryShelf{}, &publisher{}
		run(t, shelf, p)
		original := bus.NewMessage(eventBody(1, "PatientMoved"))
		original.Metadata.Set("x-custom", "ü")
		put := func(m *message.Message, handler string) {
			require.NoError(t, deadletter.NewShelfSink(shelf).Put(t.Context(), m, deadletter.Failure{Handler: handler}))
		}
		put(original, "move-patient")
		put(message.NewMessage("", []byte("no event")), "")
		for _, want := range []string{"1", "2"} { // the second time it is a letter that was replayed
			sent(t, deadletter.NewShelfQueue(shelf).Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{}))
			<-time.After(time.Second)
			require.Empty(t, shelf.all())
			published := p.messages()
			m, unreadable := published[len(published)-2], published[len(published)-1]
			for _, replayed := range published[len(published)-2:] {
				for _, key := range []string{deadletter.ReplayIDKey, deadletter.ReplayOfKey, deadletter.HistoryKey} {
					require.NotEmpty(t, replayed.Metadata.Get(key))
					delete(replayed.Metadata, key)
				}
			}
			require.Equal(t, original.UUID, m.UUID)
			require.Equal(t, original.Payload, m.Payload)
			metadata := maps.Clone(original.Metadata)
			metadata[bus.ReplayHandlerKey] = "move-patient"
			metadata[deadletter.ReplayCountKey] = want
			require.Equal(t, metadata, m.Metadata)
			require.Equal(t, "no event", string(unreadable.Payload))
			require.Equal(t, message.Metadata{deadletter.ReplayCountKey: want}, unreadable.Metadata)
			put(m, "move-patient")
			put(unreadable, "")
		}
	})
}

func TestReplayerTakesUpOnlyWhatIsMarkedInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		shelf, p := &memoryShelf{}, &publisher{}
		fill(t, shelf, 250)
		run(t, shelf, p)
		sent(t, deadletter.NewShelfQueue(shelf).Replay(t.Context(), deadletter.Filter{Type: "PatientMoved"}, deadletter.ReplayOptions{}))
		<-time.After(time.Second)

		var published []string
		for _, m := range p.messages() {
			require.Equal(t, "PatientMoved", m.Metadata.Get(bus.EventTypeKey))
			published = append(published, m.UUID)
		}
		require.Len(t, published, 125)
		require.True(t, slices.IsSorted(published))
		require.Equal(t, numbered(1, 250, 2), ids(t, deadletter.NewShelfQueue(shelf).List(t.Context(), deadletter.Filter{})))
	})
}

func TestReplayerKeepsTheLetterUntilItIsPublished(t *testing.T) {
	t.Parallel()
	away := errors.New("away")
	for name, disturb := range map[string]func(*memoryShelf, *publisher, error){
		"the bus fails":   func(_ *memoryShelf, p *publisher, err error) { p.failWith(err) },
		"the store fails": func(s *memoryShelf, _ *publisher, err error) { s.failWith(err) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				shelf, p := &memoryShelf{}, &publisher{}
				fill(t, shelf, 2)
				sent(t, deadletter.NewShelfQueue(shelf).Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{}))
				disturb(shelf, p, away)
				run(t, shelf, p)
				<-time.After(10 * time.Second)
				require.Len(t, shelf.all(), 2)
				require.LessOrEqual(t, len(p.messages()), 21, "tries each 500 ms")

				disturb(shelf, p, nil)
				<-time.After(time.Second)
				require.Empty(t, shelf.all())
			})
		})
	}
}

func TestStoppedReplayerKeepsTheLetterInHand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		shelf, p := &memoryShelf{}, &publisher{block: make(chan struct{})}
		fill(t, shelf, 1)
		sent(t, deadletter.NewShelfQueue(shelf).Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{}))
		stop := run(t, shelf, p)
		synctest.Wait()
		stop()
		require.Len(t, p.messages(), 1)
		require.Len(t, shelf.all(), 1)
		require.Equal(t, []string{"1"}, shelf.marked(), "the next worker takes it up")
	})
}

// TestReplayOverTheRealParts replays letters of a SQLite store through the in-process bus: what is handled leaves the
// shelf, what fails again lies there as a new letter.
func TestReplayOverTheRealParts(t *testing.T) {
	t.Parallel()
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "events.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	require.NoError(t, s.Migrate(t.Context()))
	b := inprocess.New(2, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	for _, topic := range b.Topics() {
		messages, err := b.Subscribe(t.Context(), topic)
		require.NoError(t, err)
		go func() {
			for m := range messages {
				again := deadletter.Failure{Reason: "again", Handler: m.Metadata.Get(bus.ReplayHandlerKey)}
				if bytes.Contains(m.Payload, []byte("PatientMoved")) &&
					deadletter.NewShelfSink(s).Put(m.Context(), m, again) != nil {
					m.Nack()
					continue
				}
				m.Ack()
			}
		}()
	}
	fill(t, s, 10)
	run(t, s, b)
	q := deadletter.NewShelfQueue(s)
	require.Len(t, sent(t, q.Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{})), 10)

	require.Eventually(t, func() bool {
		letters, err := s.Letters(t.Context(), "", 100)
		return err == nil && len(letters) == 5 && letters[0].Reason == "again"
	}, time.Minute, 10*time.Millisecond)
	for l, err := range q.List(t.Context(), deadletter.Filter{}) {
		require.NoError(t, err)
		require.Equal(t, "welcome-patient", l.Handler)
		require.Equal(t, "PatientMoved", l.Event.Type)
		require.Equal(t, 1, l.Replays)
	}
}

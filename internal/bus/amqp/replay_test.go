package amqp_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/testservers"
)

// sentBy reads all letters that a replay sends; it fails the test at an error.
func sentBy(tb testing.TB, steps iter.Seq2[deadletter.Progress, error]) []deadletter.Letter {
	tb.Helper()
	var all []deadletter.Letter
	for p, err := range steps {
		require.NoError(tb, err)
		if p.Step == deadletter.Sent {
			all = append(all, p.Letter)
		}
	}
	return all
}

// fill puts n letters straight into the failed queue: of types 0 to 4 by turns, and of 200 aggregates.
func fill(t *testing.T, ch *amqp091.Channel, n int) []string {
	t.Helper()
	require.NoError(t, ch.Confirm(false))
	var ids []string
	var last *amqp091.DeferredConfirmation
	for i := range n {
		ids = append(ids, fmt.Sprintf("L%06d", i))
		body := fmt.Sprintf(`{"event_id":%q,"event_type":"T%d","aggregate_id":%q,"aggregate_version":%d}`,
			uuid.New(), i%5, uuid.NewSHA1(uuid.Nil, []byte{byte(i % 200)}), i/200+1)
		var err error
		last, err = ch.PublishWithDeferredConfirm("healz.events.dlx", "failed", true, false, amqp091.Publishing{
			DeliveryMode: amqp091.Persistent, Body: []byte(body),
			Headers: amqp091.Table{"dead_letter_id": ids[i], "reason_poisoned": fmt.Sprint("failure ", i), "handler_poisoned": "h"},
		})
		require.NoError(t, err)
	}
	require.True(t, last.Wait())
	return ids
}

// The letters of several stretches keep their order over lists, one of them partial, replays and takes of some.
func TestLettersKeepTheirOrder(t *testing.T) {
	t.Parallel()
	for queueType, n := range map[string]int{amqp.ClassicQueues: 11_000, amqp.QuorumQueues: 1000} {
		t.Run(queueType, func(t *testing.T) {
			t.Parallel()
			url := testservers.RabbitMQ(t)
			q := amqp.NewFailedQueue(dial(t, amqp.Config{URL: url, QueueType: queueType}))
			all := fill(t, raw(t, url), n)
			list := func() []string { return ids(collect(t, q.List(t.Context(), deadletter.Filter{}))) }
			require.Equal(t, all, list())
			require.Equal(t, all[:3], ids(collect(t, q.List(t.Context(), deadletter.Filter{Limit: 3}))))
			groups, err := deadletter.Groups(q.List(t.Context(), deadletter.Filter{}))
			require.NoError(t, err)
			require.Len(t, groups, 5)
			require.Equal(t, n/5, groups[0].Count)

			without := func(remainder int) []string {
				rest := all
				all = slices.DeleteFunc(slices.Clone(all), func(id string) bool { return int(id[6]-'0')%5 == remainder })
				return slices.DeleteFunc(slices.Clone(rest), func(id string) bool { return int(id[6]-'0')%5 != remainder })
			}
			require.Equal(t, without(1), ids(sentBy(t, q.Replay(t.Context(), deadletter.Filter{Type: "T1"}, deadletter.ReplayOptions{}))))
			require.Equal(t, all, list())
			var kept []string
			taken, err := q.Take(t.Context(), deadletter.Filter{Type: "T3"}, func(_ context.Context, letters []deadletter.Letter) error {
				kept = append(kept, ids(letters)...)
				return nil
			})
			require.NoError(t, err)
			require.Equal(t, without(3), kept)
			require.Len(t, kept, taken)
			require.Equal(t, all, list())
		})
	}
}

func TestTakenLettersReturnAsTheyWere(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	q := amqp.NewFailedQueue(dial(t, amqp.Config{URL: url}))
	ch := raw(t, url)
	sent := everyType()
	sent.Expiration = ""
	sent.Headers["zero"], sent.Headers["text"] = math.Copysign(0, -1), "\xff"
	for range 2 { // twice the same, with one id
		require.NoError(t, ch.PublishWithContext(t.Context(), "healz.events.dlx", "failed", true, false, sent))
	}
	awaitCount(t, ch, failedQueue, 2)
	before := collect(t, q.List(t.Context(), deadletter.Filter{}))
	require.Equal(t, []string{"m-1", "m-1#2"}, ids(before))

	full := errors.New("disk full")
	n, err := q.Take(t.Context(), deadletter.Filter{}, func(context.Context, []deadletter.Letter) error { return full })
	require.ErrorIs(t, err, full)
	require.Zero(t, n)
	require.Equal(t, before, collect(t, q.List(t.Context(), deadletter.Filter{})), "what is not kept stays")

	var kept []deadletter.Letter
	n, err = q.Take(t.Context(), deadletter.Filter{IDs: []string{"m-1#2"}}, func(_ context.Context, letters []deadletter.Letter) error {
		for _, l := range letters {
			line, err := l.Encode()
			require.NoError(t, err)
			l, err = deadletter.Decode(line)
			require.NoError(t, err)
			kept = append(kept, l)
		}
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, 1, n)
	returned, err := q.Return(t.Context(), kept)
	require.NoError(t, err)
	require.Equal(t, []string{"m-1"}, returned)
	require.Equal(t, before, collect(t, q.List(t.Context(), deadletter.Filter{})))
	for range 2 {
		d, ok, err := ch.Get(failedQueue, true)
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, sent.Headers, d.Headers)
		require.Equal(t, sent.Body, d.Body)
		require.Equal(t, []any{sent.Timestamp, sent.UserId, sent.AppId, sent.Priority}, []any{d.Timestamp, d.UserId, d.AppId, d.Priority})
	}

	_, err = q.Return(t.Context(), []deadletter.Letter{{ID: "7", Body: []byte("{}")}})
	require.ErrorIs(t, err, deadletter.ErrForeign)
}

func TestLettersAreLookedAtOnceAtATime(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url})
	q := amqp.NewFailedQueue(c)
	putLetters(t, q, 3)
	next, stop := iter.Pull2(q.List(t.Context(), deadletter.Filter{}))
	_, err, _ := next()
	require.NoError(t, err)
	_, err = q.Purge(t.Context())
	require.ErrorIs(t, err, deadletter.ErrBusy)
	for _, err := range amqp.NewFailedQueue(c).List(t.Context(), deadletter.Filter{}) {
		require.ErrorIs(t, err, deadletter.ErrBusy)
	}
	stop()
	require.Len(t, collect(t, q.List(t.Context(), deadletter.Filter{})), 3)
}

// inbox is one of events that were handled by h.
type inbox struct {
	mu      sync.Mutex
	handled map[uuid.UUID][]store.Handling
}

func (i *inbox) HandledOf(_ context.Context, eventIDs []uuid.UUID) (map[uuid.UUID][]store.Handling, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	found := map[uuid.UUID][]store.Handling{}
	for _, id := range eventIDs {
		found[id] = i.handled[id]
	}
	return found, nil
}

func TestReplayFollowsItsLetters(t *testing.T) {
	t.Parallel()
	c := dial(t, amqp.Config{URL: testservers.RabbitMQ(t)})
	q := amqp.NewFailedQueue(c)
	putLetters(t, q, 40) // of A and B by turns
	in := &inbox{handled: map[uuid.UUID][]store.Handling{}}
	messages, _ := subscribe(t, c)
	go func() { // A is handled, B fails again
		for m := range messages {
			if m.Metadata.Get(bus.EventTypeKey) == "A" {
				in.mu.Lock()
				in.handled[uuid.MustParse(m.UUID)] = []store.Handling{{Handler: "h"}}
				in.mu.Unlock()
			} else if q.Put(m.Context(), m, deadletter.Failure{Reason: "again", Handler: "h", Attempts: 2, LastFailed: time.Now()}) != nil {
				m.Nack()
				continue
			}
			m.Ack()
		}
	}()
	o := deadletter.ReplayOptions{Inbox: in, Parallel: 5, MaxFailures: 3, Patience: patience}
	var last deadletter.Progress
	var failed error
	for p, err := range q.Replay(t.Context(), deadletter.Filter{}, o) {
		last, failed = p, err
		require.LessOrEqual(t, p.InFlight(), 5)
	}
	require.ErrorIs(t, failed, deadletter.ErrTooManyFailures)
	require.Greater(t, last.FailedAgain, 3)
	require.Less(t, last.Sent, 40)

	o.Resume, o.MaxFailures = last.ReplayID, -1
	sentBefore := last.Sent
	for p, err := range q.Replay(t.Context(), deadletter.Filter{}, o) {
		require.NoError(t, err)
		last = p
	}
	require.Equal(t, deadletter.Done, last.Step)
	require.Equal(t, 40-sentBefore, last.Sent, "what failed again is passed over")
	require.Equal(t, last.Sent, last.Handled+last.FailedAgain)
	require.Eventually(t, func() bool { return len(collect(t, q.List(t.Context(), deadletter.Filter{}))) == 20 }, patience, 50*time.Millisecond)
	for _, l := range collect(t, q.List(t.Context(), deadletter.Filter{})) {
		require.Equal(t, "B", l.Type)
		require.Equal(t, "again", l.Reason)
		require.Equal(t, 1, l.Replays)
		require.Equal(t, last.ReplayID, l.ReplayID)
		require.Len(t, l.History, 2)
		require.Equal(t, deadletter.Failed, l.History[0].Kind)
		require.Equal(t, 3, l.History[0].Attempts)
		require.Equal(t, last.ReplayID, l.History[1].ReplayID)
		require.NotContains(t, l.Headers, bus.ReplayHandlerKey)
	}
}

// Letters of one aggregate go by their versions, though one that was replayed alone lies behind the others.
func TestReplayGoesByVersions(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	q := amqp.NewFailedQueue(dial(t, amqp.Config{URL: url}))
	one, other := uuid.New(), uuid.New()
	var want []string
	for _, e := range []struct {
		aggregate uuid.UUID
		version   int
	}{{one, 2}, {other, 5}, {one, 3}, {one, 1}, {other, 4}} {
		require.NoError(t, q.Put(t.Context(), event(e.aggregate, e.version), failure()))
	}
	for _, e := range sentBy(t, q.Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{DryRun: true})) {
		want = append(want, fmt.Sprint(e.Event.AggregateID == one, e.Event.AggregateVersion))
	}
	require.Equal(t, []string{"true 1", "true 2", "true 3", "false 4", "false 5"}, want)
	require.Len(t, collect(t, q.List(t.Context(), deadletter.Filter{})), 5, "a dry run sends nothing")
	sent := sentBy(t, q.Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{To: deadletter.ToBus}))
	require.Len(t, sent, 5)
	ch := raw(t, url)
	for _, l := range sent {
		d, ok, err := ch.Get(consumerQueue, true)
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, l.Event.ID.String(), d.MessageId)
		require.Equal(t, "healz.events", d.Exchange)
		require.NotContains(t, d.Headers, bus.ReplayHandlerKey)
	}
}

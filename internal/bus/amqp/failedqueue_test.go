package amqp_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/testservers"
)

func failure() deadletter.Failure {
	return deadletter.Failure{
		Reason: strings.Repeat("é", deadletter.MaxReasonBytes), Handler: "h", Attempts: 3,
		FirstFailed: time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC), LastFailed: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC),
	}
}

// collect reads all letters; it fails the test at an error.
func collect(tb testing.TB, letters func(func(deadletter.Letter, error) bool)) []deadletter.Letter {
	tb.Helper()
	var all []deadletter.Letter
	for l, err := range letters {
		require.NoError(tb, err)
		all = append(all, l)
	}
	return all
}

func ids(letters []deadletter.Letter) []string {
	all := make([]string, len(letters))
	for i, l := range letters {
		all[i] = l.ID
	}
	return all
}

// putLetters puts n letters, of types A and B by turns.
func putLetters(tb testing.TB, q *amqp.FailedQueue, n int) {
	tb.Helper()
	for i := range n {
		body := fmt.Sprintf(`{"event_id":%q,"event_type":%q,"event_data":{"n":%d}}`, uuid.New(), string(rune('A'+i%2)), i)
		require.NoError(tb, q.Put(tb.Context(), bus.NewMessage([]byte(body)), failure()))
	}
}

// everyType is a message with a header of each type that AMQP has, and with all properties.
func everyType() amqp091.Publishing {
	stamp := time.Unix(1_778_051_289, 0)
	return amqp091.Publishing{
		Headers: amqp091.Table{
			"bool": true, "byte": byte(1), "int8": int8(-2), "int16": int16(-3), "int32": int32(-4), "int64": int64(-5),
			"uint16": uint16(6), "uint32": uint32(7), "float32": float32(1.5), "float64": 2.5, "string": "text", "empty": "",
			"decimal": amqp091.Decimal{Scale: 2, Value: 12345}, "bytes": []byte{0, 1, 0xff}, "time": stamp, "nil": nil,
			"array": []any{int32(1), "two", []any{true}, amqp091.Table{"k": int64(1)}},
			"table": amqp091.Table{"nested": amqp091.Table{"deep": stamp}, "n": nil},
		},
		ContentType: "application/x-odd", ContentEncoding: "identity", DeliveryMode: amqp091.Persistent, Priority: 3,
		CorrelationId: "not a uuid", ReplyTo: "somewhere", Expiration: "3600000", MessageId: "m-1", Timestamp: stamp,
		Type: "odd", UserId: "guest", AppId: "app", Body: []byte("\x00\xff not JSON"),
	}
}

func TestDeadLetterAndReplayLeaveAMessageAsItWas(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url})
	q := amqp.NewFailedQueue(c)
	messages, subscriber := subscribe(t, c)
	ch := raw(t, url)
	sent := everyType()
	require.NoError(t, ch.PublishWithContext(t.Context(), "healz.events", "odd", true, false, sent))

	m := receive(t, messages)
	require.NoError(t, q.Put(m.Context(), m, failure()))
	require.True(t, m.Ack())
	require.NoError(t, subscriber.Close())

	letters := collect(t, q.List(t.Context(), deadletter.Filter{}))
	require.Len(t, letters, 1)
	require.Equal(t, map[string]any(sent.Headers), letters[0].Headers)
	require.Equal(t, sent.Body, letters[0].Body)
	require.Equal(t, consumerQueue, letters[0].Source)
	require.Len(t, letters[0].ID, 26)
	want := failure()
	want.Reason = deadletter.CutReason(want.Reason)
	require.Equal(t, want, letters[0].Failure)

	require.Equal(t, ids(letters), ids(sentBy(t, q.Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{}))))
	d, ok, err := ch.Get(consumerQueue, true)
	require.NoError(t, err)
	require.True(t, ok)
	for _, key := range []string{deadletter.ReplayIDKey, deadletter.ReplayOfKey, deadletter.HistoryKey} {
		require.NotEmpty(t, d.Headers[key])
		delete(d.Headers, key)
	}
	sent.Headers["replay_count"], sent.Headers[bus.ReplayHandlerKey] = "1", "h"
	require.Equal(t, sent, amqp091.Publishing{
		Headers: d.Headers, ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, DeliveryMode: d.DeliveryMode,
		Priority: d.Priority, CorrelationId: d.CorrelationId, ReplyTo: d.ReplyTo, Expiration: d.Expiration,
		MessageId: d.MessageId, Timestamp: d.Timestamp, Type: d.Type, UserId: d.UserId, AppId: d.AppId, Body: d.Body,
	})
	require.Zero(t, count(t, ch, failedQueue))
}

func TestPutReportsThatNothingTookTheLetter(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	q := amqp.NewFailedQueue(dial(t, amqp.Config{URL: url}))
	require.NoError(t, raw(t, url).ExchangeDelete("healz.events.dlx", false, false))
	m := event(uuid.New(), 1)
	require.ErrorIs(t, q.Put(t.Context(), m, failure()), amqp.ErrUnconfirmed)
	require.NoError(t, q.Put(t.Context(), m, failure()), "the exchange is declared again")
	require.Equal(t, 1, count(t, raw(t, url), failedQueue))
}

func TestLettersOfHalfAnEventAreFoundByTheirType(t *testing.T) {
	t.Parallel()
	q := amqp.NewFailedQueue(dial(t, amqp.Config{URL: testservers.RabbitMQ(t)}))
	for _, body := range []string{`{"event_id":7,"event_type":"Odd","aggregate_version":0,"unknown":1}`, "no JSON"} {
		require.NoError(t, q.Put(t.Context(), bus.NewMessage([]byte(body)), failure()))
	}
	letters := collect(t, q.List(t.Context(), deadletter.Filter{}))
	require.Equal(t, "Odd", letters[0].Event.Type)
	require.Zero(t, letters[0].Event.AggregateVersion)
	require.Zero(t, letters[1].Event)
	require.Equal(t, ids(letters[:1]), ids(sentBy(t, q.Replay(t.Context(), deadletter.Filter{Type: "Odd"}, deadletter.ReplayOptions{}))))
}

func TestListLeavesTheQueueAsItWas(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url, Name: t.Name()})
	q := amqp.NewFailedQueue(c)
	putLetters(t, q, 20)
	ch := raw(t, url)
	first := collect(t, q.List(t.Context(), deadletter.Filter{}))
	require.Len(t, first, 20)

	require.Equal(t, 20, count(t, ch, failedQueue))
	require.Equal(t, first, collect(t, q.List(t.Context(), deadletter.Filter{})), "after it ran to the end")

	for l, err := range q.List(t.Context(), deadletter.Filter{}) {
		require.NoError(t, err)
		require.Equal(t, first[0], l)
		break
	}
	require.Equal(t, 20, count(t, ch, failedQueue))
	require.Equal(t, first, collect(t, q.List(t.Context(), deadletter.Filter{})), "after it was stopped early")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var failed error
	n := 0
	for _, err := range q.List(ctx, deadletter.Filter{}) {
		if failed = err; err == nil {
			n++
		}
		if n == 10 {
			cancel() // cuts the connection
		}
	}
	require.ErrorIs(t, failed, context.Canceled)
	require.Equal(t, 10, n)
	awaitCount(t, ch, failedQueue, 20)
	require.Equal(t, first, collect(t, q.List(t.Context(), deadletter.Filter{})), "after it was killed half-way")
}

func TestListStopsAtWhatItFound(t *testing.T) {
	t.Parallel()
	q := amqp.NewFailedQueue(dial(t, amqp.Config{URL: testservers.RabbitMQ(t)}))
	putLetters(t, q, 3)
	n := 0
	for _, err := range q.List(t.Context(), deadletter.Filter{}) {
		require.NoError(t, err)
		putLetters(t, q, 1)
		n++
	}
	require.Equal(t, 3, n)
}

func TestLettersOfTheBroker(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	q := amqp.NewFailedQueue(dial(t, amqp.Config{URL: url}))
	ch := raw(t, url)
	_, err := ch.QueueDeclare("billing", true, false, false, false, amqp091.Table{
		"x-dead-letter-exchange": "healz.events.dlx", "x-dead-letter-routing-key": "failed",
	})
	require.NoError(t, err)
	publish := func(p amqp091.Publishing) {
		require.NoError(t, ch.PublishWithContext(t.Context(), "", "billing", true, false, p))
	}
	publish(amqp091.Publishing{MessageId: "rejected-1", Body: []byte(`{"event_type":"Rejected"}`)})
	awaitCount(t, ch, "billing", 1)
	d, ok, err := ch.Get("billing", false)
	require.NoError(t, err)
	require.True(t, ok)
	require.NoError(t, d.Reject(false))
	publish(amqp091.Publishing{Expiration: "1", Body: []byte(`no id at all`)})
	require.NoError(t, ch.PublishWithContext(t.Context(), "healz.events.dlx", "failed", true, false, amqp091.Publishing{
		Headers: amqp091.Table{"reason_poisoned": int32(7), "x-death": "odd"}, Body: []byte(`by hand`),
	}))
	awaitCount(t, ch, failedQueue, 3)

	letters := collect(t, q.List(t.Context(), deadletter.Filter{}))
	byBody := map[string]deadletter.Letter{}
	for _, l := range letters {
		byBody[string(l.Body)] = l
	}
	rejected := byBody[`{"event_type":"Rejected"}`]
	require.Equal(t, "rejected-1", rejected.ID)
	require.Equal(t, "dead-lettered by the broker: rejected", rejected.Reason)
	require.Equal(t, "billing", rejected.Source)
	require.Equal(t, 1, rejected.Attempts)
	require.WithinDuration(t, time.Now(), rejected.FirstFailed, time.Minute)
	require.Equal(t, "Rejected", rejected.Event.Type)
	expired := byBody[`no id at all`]
	require.Equal(t, "dead-lettered by the broker: expired", expired.Reason)
	require.Len(t, expired.ID, 32)
	require.Equal(t, ids(letters), ids(collect(t, q.List(t.Context(), deadletter.Filter{}))), "ids are stable")
	byHand := byBody[`by hand`]
	require.Empty(t, byHand.Reason)
	require.Empty(t, byHand.Source)

	require.Len(t, sentBy(t, q.Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{})), 3)
	require.Equal(t, 2, count(t, ch, "billing"))
	require.Equal(t, 1, count(t, ch, consumerQueue))
}

func TestReplayChooses(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	q := amqp.NewFailedQueue(dial(t, amqp.Config{URL: url}))
	putLetters(t, q, 6)
	ch := raw(t, url)
	all := collect(t, q.List(t.Context(), deadletter.Filter{}))

	for _, test := range []struct {
		filter deadletter.Filter
		want   []deadletter.Letter
	}{
		{deadletter.Filter{IDs: []string{"unknown"}}, nil},
		{deadletter.Filter{Type: "B"}, []deadletter.Letter{all[1], all[3], all[5]}},
		{deadletter.Filter{IDs: []string{all[2].ID}}, []deadletter.Letter{all[2]}},
		{deadletter.Filter{IDs: []string{all[0].Event.ID.String()}}, []deadletter.Letter{all[0]}},
	} {
		require.Equal(t, ids(test.want), ids(sentBy(t, q.Replay(t.Context(), test.filter, deadletter.ReplayOptions{}))))
	}
	require.Equal(t, []deadletter.Letter{all[4]}, collect(t, q.List(t.Context(), deadletter.Filter{})))
	require.Equal(t, 5, count(t, ch, consumerQueue))

	n, err := q.Purge(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Empty(t, collect(t, q.List(t.Context(), deadletter.Filter{})))
}

func TestReplayCountsAndDoesNotChaseWhatFailsAgain(t *testing.T) {
	t.Parallel()
	c := dial(t, amqp.Config{URL: testservers.RabbitMQ(t)})
	q := amqp.NewFailedQueue(c)
	putLetters(t, q, 5)
	messages, _ := subscribe(t, c)
	for round := 1; round <= 2; round++ {
		n := 0
		for p, err := range q.Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{MaxFailures: -1}) {
			require.NoError(t, err)
			if p.Step != deadletter.Sent {
				continue
			}
			n++
			m := receive(t, messages)
			require.Equal(t, fmt.Sprint(round), m.Metadata.Get("replay_count"))
			require.Empty(t, m.Metadata.Get(deadletter.ReasonKey))
			require.NoError(t, q.Put(m.Context(), m, deadletter.Failure{Reason: "again"}))
			require.True(t, m.Ack())
		}
		require.Equal(t, 5, n)
	}
}

func TestReplayKeepsWhatItCannotReplay(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	q := amqp.NewFailedQueue(dial(t, amqp.Config{URL: url}))
	ch := raw(t, url)
	require.NoError(t, ch.PublishWithContext(t.Context(), "healz.events.dlx", "failed", true, false, amqp091.Publishing{
		Headers: amqp091.Table{"source_queue": "no.more"}, Body: []byte("lost home"),
	}))
	awaitCount(t, ch, failedQueue, 1)
	putLetters(t, q, 1)

	var outcomes []error
	for p, err := range q.Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{}) {
		require.NoError(t, err)
		if p.Step == deadletter.Kept || p.Step == deadletter.Sent {
			outcomes = append(outcomes, p.Problem)
		}
	}
	require.Len(t, outcomes, 2)
	var unroutable *amqp.UnroutableError
	require.ErrorAs(t, outcomes[0], &unroutable)
	require.Equal(t, "no.more", unroutable.RoutingKey)
	require.NoError(t, outcomes[1])
	require.Equal(t, 1, count(t, ch, failedQueue))
	require.Equal(t, 1, count(t, ch, consumerQueue))
}

func TestReplayKilledHalfWayLosesNothing(t *testing.T) {
	t.Parallel()
	const letters = 450
	for name, harm := range map[string]func(cancel func(), network *proxy){
		"stopped":        func(cancel func(), _ *proxy) { cancel() },
		"connection cut": func(_ func(), network *proxy) { network.cut() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := testservers.RabbitMQ(t)
			network, url := newProxy(t, server)
			q := amqp.NewFailedQueue(dial(t, amqp.Config{URL: url}))
			putLetters(t, q, letters)
			all := ids(collect(t, q.List(t.Context(), deadletter.Filter{})))

			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			replayed := 0
			var failed error
			for p, err := range q.Replay(ctx, deadletter.Filter{}, deadletter.ReplayOptions{}) {
				failed = err
				if replayed = p.Sent; p.Step == deadletter.Sent && replayed == 10 {
					harm(cancel, network)
				}
			}
			require.Error(t, failed)
			ch := raw(t, server)
			require.Eventually(t, func() bool {
				return count(t, ch, failedQueue)+count(t, ch, consumerQueue) >= letters
			}, patience, 10*time.Millisecond)
			rest := ids(collect(t, q.List(t.Context(), deadletter.Filter{})))
			require.Subset(t, all, rest)
			require.GreaterOrEqual(t, len(rest), letters-replayed)
			if name == "stopped" {
				require.Len(t, rest, letters-replayed, "none is there twice")
			}
			replayedAgain := ids(sentBy(t, q.Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{})))
			require.Equal(t, rest, replayedAgain)

			bodies := map[string]bool{}
			for {
				d, ok, err := ch.Get(consumerQueue, true)
				require.NoError(t, err)
				if !ok {
					break
				}
				bodies[string(d.Body)] = true
			}
			require.Len(t, bodies, letters)
		})
	}
}

func TestPutWithoutADelivery(t *testing.T) {
	t.Parallel()
	q := amqp.NewFailedQueue(dial(t, amqp.Config{URL: testservers.RabbitMQ(t)}))
	m := event(uuid.New(), 1)
	m.Metadata.Set("own", "value")
	require.NoError(t, q.Put(t.Context(), m, failure()))
	letters := collect(t, q.List(t.Context(), deadletter.Filter{}))
	require.Len(t, letters, 1)
	require.Equal(t, []byte(m.Payload), letters[0].Body)
	require.Equal(t, "value", letters[0].Headers["own"])
	require.Equal(t, consumerQueue, letters[0].Source)
	require.Equal(t, m.UUID, letters[0].Event.ID.String())
}

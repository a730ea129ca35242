package amqp_test

import (
	"fmt"
	"iter"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/test/testservers"
)

func failure() deadletter.Failure {
	return deadletter.Failure{
		Reason: strings.Repeat("é", deadletter.MaxReasonBytes), Handler: "h", Attempts: 3,
		FirstFailed: time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC), LastFailed: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC),
	}
}

// collect reads all letters; it fails the test at an error.
func collect(tb testing.TB, letters iter.Seq2[deadletter.Letter, error]) []deadletter.Letter {
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

// fill publishes n events of 1 kB to the failed queue.
func fill(tb testing.TB, c *amqp.Connection, n int) {
	tb.Helper()
	publish := make([]amqp091.Publishing, n)
	at := time.Now().UTC().Truncate(time.Millisecond)
	for i := range publish {
		publish[i] = amqp091.Publishing{
			MessageId: uuid.NewString(), DeliveryMode: amqp091.Persistent, ContentType: "application/json",
			Headers: amqp091.Table{
				"dead_letter_id": fmt.Sprintf("L%06d", i), "reason_poisoned": fmt.Sprint("failure ", i), "handler_poisoned": "h",
				"last_failed_at": at.Add(time.Duration(i) * time.Millisecond).Format(time.RFC3339Nano),
			},
			Body: fmt.Appendf(nil, `{"event_id":%q,"event_type":"T%d","aggregate_id":%q,"aggregate_version":%d,"event_data":{"x":%q}}`,
				uuid.New(), i%5, uuid.NewSHA1(uuid.Nil, []byte{byte(i % 200)}), i/200+1, strings.Repeat("x", 800)),
		}
	}
	send(tb, c, publish...)
}

// send publishes messages to the failed queue as a program that knows nothing of the worker, and waits for the confirms.
func send(tb testing.TB, c *amqp.Connection, messages ...amqp091.Publishing) {
	tb.Helper()
	ch := raw(tb, amqp.URLOf(c))
	require.NoError(tb, ch.Confirm(false))
	var last *amqp091.DeferredConfirmation
	for _, m := range messages {
		var err error
		last, err = ch.PublishWithDeferredConfirm("healz.events.dlx", "failed", true, false, m)
		require.NoError(tb, err)
	}
	if last != nil {
		require.True(tb, last.Wait())
	}
	require.NoError(tb, ch.Close())
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

// odd is a message whose headers no JSON and no database takes as they are.
func odd() amqp091.Publishing {
	p := everyType()
	p.Headers["zero"], p.Headers["text"], p.Headers["nul"] = math.Copysign(0, -1), "\xff", "a\x00b"
	p.Headers["key \xff\x00"] = "x"
	return p
}

// replayed is a delivery without what a replay adds, which has to be there.
func replayed(tb testing.TB, d amqp091.Delivery) amqp091.Publishing {
	tb.Helper()
	for _, key := range []string{deadletter.ReplayIDKey, deadletter.ReplayOfKey, deadletter.HistoryKey, deadletter.ReplayCountKey} {
		require.NotEmpty(tb, d.Headers[key])
		delete(d.Headers, key)
	}
	return amqp091.Publishing{
		Headers: d.Headers, ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, DeliveryMode: d.DeliveryMode,
		Priority: d.Priority, CorrelationId: d.CorrelationId, ReplyTo: d.ReplyTo, Expiration: d.Expiration,
		MessageId: d.MessageId, Timestamp: d.Timestamp, Type: d.Type, UserId: d.UserId, AppId: d.AppId, Body: d.Body,
	}
}

// get takes the next message of a queue.
func get(tb testing.TB, ch *amqp091.Channel, queue string) amqp091.Delivery {
	tb.Helper()
	d, ok, err := ch.Get(queue, true)
	require.NoError(tb, err)
	require.True(tb, ok, "queue %s is empty", queue)
	return d
}

func TestDeadLetterAndReplayLeaveAMessageAsItWas(t *testing.T) {
	t.Parallel()
	for name, sent := range map[string]amqp091.Publishing{"every type": everyType(), "odd": odd()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testservers.RabbitMQ(t)
			c := dial(t, amqp.Config{URL: url})
			q := amqp.NewFailedQueue(c)
			messages, subscriber := subscribe(t, c)
			ch := raw(t, url)
			require.NoError(t, ch.PublishWithContext(t.Context(), "healz.events", "odd", true, false, sent))

			m := receive(t, messages)
			require.NoError(t, q.Put(m.Context(), m, failure()))
			require.True(t, m.Ack())
			require.NoError(t, subscriber.Close())

			letters := lettersOf(t, c)
			require.Len(t, letters, 1)
			require.Equal(t, sent.Body, letters[0].Body)
			require.Equal(t, consumerQueue, letters[0].Source)
			require.Len(t, letters[0].ID, 26)
			want := failure()
			want.Reason = deadletter.CutReason(want.Reason)
			require.Equal(t, want, letters[0].Failure)
			require.Equal(t, "text", letters[0].Headers["string"])
			require.NotContains(t, letters[0].Headers, deadletter.ReasonKey)

			line, err := letters[0].Encode() // an export, and its import
			require.NoError(t, err)
			imported, err := deadletter.Decode(line)
			require.NoError(t, err)
			require.Equal(t, []deadletter.Sending{{}, {}}, release(t, q, deadletter.ToHandler, letters[0], imported))
			sent.Headers[bus.ReplayHandlerKey] = "h"
			for range 2 {
				require.Equal(t, sent, replayed(t, get(t, ch, consumerQueue)))
			}
			require.Zero(t, count(t, ch, failedQueue))
		})
	}
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
	c := dial(t, amqp.Config{URL: testservers.RabbitMQ(t)})
	q, table := amqp.NewFailedQueue(c), newTable(t)
	for _, body := range []string{`{"event_id":7,"event_type":"Odd","aggregate_version":0,"unknown":1}`, "no JSON"} {
		require.NoError(t, q.Put(t.Context(), bus.NewMessage([]byte(body)), failure()))
	}
	require.Equal(t, 2, takeIn(t, c, table))
	letters := waiting(t, table)
	require.Equal(t, "Odd", letters[0].Event.Type)
	require.Zero(t, letters[0].Event.AggregateVersion)
	require.Zero(t, letters[1].Event)
	found := collect(t, table.List(t.Context(), deadletter.Filter{Type: "Odd"}))
	require.Equal(t, ids(letters[:1]), ids(found))
}

func TestLettersOfTheBroker(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url})
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
	send(t, c, amqp091.Publishing{Headers: amqp091.Table{"reason_poisoned": int32(7), "x-death": "odd"}, Body: []byte(`by hand`)})
	awaitCount(t, ch, failedQueue, 3)

	letters := lettersOf(t, c)
	byBody := map[string]deadletter.Letter{}
	for _, l := range letters {
		require.Len(t, l.ID, 26)
		byBody[string(l.Body)] = l
	}
	rejected := byBody[`{"event_type":"Rejected"}`]
	require.Equal(t, "dead-lettered by the broker: rejected", rejected.Reason)
	require.Equal(t, "billing", rejected.Source)
	require.Equal(t, 1, rejected.Attempts)
	require.WithinDuration(t, time.Now(), rejected.FirstFailed, time.Minute)
	require.Equal(t, "Rejected", rejected.Event.Type)
	expired := byBody[`no id at all`]
	require.Equal(t, "dead-lettered by the broker: expired", expired.Reason)
	byHand := byBody[`by hand`]
	require.Empty(t, byHand.Reason)
	require.Empty(t, byHand.Source)
	require.WithinDuration(t, time.Now(), byHand.FirstFailed, time.Minute)

	q := amqp.NewFailedQueue(c)
	require.Equal(t, []deadletter.Sending{{Elsewhere: "billing"}, {Elsewhere: "billing"}, {}},
		release(t, q, deadletter.ToHandler, rejected, expired, byHand))
	require.Equal(t, 2, count(t, ch, "billing"))
	require.Equal(t, 1, count(t, ch, consumerQueue))
}

func TestPutWithoutADelivery(t *testing.T) {
	t.Parallel()
	c := dial(t, amqp.Config{URL: testservers.RabbitMQ(t)})
	m := event(uuid.New(), 1)
	m.Metadata.Set("own", "value")
	require.NoError(t, amqp.NewFailedQueue(c).Put(t.Context(), m, failure()))
	letters := lettersOf(t, c)
	require.Len(t, letters, 1)
	require.Equal(t, []byte(m.Payload), letters[0].Body)
	require.Equal(t, "value", letters[0].Headers["own"])
	require.Equal(t, consumerQueue, letters[0].Source)
	require.Equal(t, m.UUID, letters[0].Event.ID.String())
}

package amqp_test

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"strings"
	"testing"
	"testing/synctest"
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

// What the queue does not take goes to the table, once, and the message need not stay in flight.
func TestPutWritesToTheTableWhatTheQueueDoesNotTake(t *testing.T) {
	t.Parallel()
	full := func(t *testing.T, ch *amqp091.Channel) {
		t.Helper()
		_, err := ch.QueueDelete(failedQueue, false, false, false)
		require.NoError(t, err)
		_, err = ch.QueueDeclare(failedQueue, true, false, false, false, amqp091.Table{
			amqp091.QueueMaxLenArg: 1, amqp091.QueueOverflowArg: amqp091.QueueOverflowRejectPublish,
		})
		require.NoError(t, err)
		require.NoError(t, ch.QueueBind(failedQueue, "failed", "healz.events.dlx", false, nil))
		require.NoError(t, ch.PublishWithContext(t.Context(), "", failedQueue, true, false, amqp091.Publishing{}))
		awaitCount(t, ch, failedQueue, 1)
	}
	for name, test := range map[string]struct {
		headers amqp091.Table
		harm    func(*testing.T, *amqp091.Channel, *proxy)
		lasting bool
	}{
		"full": {lasting: true, harm: func(t *testing.T, ch *amqp091.Channel, _ *proxy) { t.Helper(); full(t, ch) }},
		"unroutable": {lasting: true, harm: func(t *testing.T, ch *amqp091.Channel, _ *proxy) {
			t.Helper()
			require.NoError(t, ch.QueueUnbind(failedQueue, "failed", "healz.events.dlx", nil))
		}},
		"no exchange": {lasting: true, harm: func(t *testing.T, ch *amqp091.Channel, _ *proxy) {
			t.Helper()
			require.NoError(t, ch.ExchangeDelete("healz.events.dlx", false, false))
		}},
		"blocked": {harm: func(_ *testing.T, _ *amqp091.Channel, network *proxy) {
			network.inject(10, 60, "\x06memory")
		}},
		"unavailable": {harm: func(_ *testing.T, _ *amqp091.Channel, network *proxy) {
			network.refuse(true)
			network.cut()
		}},
		"half-open":         {lasting: true, harm: func(_ *testing.T, _ *amqp091.Channel, network *proxy) { network.freeze() }},
		"too large headers": {headers: amqp091.Table{"big": strings.Repeat("x", 126_850)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testservers.RabbitMQ(t)
			network, throughProxy := newProxy(t, url)
			lines, logger := newLog()
			c := dial(t, amqp.Config{URL: throughProxy, Logger: logger})
			q, ch, table := amqp.NewFailedQueue(c), raw(t, url), newTable(t)
			q.Table = table
			healthy := dial(t, amqp.Config{URL: url})
			other := amqp.NewFailedQueue(healthy)
			messages, _ := subscribe(t, healthy)
			body := fmt.Sprintf(`{"event_id":%q,"event_type":"Odd"}`, uuid.New())
			sent := everyType()
			sent.Body = []byte(body)
			maps.Copy(sent.Headers, test.headers)
			require.NoError(t, ch.PublishWithContext(t.Context(), "healz.events", "odd", true, false, sent))
			m := receive(t, messages)
			if test.harm != nil {
				test.harm(t, ch, network)
			}
			if name == "blocked" || name == "unavailable" {
				require.Eventually(t, func() bool { return c.Ready() != nil }, patience, time.Millisecond)
			}
			began := time.Now()
			require.NoError(t, q.Put(m.Context(), m, failure()))
			require.Less(t, time.Since(began), 15*time.Second)
			letters := waiting(t, table)
			require.Len(t, letters, 1)
			require.Equal(t, consumerQueue, letters[0].Source)
			want := failure()
			want.Reason = deadletter.CutReason(want.Reason)
			require.Equal(t, want, letters[0].Failure)
			require.Empty(t, letters[0].History)
			if !test.lasting {
				require.NoError(t, q.Degraded())
				return
			}
			require.ErrorContains(t, q.Degraded(), "written to the table")
			require.Equal(t, 1, strings.Count(lines.String(), "the failed queue takes no dead letters"))
			sent.Headers[bus.ReplayHandlerKey] = "h"
			require.Equal(t, []deadletter.Sending{{}}, release(t, other, deadletter.ToHandler, letters...))
			require.True(t, m.Ack())
			again := receive(t, messages)
			require.Equal(t, sent, replayed(t, amqp.DeliveryOf(again)))
		})
	}
}

// The state of the queue is logged when it changes, not for each letter, and lasts while the queue is full now and then.
func TestRefusalOfTheFailedQueueBeginsAndEndsOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lines, logger := newLog()
		state := amqp.NewRefusal(logger)
		require.NoError(t, state.Err())
		for range 40 {
			state.Begin(errors.New("it is full"))
			state.Taken()
		}
		require.ErrorContains(t, state.Err(), "it is full")
		require.Equal(t, 1, strings.Count(lines.String(), "\n"))
		time.Sleep(time.Minute) //nolint:forbidigo // the bubble's time
		require.ErrorContains(t, state.Err(), "it is full", "nothing says yet that it is over")
		state.Taken()
		state.Taken()
		require.NoError(t, state.Err())
		require.Equal(t, 2, strings.Count(lines.String(), "\n"))
		state.Begin(errors.New("it is full"))
		require.Equal(t, 3, strings.Count(lines.String(), "\n"))
		time.Sleep(9 * time.Minute) //nolint:forbidigo // the bubble's time
		require.Error(t, state.Err())
		time.Sleep(2 * time.Minute) //nolint:forbidigo // the bubble's time
		require.NoError(t, state.Err(), "the last refusal is long ago")
		require.NoError(t, state.Err())
		require.Equal(t, 4, strings.Count(lines.String(), "\n"))
		state.Begin(errors.New("it is full"))
		time.Sleep(time.Hour) //nolint:forbidigo // the bubble's time
		state.Begin(errors.New("it is full again"))
		require.ErrorContains(t, state.Err(), "refused first at "+time.Now().UTC().Format(time.RFC3339), "nobody has asked meanwhile")
	})
}

// The broker routed copies when the message was published first. Neither a dead letter nor a replay makes any.
func TestHeadersCCAndBCCMakeNoCopiesAgain(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url, RetryLater: []time.Duration{10 * time.Millisecond}})
	q, ch := amqp.NewFailedQueue(c), raw(t, url)
	for _, queue := range []string{"cc", "bcc"} {
		_, err := ch.QueueDeclare(queue, true, false, false, false, nil)
		require.NoError(t, err)
		for _, exchange := range []string{"healz.events", "healz.events.dlx"} {
			require.NoError(t, ch.QueueBind(queue, queue, exchange, false, nil))
		}
	}
	headers := amqp091.Table{"CC": []any{"cc"}, "BCC": []any{"bcc"}}
	messages, _ := subscribe(t, c)
	require.NoError(t, ch.PublishWithContext(t.Context(), "healz.events", "Tested", true, false, amqp091.Publishing{
		Headers: headers, Body: event(uuid.New(), 1).Payload,
	}))
	requireCopies := func() {
		t.Helper()
		require.Equal(t, 1, count(t, ch, "cc"))
		require.Equal(t, 1, count(t, ch, "bcc"))
	}
	m := receive(t, messages)
	requireCopies()
	wait, err := q.Postpone(m.Context(), m, mayPass(1, time.Now()))
	require.NoError(t, err)
	require.NotZero(t, wait)
	require.True(t, m.Ack())
	for range 2 {
		m = receive(t, messages)
		requireCopies()
		require.NoError(t, q.Put(m.Context(), m, failure()))
		require.True(t, m.Ack())
		letters := lettersOf(t, c)
		require.Len(t, letters, 1)
		require.Contains(t, letters[0].Headers, "original_cc", "the letter tells of it")
		requireCopies()
		require.Equal(t, []deadletter.Sending{{}}, release(t, q, deadletter.ToHandler, letters[0]))
	}
	receive(t, messages).Ack()
	requireCopies()

	send(t, c, amqp091.Publishing{Headers: maps.Clone(headers), Body: []byte("of another program")})
	_, err = ch.QueuePurge("cc", false) // its own copies
	require.NoError(t, err)
	_, err = ch.QueuePurge("bcc", false)
	require.NoError(t, err)
	letters := lettersOf(t, c)
	require.Equal(t, []deadletter.Sending{{}}, release(t, q, deadletter.ToBus, letters[0]))
	receive(t, messages).Ack()
	text := deadletter.Letter{ID: "imported", Headers: map[string]any{"CC": "no list"}, Body: []byte("from the in-process bus")}
	require.Equal(t, []deadletter.Sending{{}}, release(t, q, deadletter.ToHandler, text))
	receive(t, messages).Ack()
	require.Zero(t, count(t, ch, "cc")+count(t, ch, "bcc"))
}

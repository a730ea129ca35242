package amqp_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
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

// sendReleased sends the letters that replays release, as the worker that leads does, until the test ends.
func sendReleased(t *testing.T, table *deadletter.Table, q *amqp.FailedQueue) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		deadletter.NewReplayer(table, q, slog.New(slog.DiscardHandler)).Run(ctx, nil)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
}

func TestReplayFollowsItsLetters(t *testing.T) {
	t.Parallel()
	c := dial(t, amqp.Config{URL: testservers.RabbitMQ(t)})
	q, table := amqp.NewFailedQueue(c), newTable(t)
	putLetters(t, q, 40) // of A and B by turns
	require.Equal(t, 40, takeIn(t, c, table))
	before := waiting(t, table)
	sendReleased(t, table, q)
	run(t, c, table, logger(t))
	messages, _ := subscribe(t, c)
	go func() { // A is handled, B fails again
		for m := range messages {
			var err error
			if m.Metadata.Get(bus.EventTypeKey) == "A" {
				err = table.Settled(m.Context(), m.Metadata.Get(deadletter.ReplayOfKey), m.Metadata.Get(deadletter.ReplayIDKey), []string{"h"}, true)
			} else {
				err = q.Put(m.Context(), m, deadletter.Failure{Reason: "again", Handler: "h", Attempts: 2, LastFailed: time.Now()})
			}
			if err != nil {
				m.Nack()
				continue
			}
			m.Ack()
		}
	}()
	o := deadletter.ReplayOptions{Parallel: 5, MaxFailures: 3, Patience: patience}
	var last deadletter.Progress
	var failed error
	for p, err := range table.Replay(t.Context(), deadletter.Filter{}, o) {
		last, failed = p, err
		require.LessOrEqual(t, p.InFlight(), 5)
	}
	require.ErrorIs(t, failed, deadletter.ErrTooManyFailures)
	require.Greater(t, last.FailedAgain, 3)
	require.Less(t, last.Sent, 40)

	o.Resume, o.MaxFailures = last.ReplayID, -1
	for p, err := range table.Replay(t.Context(), deadletter.Filter{}, o) {
		require.NoError(t, err)
		last = p
	}
	require.Equal(t, deadletter.Done, last.Step)
	require.Equal(t, last.Sent, last.Handled+last.FailedAgain)
	require.Eventually(t, func() bool {
		n, err := table.Count(t.Context())
		require.NoError(t, err)
		return n == 20
	}, patience, 10*time.Millisecond)
	ids := map[string]bool{}
	for _, l := range before {
		ids[l.ID] = true
	}
	for _, l := range waiting(t, table) {
		require.True(t, ids[l.ID], "a letter keeps its id")
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

func TestReplayCounts(t *testing.T) {
	t.Parallel()
	c := dial(t, amqp.Config{URL: testservers.RabbitMQ(t)})
	q, table := amqp.NewFailedQueue(c), newTable(t)
	putLetters(t, q, 5)
	messages, _ := subscribe(t, c)
	for round := 1; round <= 2; round++ {
		require.Equal(t, 5, takeIn(t, c, table))
		letters := waiting(t, table)
		require.Len(t, letters, 5)
		require.Equal(t, make([]deadletter.Sending, 5), release(t, q, deadletter.ToHandler, letters...))
		for _, l := range letters { // in order
			m := receive(t, messages)
			require.Equal(t, l.Event.ID.String(), m.UUID)
			require.Equal(t, l.ID, m.Metadata.Get(deadletter.ReplayOfKey))
			require.Equal(t, fmt.Sprint(round), m.Metadata.Get(deadletter.ReplayCountKey))
			require.Equal(t, "h", m.Metadata.Get(bus.ReplayHandlerKey))
			require.Empty(t, m.Metadata.Get(deadletter.ReasonKey))
			require.NoError(t, q.Put(m.Context(), m, deadletter.Failure{
				Reason: "again", Handler: "h", LastFailed: time.Now().Add(time.Duration(round) * time.Second),
			}))
			require.True(t, m.Ack())
		}
	}
}

func TestReplayToTheBus(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url})
	q := amqp.NewFailedQueue(c)
	putLetters(t, q, 1)
	long := strings.Repeat("é", 200)
	send(t, c, amqp091.Publishing{
		Headers: amqp091.Table{"replay_handler": "h", "reason_poisoned": "r"}, Type: "Odd", Body: []byte("of another queue"),
	}, amqp091.Publishing{Body: fmt.Appendf(nil, `{"event_type":%q}`, long)})
	letters := lettersOf(t, c)
	require.Equal(t, make([]deadletter.Sending, 3), release(t, q, deadletter.ToBus, letters...))
	ch := raw(t, url)
	for i, key := range []string{"A", "Odd", long[:254]} {
		d := get(t, ch, consumerQueue)
		require.Equal(t, letters[i].Body, d.Body)
		require.Equal(t, "healz.events", d.Exchange)
		require.Equal(t, key, d.RoutingKey)
		require.NotContains(t, d.Headers, bus.ReplayHandlerKey)
		require.Equal(t, letters[i].ID, d.Headers[deadletter.ReplayOfKey])
	}
}

// What cannot be sent is told, and does not hold up the others.
func TestReplayKeepsWhatItCannotSend(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url})
	q := amqp.NewFailedQueue(c)
	ch := raw(t, url)
	_, err := ch.QueueDeclare("billing", true, false, false, false, nil)
	require.NoError(t, err)
	of := func(headers amqp091.Table, body string) {
		headers["reason_poisoned"] = "r"
		send(t, c, amqp091.Publishing{Headers: headers, Body: []byte(body)})
	}
	of(amqp091.Table{"source_queue": "no.more"}, "0: lost home")
	of(amqp091.Table{"source_queue": "billing"}, "1: elsewhere")
	of(amqp091.Table{"dead_letter_expiration": "soon"}, "2: the broker refuses it")
	of(amqp091.Table{"big": strings.Repeat("x", 126_500)}, "3: too large for a history")
	of(amqp091.Table{"big": strings.Repeat("x", 126_850)}, "4: too large")
	of(amqp091.Table{}, "5: good")
	letters := lettersOf(t, c)
	letters[3].History = letters[3].History.With(deadletter.Incident{Kind: deadletter.Edited, Reason: strings.Repeat("r", 250)})
	letters = append(letters, deadletter.Letter{
		ID: "6", Failure: deadletter.Failure{Handler: "h"}, Source: "healz.events", Headers: map[string]any{"own": "value"}, Body: []byte("6: in-process"),
	}, deadletter.Letter{ID: "7", Body: bytes.Repeat([]byte("x"), 128<<20+1)}, deadletter.Letter{ID: "8", Raw: []byte("[]"), Body: []byte("8")})

	sendings := release(t, q, deadletter.ToHandler, letters...)
	var unroutable *amqp.UnroutableError
	require.ErrorAs(t, sendings[0].Problem, &unroutable)
	require.Equal(t, "no.more", unroutable.RoutingKey)
	require.Equal(t, deadletter.Sending{Elsewhere: "billing"}, sendings[1])
	require.ErrorContains(t, sendings[2].Problem, "expiration")
	require.Zero(t, sendings[3])
	require.ErrorIs(t, sendings[4].Problem, amqp.ErrTooLarge)
	require.Zero(t, sendings[5])
	require.Zero(t, sendings[6])
	require.ErrorIs(t, sendings[7].Problem, amqp.ErrTooLarge)
	require.Error(t, sendings[8].Problem)

	sent := map[string]amqp091.Delivery{}
	for _, queue := range []string{"billing", consumerQueue} {
		for count(t, ch, queue) > 0 {
			d := get(t, ch, queue)
			sent[d.RoutingKey+" "+string(d.Body[:1])] = d
		}
	}
	require.Len(t, sent, 4)
	require.Contains(t, sent, "billing 1")
	require.NotContains(t, sent[consumerQueue+" 3"].Headers, deadletter.HistoryKey)
	require.Contains(t, sent[consumerQueue+" 5"].Headers, deadletter.HistoryKey)
	require.NotContains(t, sent[consumerQueue+" 5"].Headers, bus.ReplayHandlerKey)
	require.Equal(t, "value", sent[consumerQueue+" 6"].Headers["own"])
	require.Equal(t, "h", sent[consumerQueue+" 6"].Headers[bus.ReplayHandlerKey])
}

func TestReplayWhoseConnectionIsCutLosesNothing(t *testing.T) {
	t.Parallel()
	const letters = 450
	network, url := newProxy(t, testservers.RabbitMQ(t))
	c := dial(t, amqp.Config{URL: url})
	q, table := amqp.NewFailedQueue(c), newTable(t)
	fill(t, c, letters)
	require.Equal(t, letters, takeIn(t, c, table))
	sendReleased(t, table, q)
	messages, _ := subscribe(t, c)
	go func() {
		for m := range messages {
			if table.Settled(m.Context(), m.Metadata.Get(deadletter.ReplayOfKey), m.Metadata.Get(deadletter.ReplayIDKey), []string{"h"}, true) != nil {
				m.Nack()
				continue
			}
			m.Ack()
		}
	}()
	cut, handled := 0, map[uuid.UUID]bool{}
	for p, err := range table.Replay(t.Context(), deadletter.Filter{}, deadletter.ReplayOptions{Parallel: 20, MaxFailures: -1, Patience: patience}) {
		require.NoError(t, err)
		if p.Sent/100 > cut {
			cut++
			network.cut()
		}
		if p.Step == deadletter.Handled {
			handled[p.Letter.Event.ID] = true
		}
	}
	require.Equal(t, 4, cut)
	require.Len(t, handled, letters)
}

func TestReplayWaitsNoLongerThanItMay(t *testing.T) {
	t.Parallel()
	network, url := newProxy(t, testservers.RabbitMQ(t))
	q := amqp.NewFailedQueue(dial(t, amqp.Config{URL: url}))
	network.freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := q.PublishLetters(ctx, []deadletter.Release{{Letter: deadletter.Letter{ID: uuid.NewString(), Body: []byte("x")}}})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

package amqp_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/test/testservers"
)

func TestPublishBatch(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	publisher := amqp.NewPublisher(dial(t, amqp.Config{URL: url}))
	aggregate := uuid.New()
	batch := make([]*message.Message, 2500) // more than may be under way at once
	for i := range batch {
		batch[i] = event(aggregate, i+1)
	}
	require.NoError(t, publisher.PublishBatch(t.Context(), batch))
	require.NoError(t, publisher.PublishBatch(t.Context(), nil))

	ch := raw(t, url)
	require.Equal(t, len(batch), count(t, ch, consumerQueue))
	deliveries, err := ch.Consume(consumerQueue, "", true, false, false, false, nil)
	require.NoError(t, err)
	for _, sent := range batch {
		got := <-deliveries
		require.Equal(t, string(sent.Payload), string(got.Body))
		require.Equal(t, "Tested", got.RoutingKey)
		require.Equal(t, "Tested", got.Type)
		require.Equal(t, "application/json", got.ContentType)
		require.Equal(t, amqp091.Persistent, got.DeliveryMode)
		require.Equal(t, sent.UUID, got.MessageId)
		require.Equal(t, sent.Metadata[bus.CorrelationIDKey], got.CorrelationId)
		require.Equal(t, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), got.Timestamp.UTC())
		require.Equal(t, amqp091.Table{bus.AggregateIDKey: aggregate.String()}, got.Headers)
	}
}

func TestPublishConcurrently(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	publisher := amqp.NewPublisher(dial(t, amqp.Config{URL: url}))
	const callers, each = 40, 10
	errs := make(chan error)
	for range callers {
		go func() {
			for i := range each {
				errs <- publisher.PublishBatch(t.Context(), []*message.Message{event(uuid.New(), i+1)})
			}
		}()
	}
	for range callers * each {
		require.NoError(t, <-errs)
	}
	require.Equal(t, callers*each, count(t, raw(t, url), consumerQueue))
}

func TestPublishRefuses(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	publisher := amqp.NewPublisher(dial(t, amqp.Config{URL: url}))
	withHeader := func(key, value string) *message.Message {
		m := event(uuid.New(), 1)
		m.Metadata[key] = value
		return m
	}
	for name, test := range map[string]struct {
		message *message.Message
		want    error
	}{
		"too large headers": {withHeader("h", strings.Repeat("x", 130<<10)), amqp.ErrTooLarge},
		"too long header":   {withHeader(strings.Repeat("x", 256), "v"), amqp.ErrTooLarge},
	} {
		require.ErrorIs(t, publisher.PublishBatch(t.Context(), []*message.Message{test.message}), test.want, name)
	}
	large := bus.NewMessage(make([]byte, 128<<20+1))
	require.ErrorIs(t, publisher.PublishBatch(t.Context(), []*message.Message{large}), amqp.ErrTooLarge)
	publish(t, publisher, event(uuid.New(), 1)) // the connection has not suffered
}

func TestPublishBatchPassesOnWhatOthersWrote(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	publisher := amqp.NewPublisher(dial(t, amqp.Config{URL: url}))
	long := strings.Repeat("é", 200)
	require.NoError(t, publisher.PublishBatch(t.Context(), []*message.Message{
		bus.NewMessage([]byte(`not JSON`)), bus.NewMessage(fmt.Appendf(nil, `{"event_type":%q}`, long)),
	}))
	ch := raw(t, url)
	for _, key := range []string{"", long[:254]} {
		d, ok, err := ch.Get(consumerQueue, true)
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, key, d.RoutingKey)
	}
}

func TestPublishSaysWhatWasNotTaken(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		harm  func(*testing.T, *amqp091.Channel)
		check func(*testing.T, error)
	}{
		"no queue": {
			func(t *testing.T, ch *amqp091.Channel) {
				t.Helper()
				_, err := ch.QueueDelete(consumerQueue, false, false, false)
				require.NoError(t, err)
			},
			func(t *testing.T, err error) {
				t.Helper()
				var unroutable *amqp.UnroutableError
				require.ErrorAs(t, err, &unroutable)
				require.Equal(t, "Tested", unroutable.EventType)
			},
		},
		"no exchange": {
			func(t *testing.T, ch *amqp091.Channel) {
				t.Helper()
				require.NoError(t, ch.ExchangeDelete("healz.events", false, false))
			},
			func(t *testing.T, err error) {
				t.Helper()
				require.ErrorIs(t, err, amqp.ErrUnconfirmed)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testservers.RabbitMQ(t)
			publisher := amqp.NewPublisher(dial(t, amqp.Config{URL: url}))
			test.harm(t, raw(t, url))
			batch := []*message.Message{event(uuid.New(), 1), event(uuid.New(), 1)}
			test.check(t, publisher.PublishBatch(t.Context(), batch))
			require.NoError(t, publisher.PublishBatch(t.Context(), batch), "what was missing is declared again")
			require.Equal(t, 2, count(t, raw(t, url), consumerQueue))
		})
	}
}

func TestPublishReportsANack(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	publisher := amqp.NewPublisher(dial(t, amqp.Config{URL: url}))
	ch := raw(t, url)
	arguments := amqp091.Table{amqp091.QueueMaxLenArg: 1, amqp091.QueueOverflowArg: amqp091.QueueOverflowRejectPublish}
	_, err := ch.QueueDeclare("full", true, false, false, false, arguments)
	require.NoError(t, err)
	require.NoError(t, ch.QueueBind("full", "#", "healz.events", false, nil))
	publish(t, publisher, event(uuid.New(), 1))
	require.ErrorIs(t, publisher.PublishBatch(t.Context(), []*message.Message{event(uuid.New(), 1)}), amqp.ErrUnconfirmed)
}

func TestPublishWaitsForTheBroker(t *testing.T) {
	t.Parallel()
	network, url := newProxy(t, testservers.RabbitMQ(t))
	c := dial(t, amqp.Config{URL: url})
	publisher := amqp.NewPublisher(c)
	network.refuse(true)
	network.cut()
	require.Eventually(t, func() bool { return c.Ready() != nil }, patience, time.Millisecond)
	require.ErrorIs(t, c.Ready(), amqp.ErrUnavailable)

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := publisher.PublishBatch(ctx, []*message.Message{event(uuid.New(), 1)})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, amqp.ErrUnavailable)

	published := make(chan error)
	go func() { published <- publisher.PublishBatch(t.Context(), []*message.Message{event(uuid.New(), 1)}) }()
	network.refuse(false)
	require.NoError(t, <-published)
	require.Eventually(t, func() bool { return c.Ready() == nil }, patience, 10*time.Millisecond)
}

func TestPublishLeavesAHalfOpenPeer(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"confirm missing": 10, "write stuck": 8 << 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			network, url := newProxy(t, testservers.RabbitMQ(t))
			c := dial(t, amqp.Config{URL: url, ResponseTimeout: time.Second})
			publisher := amqp.NewPublisher(c)
			m := event(uuid.New(), 1)
			m.Payload = append(m.Payload, make([]byte, size)...)
			require.NoError(t, publisher.PublishBatch(t.Context(), []*message.Message{m}))

			network.freeze()
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			err := publisher.PublishBatch(ctx, []*message.Message{m})
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorIs(t, err, amqp.ErrUnconfirmed)

			require.Eventually(t, func() bool { // the dead connection is found out and replaced
				return publisher.PublishBatch(t.Context(), []*message.Message{m}) == nil
			}, patience, time.Millisecond)
		})
	}
}

// A batch that has waited long for its connection, or for a channel, does not cut it at once.
func TestTheTimeoutOfABatchBeginsWithItsChannel(t *testing.T) {
	t.Parallel()
	const timeout = 2 * time.Second
	publisher := amqp.NewPublisher(dial(t, amqp.Config{URL: testservers.RabbitMQ(t), ResponseTimeout: timeout}))
	release, err := amqp.OccupyChannels(t.Context(), publisher)
	require.NoError(t, err)
	late := time.After(timeout * 5 / 4)
	published := make(chan error)
	go func() { published <- amqp.PublishAfter(t.Context(), publisher, func() { <-late }) }()
	<-time.After(timeout * 3 / 4)
	release()
	require.NoError(t, <-published)
}

func TestPublishWaitsWhileTheBrokerBlocks(t *testing.T) {
	t.Parallel()
	network, url := newProxy(t, testservers.RabbitMQ(t))
	c := dial(t, amqp.Config{URL: url, ResponseTimeout: 500 * time.Millisecond})
	publisher := amqp.NewPublisher(c)
	publish(t, publisher, event(uuid.New(), 1))

	network.inject(10, 60, "\x06memory") // connection.blocked
	require.Eventually(t, func() bool { return c.Ready() != nil }, patience, time.Millisecond)
	require.ErrorIs(t, c.Ready(), amqp.ErrBlocked)
	require.ErrorContains(t, c.Ready(), "memory")
	network.freeze() // as a broker that blocks reads no further
	ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond)
	defer cancel()
	err := publisher.PublishBatch(ctx, []*message.Message{event(uuid.New(), 1)})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, amqp.ErrBlocked)

	network.inject(10, 61, "") // connection.unblocked
	require.Eventually(t, func() bool { return c.Ready() == nil }, patience, time.Millisecond)
	require.Eventually(t, func() bool { // what hangs is found out to be dead
		return publisher.PublishBatch(t.Context(), []*message.Message{event(uuid.New(), 1)}) == nil
	}, patience, time.Millisecond)
}

// An event type that the user may not publish does not hold up the others.
func TestEventTypeThatTheUserMayNotPublishIsRefused(t *testing.T) {
	t.Parallel()
	owner := testservers.RabbitMQ(t)
	dial(t, amqp.Config{URL: owner})
	limited := user(t, owner, ".*", ".*", ".*")
	u, err := url.Parse(limited)
	require.NoError(t, err)
	permit := func(write string) {
		manage(t, http.MethodPut, "/api/topic-permissions"+u.Path+"/"+u.User.Username(),
			fmt.Sprintf(`{"exchange":"healz.events","write":%q,"read":".*"}`, write))
	}
	permit("^Tested$")
	publisher := amqp.NewPublisher(dial(t, amqp.Config{URL: limited}))
	secret := event(uuid.New(), 2)
	secret.Metadata.Set(bus.EventTypeKey, "Secret")
	batch := []*message.Message{event(uuid.New(), 1), secret, event(uuid.New(), 3)}
	for _, m := range batch {
		if m != secret {
			m.Metadata.Set(bus.EventTypeKey, "Tested")
		}
	}
	err = publisher.PublishBatch(t.Context(), batch)
	refused, ok := errors.AsType[*bus.RefusedError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, 1, refused.Index)
	require.ErrorContains(t, refused, "access to topic 'Secret'")
	publish(t, publisher, batch[2])

	// Another 403 concerns all events: it does not lose them.
	manage(t, http.MethodPut, "/api/permissions"+u.Path+"/"+u.User.Username(), `{"configure":".*","write":"","read":".*"}`)
	err = amqp.NewPublisher(dial(t, amqp.Config{URL: limited})).PublishBatch(t.Context(), batch[:1])
	require.Error(t, err)
	_, ok = errors.AsType[*bus.RefusedError](err)
	require.False(t, ok, "%v", err)
}

// After a long alarm the broker has the whole time again for the next confirm.
func TestUnblockedBrokerHasTheWholeResponseTimeout(t *testing.T) {
	t.Parallel()
	const timeout = 2 * time.Second
	network, url := newProxy(t, testservers.RabbitMQ(t))
	lines, logger := newLog()
	c := dial(t, amqp.Config{URL: url, ResponseTimeout: timeout, Logger: logger})
	publisher := amqp.NewPublisher(c)
	publish(t, publisher, event(uuid.New(), 1))
	network.inject(10, 60, "\x06memory") // connection.blocked
	require.Eventually(t, func() bool { return c.Ready() != nil }, patience, time.Millisecond)
	network.freeze()
	published := make(chan error)
	go func() { published <- publisher.PublishBatch(t.Context(), []*message.Message{event(uuid.New(), 1)}) }()
	<-time.After(timeout * 5 / 2)
	network.inject(10, 61, "") // connection.unblocked
	unblocked := time.Now()
	require.Error(t, <-published)
	require.GreaterOrEqual(t, time.Since(unblocked), timeout)
	require.Contains(t, lines.String(), "connection to RabbitMQ lost")
}

func TestPublisherClosed(t *testing.T) {
	t.Parallel()
	c := dial(t, amqp.Config{URL: testservers.RabbitMQ(t)})
	publisher := amqp.NewPublisher(c)
	publish(t, publisher, event(uuid.New(), 1))
	require.NoError(t, publisher.Close())
	require.NoError(t, publisher.Close())
	require.ErrorIs(t, publisher.PublishBatch(t.Context(), []*message.Message{event(uuid.New(), 1)}), amqp.ErrClosed)

	other := amqp.NewPublisher(c)
	require.NoError(t, c.Close())
	require.ErrorIs(t, other.PublishBatch(t.Context(), []*message.Message{event(uuid.New(), 1)}), amqp.ErrClosed)
	require.ErrorIs(t, c.Ready(), amqp.ErrClosed)
}

func TestAMessagesPropertiesDoNotSpeakForItsEvent(t *testing.T) {
	t.Parallel()
	m := amqp.Unmarshal(amqp091.Delivery{
		Type: "rpc", CorrelationId: "call-7", Timestamp: time.Unix(1, 0), MessageId: "m-1",
		Body: []byte(`{"event_type":"PatientRegistered","correlation_id":"6f1e4e6c-94a8-4d0a-9a2b-4b7f3f1f0a01"}`),
	})
	require.Equal(t, message.Metadata{
		bus.EventTypeKey: "PatientRegistered", bus.CorrelationIDKey: "6f1e4e6c-94a8-4d0a-9a2b-4b7f3f1f0a01",
		bus.CreatedAtKey: "1970-01-01T00:00:01Z",
	}, m.Metadata)
}

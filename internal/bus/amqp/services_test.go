package amqp_test

import (
	"bytes"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/test/testservers"
)

const tick = 100 * time.Millisecond

func publishTypes(t *testing.T, ch *amqp091.Channel, types ...string) {
	t.Helper()
	for _, eventType := range types {
		require.NoError(t, ch.PublishWithContext(t.Context(), "healz.events", eventType, false, false, amqp091.Publishing{}))
	}
}

// Each service gets the events of its types once, beside the contract's queue, which gets all.
func TestServicesHaveTheirOwnQueues(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	dial(t, amqp.Config{URL: url})
	dial(t, amqp.Config{URL: url, Service: "billing", Types: []string{"Visit.Ended", "Paid"}, RetryLater: []time.Duration{time.Minute}})
	audit := dial(t, amqp.Config{URL: url, Service: "audit", Types: []string{"#"}})
	dial(t, amqp.Config{URL: url, Service: "idle"})
	require.Equal(t, []string{"healz.events.audit"}, audit.Topics())
	ch := raw(t, url)
	publishTypes(t, ch, "Visit.Ended", "Visit", "Paid", "Visit.Ended.Late")
	for queue, n := range map[string]int{consumerQueue: 4, "healz.events.billing": 2, "healz.events.audit": 4, "healz.events.idle": 0} {
		awaitCount(t, ch, queue, n)
	}
	require.Zero(t, count(t, ch, "healz.events.billing.retry.1m"))
	// What the broker dead-letters stays within the service.
	for _, queue := range []string{consumerQueue, "healz.events.billing", "healz.events.audit"} {
		d, ok, err := ch.Get(queue, false)
		require.NoError(t, err)
		require.True(t, ok)
		require.NoError(t, d.Reject(false))
	}
	for _, queue := range []string{failedQueue, "healz.events.billing.failed", "healz.events.audit.failed"} {
		awaitCount(t, ch, queue, 1)
	}
}

func TestServiceWithPartitions(t *testing.T) {
	t.Parallel()
	url := partitionable(t)
	config := amqp.Config{URL: url, Service: "billing", Types: []string{"Paid"}}
	alone := dial(t, config)
	ch := raw(t, url)
	publishTypes(t, ch, "Paid")
	awaitCount(t, ch, "healz.events.billing", 1)
	require.NoError(t, alone.Close())
	config.Partitions = 2
	c := dial(t, config)
	require.Equal(t, []string{"healz.events.billing", "healz.events.billing.0", "healz.events.billing.1"}, c.Topics())
	publishTypes(t, ch, "Paid", "Visit")
	require.Eventually(t, func() bool {
		return count(t, ch, "healz.events.billing.0")+count(t, ch, "healz.events.billing.1") == 1
	}, patience, tick)
	require.Equal(t, 1, count(t, ch, "healz.events.billing"))
	require.NoError(t, c.Close())
	config.Partitions, config.LeavePartitions = 0, true
	dial(t, config)
	publishTypes(t, ch, "Paid", "Visit")
	awaitCount(t, ch, "healz.events.billing", 2)
}

// A worker binds what it handles and leaves what another version handles, until an operator says that there is none.
func TestServiceIsUnboundByAnOperatorAlone(t *testing.T) {
	t.Parallel()
	broker := testservers.RabbitMQ(t)
	config := amqp.Config{
		URL: broker, ManagementURL: testservers.RabbitMQManagement(t), Service: "billing", Types: []string{"Visit", "Paid"},
	}
	dial(t, config)
	config.Types = []string{"Paid", "Refunded"}
	dial(t, config)
	ch := raw(t, broker)
	publishTypes(t, ch, "Visit", "Paid", "Refunded")
	awaitCount(t, ch, config.Queue(), 3)
	b, err := amqp.InspectBindings(t.Context(), config)
	require.NoError(t, err)
	require.Equal(t, amqp.Bindings{Unneeded: []string{"Visit"}}, b)

	require.NoError(t, amqp.Unbind(t.Context(), config, []string{"Visit", "Never"}))
	publishTypes(t, ch, "Visit", "Paid")
	awaitCount(t, ch, config.Queue(), 4)
	require.NoError(t, ch.QueueUnbind(config.Queue(), "Refunded", "healz.events", nil))
	b, err = amqp.InspectBindings(t.Context(), config)
	require.NoError(t, err)
	require.Equal(t, amqp.Bindings{Missing: []string{"Refunded"}}, b)
	require.Error(t, amqp.Unbind(t.Context(), amqp.Config{URL: broker}, []string{"Visit"}))
}

func TestNamesOfServices(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "billing", "a", "messaging-2", "follow_up"} {
		require.NoError(t, amqp.CheckService(name), name)
	}
	for _, name := range []string{"Billing", "consumer", "failed", "dlx", "partitioned", "retry", "0", "a.b", "a/b", "-a", "a b", "é"} {
		require.Error(t, amqp.CheckService(name), name)
		_, err := amqp.Dial(t.Context(), amqp.Config{URL: "amqp://localhost", Service: name})
		require.ErrorContains(t, err, "service")
	}
}

// Whichever worker replays, a letter returns to the service that it failed in, whose dispatcher tells its outcome.
func TestReplayToAnotherService(t *testing.T) {
	t.Parallel()
	url := partitionable(t)
	ch := raw(t, url)
	messaging := dial(t, amqp.Config{URL: url, Service: "messaging"})
	billing := amqp.NewFailedQueue(dial(t, amqp.Config{URL: url, Service: "billing"}))
	stock := dial(t, amqp.Config{URL: url, Service: "stock", Partitions: 1, Types: []string{"A"}})

	letters := map[string]deadletter.Letter{
		"by handler":    letterIn(t, amqp.Config{URL: url, Service: "billing"}, billing, "billing/invoice"),
		"of no handler": letterIn(t, amqp.Config{URL: url, Service: "billing"}, billing, ""),
	}
	renamed := letters["by handler"]
	renamed.Handler = "stock/count"
	partition := renamed
	partition.Source = "healz.events.stock.0"
	partition.Raw = bytes.Replace(partition.Raw, []byte("failed.billing"), []byte("failed.stock"), 1)
	lost := renamed
	lost.Handler = "unknown/h"
	letters["renamed"], letters["of a partition that nobody consumes"], letters["of no service"] = renamed, partition, lost
	for name, want := range map[string]string{
		"by handler": "healz.events.billing", "of no handler": "healz.events.billing", "renamed": "healz.events.stock",
		"of a partition that nobody consumes": "healz.events.stock", "of no service": "",
	} {
		sendings := release(t, amqp.NewFailedQueue(messaging), deadletter.ToHandler, letters[name])
		if want == "" {
			require.Error(t, sendings[0].Problem, name)
			continue
		}
		require.Equal(t, deadletter.Sending{}, sendings[0], name)
		require.Equal(t, want, get(t, ch, want).RoutingKey, name)
	}
	subscribe(t, stock) // now somebody does
	require.Equal(t, deadletter.Sending{}, release(t, amqp.NewFailedQueue(messaging), deadletter.ToHandler, partition)[0])
	for name, want := range map[string]string{"by handler": "billing", "of no handler": "billing", "renamed": "stock"} {
		service, known := amqp.ServiceOf(letters[name])
		require.True(t, known, name)
		require.Equal(t, want, service, name)
	}
	_, known := amqp.ServiceOf(deadletter.Letter{})
	require.False(t, known)
}

// letterIn puts a letter into the failed queue of a service, and returns it as it is ingested.
func letterIn(t *testing.T, config amqp.Config, q *amqp.FailedQueue, handler string) deadletter.Letter {
	t.Helper()
	c := dial(t, config)
	m := event(uuid.New(), 1)
	require.NoError(t, q.Put(t.Context(), m, deadletter.Failure{Reason: "r", Handler: handler}))
	letters := lettersOf(t, c)
	require.Len(t, letters, 1)
	return letters[0]
}

type logOf struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logOf) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logOf) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Another program on the workers' queue takes events from them: that is said, with its name, and taken back.
func TestAnotherProgramOnTheQueueIsNamed(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		managementURL func() string
		want          string
	}{
		"by the management API": {func() string { return testservers.RabbitMQManagement(t) }, `"nest billing" (user guest at 127.0.0.1:`},
		"by their number":       {func() string { return "http://127.0.0.1:1" }, "another program"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := testservers.RabbitMQ(t)
			var log logOf
			config := amqp.Config{URL: broker, ManagementURL: test.managementURL(), Logger: slog.New(slog.NewTextHandler(&log, nil))}
			c := dial(t, config)
			subscribe(t, c)
			amqp.WatchConsumersEach(t.Context(), c, tick)
			require.Never(t, func() bool { return c.Split() != nil }, 5*tick, tick)

			properties := amqp091.NewConnectionProperties()
			properties.SetClientConnectionName("nest billing")
			other, err := amqp091.DialConfig(broker, amqp091.Config{Properties: properties})
			require.NoError(t, err)
			ch, err := other.Channel()
			require.NoError(t, err)
			_, err = ch.Consume(consumerQueue, "", true, false, false, false, nil)
			require.NoError(t, err)
			require.Eventually(t, func() bool { return c.Split() != nil }, patience, tick)
			require.ErrorIs(t, c.Split(), amqp.ErrSplit)
			require.ErrorContains(t, c.Split(), "1 other consumer")
			require.Eventually(t, func() bool { err := c.Split(); return err != nil && strings.Contains(err.Error(), test.want) }, patience, tick)
			require.Contains(t, log.String(), "another program consumes")
			require.NoError(t, other.Close())
			require.Eventually(t, func() bool { return c.Split() == nil }, patience, tick)
			require.Contains(t, log.String(), "any more")
		})
	}
}

// Where all workers have a service name, nobody need want an event: it must not hold up those behind it.
func TestServicesPublishWhatNobodyWants(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url, Service: "billing", Types: []string{"Tested"}})
	publisher := amqp.NewPublisher(c)
	publisher.AllowUnwanted = true
	unwanted := event(uuid.New(), 1)
	unwanted.Metadata.Set("event_type", "Unwanted")
	publish(t, publisher, unwanted, event(uuid.New(), 1))
	require.ErrorAs(t, amqp.NewPublisher(c).PublishBatch(t.Context(), []*message.Message{unwanted}), new(*amqp.UnroutableError))
	ch := raw(t, url)
	awaitCount(t, ch, c.Topics()[0], 1)

	// What its own handlers are for is not lost for a binding that somebody has removed.
	require.NoError(t, ch.QueueUnbind("healz.events.billing", "Tested", "healz.events", nil))
	require.Error(t, publisher.PublishBatch(t.Context(), []*message.Message{event(uuid.New(), 2)}))
	publish(t, publisher, event(uuid.New(), 2))
	awaitCount(t, ch, c.Topics()[0], 2)
}

// A replay to the bus of what nobody wants is a problem of that letter alone, and the outcome elsewhere is not the letter's.
func TestReplayToTheBusOfServices(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	config := amqp.Config{URL: url, Service: "billing", Types: []string{"Tested"}}
	billing := dial(t, config)
	q := amqp.NewFailedQueue(billing)
	wanted := letterIn(t, config, q, "billing/h")
	unwanted := wanted
	unwanted.Type = "Unwanted"
	neverOnBus := deadletter.Letter{ID: "1", Type: "Tested", Body: wanted.Body}
	letters := slices.Repeat([]deadletter.Letter{wanted}, 40)
	letters[20], letters[30] = unwanted, unwanted
	for i, sending := range release(t, q, deadletter.ToBus, letters...) {
		if i != 20 && i != 30 {
			require.NoError(t, sending.Problem, i)
			continue
		}
		var unroutable *amqp.UnroutableError
		require.ErrorAs(t, sending.Problem, &unroutable)
		require.Equal(t, "Unwanted", unroutable.RoutingKey)
	}

	stock, _ := subscribe(t, dial(t, amqp.Config{URL: url, Service: "stock", Types: []string{"Tested"}}))
	accounts, _ := subscribe(t, billing)
	require.Equal(t, make([]deadletter.Sending, 2), release(t, q, deadletter.ToBus, wanted, neverOnBus))
	replayOf := func(messages <-chan *message.Message) []string { // a message may come twice
		all := map[string]bool{}
		for len(all) < 2 {
			m := receive(t, messages)
			all[m.Metadata.Get(deadletter.ReplayOfKey)] = true
			require.True(t, m.Ack())
		}
		return slices.Collect(maps.Keys(all))
	}
	require.ElementsMatch(t, []string{"", neverOnBus.ID}, replayOf(stock))
	require.ElementsMatch(t, []string{wanted.ID, neverOnBus.ID}, replayOf(accounts))
}

// A program that has the queue for itself takes every event: the worker is not ready, and says why.
func TestAnotherProgramHasTheQueueForItself(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	c := dial(t, amqp.Config{URL: url})
	ch := raw(t, url)
	_, err := ch.Consume(consumerQueue, "other", true, true, false, false, nil)
	require.NoError(t, err)
	subscriber := amqp.NewSubscriber(c)
	messages, err := subscriber.Subscribe(t.Context(), "any")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, subscriber.Close()) })
	require.Eventually(t, func() bool {
		_, err := subscriber.Consuming()
		return err != nil && strings.Contains(err.Error(), "exclusively")
	}, patience, tick)
	require.NoError(t, ch.Cancel("other", false))
	publish(t, amqp.NewPublisher(c), event(uuid.New(), 1))
	require.True(t, receive(t, messages).Ack())
	_, err = subscriber.Consuming()
	require.NoError(t, err)
}

// A message that reaches no handler in two services is a letter of each.
func TestLettersOfServicesAreApart(t *testing.T) {
	t.Parallel()
	url := testservers.RabbitMQ(t)
	table := newTable(t)
	e := event(uuid.New(), 1)
	for _, service := range []string{"", "billing", "stock", "billing"} {
		c := dial(t, amqp.Config{URL: url, Service: service})
		require.NoError(t, amqp.NewFailedQueue(c).Put(t.Context(), e, deadletter.Failure{Reason: "no event"}))
		require.Equal(t, 1, takeIn(t, c, table))
	}
	sources := map[string]int{}
	for l, err := range table.Read(t.Context(), deadletter.Filter{}) {
		require.NoError(t, err)
		sources[l.Source]++
	}
	require.Equal(t, map[string]int{consumerQueue: 1, "healz.events.billing": 1, "healz.events.stock": 1}, sources)
}

func TestPartitionsOfAServiceThatHadAllEvents(t *testing.T) {
	t.Parallel()
	config := amqp.Config{URL: partitionable(t), Service: "billing", Types: []string{"#"}}
	require.NoError(t, dial(t, config).Close())
	config.Types, config.Partitions = []string{"Tested"}, 1
	c := dial(t, config)
	publish(t, amqp.NewPublisher(c), event(uuid.New(), 1))
	ch := raw(t, config.URL)
	awaitCount(t, ch, "healz.events.billing.0", 1)
	require.Zero(t, count(t, ch, "healz.events.billing"))
}

package doctor_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/doctor"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/worker"
)

// onBroker are the settings of a vhost of the test's own, and a channel on it.
func onBroker(t *testing.T) (worker.Settings, *amqp091.Channel) {
	t.Helper()
	s := onFile(t)
	migrated(t, s)
	s.AMQP.URL = testservers.RabbitMQ(t)
	conn, err := amqp091.Dial(s.AMQP.URL)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	channel, err := conn.Channel()
	require.NoError(t, err)
	return s, channel
}

// declare lets the worker declare what it needs.
func declare(t *testing.T, s worker.Settings) {
	t.Helper()
	conn, err := amqp.Dial(t.Context(), s.AMQP)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

func TestBroker(t *testing.T) {
	t.Parallel()
	s, channel := onBroker(t)
	for range 2 {
		found := examine(t, s)
		found.requireFinding(t, "rabbitmq", doctor.OK, "RabbitMQ ")
		found.requireFinding(t, "topology", doctor.Warning, "no queue healz.events.consumer", "worker run")
	}
	declare(t, s)
	found := examine(t, s)
	found.requireFinding(t, "topology", doctor.OK)
	found.requireFinding(t, "queues", doctor.Warning, "healz.events.consumer has no consumer")

	require.NoError(t, channel.PublishWithContext(t.Context(), "", "healz.events.failed", false, false, amqp091.Publishing{}))
	_, err := channel.Consume("healz.events.consumer", "", false, false, false, false, nil)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		found = examine(t, s)
		return found.has("queues", doctor.Warning, "1 dead letter in healz.events.failed", "worker run") && !found.has("queues", doctor.Warning, "no consumer")
	}, patience, tick)
	s.IngestDeadLetters = false
	examine(t, s).requireFinding(t, "queues", doctor.Warning, "1 dead letter in healz.events.failed", "worker dlq ingest")
	_, err = channel.Consume("healz.events.failed", "", true, true, false, false, nil) // as a worker does
	require.NoError(t, err)
	s.AMQP.Competing = true
	require.Eventually(t, func() bool { return examine(t, s).has("queues", doctor.OK, "backlog: 0 messages ready") }, patience, tick)
}

// One worker is to consume the contract's queue. Whoever else does is named.
func TestConsumersBesidesTheWorker(t *testing.T) {
	t.Parallel()
	s, channel := onBroker(t)
	conn, err := amqp.Dial(t.Context(), s.AMQP)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	await := func(status doctor.Status, texts ...string) {
		t.Helper()
		require.Eventually(t, func() bool { return examine(t, s).has("queues", status, texts...) }, patience, tick)
	}
	subscriber := amqp.NewSubscriber(conn)
	_, err = subscriber.Subscribe(t.Context(), "any")
	require.NoError(t, err)
	await(doctor.OK, "one worker consumes healz.events.consumer", "--partitions")
	await(doctor.OK, "backlog: 0 messages ready")
	_, err = channel.Consume("healz.events.consumer", "", true, false, false, false, nil)
	require.NoError(t, err)
	await(doctor.Warning, "healz.events.consumer has 1 other consumer", "order", "--partitions")
	require.NoError(t, subscriber.Close())
	await(doctor.Warning, "healz.events.consumer has 1 other consumer")
	s.AMQP.Competing = true
	require.False(t, examine(t, s).has("queues", doctor.Warning, "other consumer"))
}

// What a service misses is named, and who keeps events for nobody.
func TestQueuesOfAService(t *testing.T) {
	t.Parallel()
	s, channel := onBroker(t)
	dial := func() {
		conn, err := amqp.Dial(t.Context(), s.AMQP)
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	}
	dial()
	s.AMQP.Service, s.AMQP.Types, s.AMQP.ManagementURL = "billing", []string{"Paid"}, testservers.RabbitMQManagement(t)
	dial()
	examine(t, s).requireFinding(t, "bindings", doctor.OK, "healz.events.billing gets the events that handlers are for")
	examine(t, s).requireFinding(t, "queues", doctor.Warning, "healz.events.consumer has no consumer and keeps all events", "delete it")
	require.NoError(t, channel.QueueUnbind("healz.events.billing", "Paid", "healz.events", nil))
	require.NoError(t, channel.QueueBind("healz.events.billing", "Visit", "healz.events", false, nil))
	found := examine(t, s)
	found.requireFinding(t, "bindings", doctor.Warning, "does not get the events of Paid", "worker run")
	found.requireFinding(t, "bindings", doctor.Warning, "this program does not need: Visit", "worker unbind")

	_, err := channel.Consume("healz.events.billing", "nest", true, true, false, false, nil) // without any worker
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		return examine(t, s).has("queues", doctor.Warning, "healz.events.billing has 1 other consumer: user guest at 127.0.0.1:")
	}, patience, tick)
}

func TestBrokerWithAnotherTopology(t *testing.T) {
	t.Parallel()
	s, channel := onBroker(t)
	_, err := channel.QueueDeclare("healz.events.consumer", true, false, false, false, amqp091.Table{"x-dead-letter-exchange": "elsewhere"})
	require.NoError(t, err)
	found := examine(t, s)
	found.requireFinding(t, "topology", doctor.Wrong, "x-dead-letter-exchange", "elsewhere", "delete it")

	s, _ = onBroker(t)
	declare(t, s)
	s.AMQP.QueueType = amqp.QuorumQueues
	examine(t, s).requireFinding(t, "topology", doctor.Wrong, "--queue-type")
	s.AMQP.QueueType, s.AMQP.Partitions = amqp.ClassicQueues, 2
	examine(t, s).requireFinding(t, "topology", doctor.Warning, "healz.events.partitioned")
	declare(t, s)
	examine(t, s).requireFinding(t, "topology", doctor.OK)
	s.AMQP.Partitions = 3
	examine(t, s).requireFinding(t, "topology", doctor.Wrong, "another number of partitions")
	s.AMQP.Partitions = 0
	examine(t, s).requireFinding(t, "topology", doctor.Wrong, "have partitions", "--leave-partitions")
}

func TestBrokerThatCannotBeReached(t *testing.T) {
	t.Parallel()
	s := onFile(t)
	migrated(t, s)
	good := testservers.RabbitMQ(t)
	for name, test := range map[string]struct{ url, says string }{
		"it is down":     {"amqp://guest:s3cret@127.0.0.1:1/", "check whether it runs"},
		"no such vhost":  {good + "_other", "correct user, password and vhost"},
		"wrong password": {strings.Replace(good, "guest:guest", "guest:s3cret", 1), "correct user, password and vhost"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s
			s.AMQP.URL = test.url
			found := examine(t, s)
			found.requireFinding(t, "rabbitmq", doctor.Wrong, test.says)
			found.requireFinding(t, "queues", doctor.Skipped)
			require.False(t, found.has("rabbitmq", doctor.Wrong, "s3cret"))
		})
	}
}

// The rights that are missing are named: an error if the worker needs them at all times.
func TestMissingRights(t *testing.T) {
	t.Parallel()
	survey := amqp.Survey{Parts: []amqp.Part{
		{Kind: "queue", Name: "q", Err: errors.New("403"), Optional: true, Right: "configure on queue q"},
		{Kind: "queue", Name: "other", OtherLimit: true},
		{Kind: "right to publish to exchange", Name: "x", Err: errors.New("403 access refused"), Right: "write on exchange x"},
	}}
	var r doctor.Report
	doctor.CheckTopology(survey, &r)
	require.Equal(t, doctor.Warning, r[0].Status)
	require.Contains(t, r[0].What, "lacks the right configure on queue q")
	require.Equal(t, doctor.Warning, r[1].Status)
	require.Contains(t, r[1].What, "quorum queue other has another delivery-limit")
	require.Equal(t, doctor.Wrong, r[2].Status)
	require.Contains(t, r[2].What, "lacks the right write on exchange x")
	require.Contains(t, r[2].Advice, "set_permissions")
}

// setPolicy sets a policy for the queues that match a pattern.
func setPolicy(t *testing.T, s worker.Settings, pattern, definition string) {
	t.Helper()
	broker, err := url.Parse(s.AMQP.URL)
	require.NoError(t, err)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPut,
		testservers.RabbitMQManagement(t)+"/api/policies/"+url.PathEscape(strings.TrimPrefix(broker.Path, "/"))+"/test",
		strings.NewReader(fmt.Sprintf(`{"pattern":%q,"apply-to":"queues","definition":%s}`, pattern, definition)))
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusCreated, response.StatusCode)
}

// The doctor names the policies under which the broker drops by itself, and says if it cannot see them.
func TestPolicies(t *testing.T) {
	t.Parallel()
	s, _ := onBroker(t)
	s.AMQP.ManagementURL = testservers.RabbitMQManagement(t)
	declare(t, s)
	examine(t, s).requireFinding(t, "policies", doctor.OK, "no limit")
	setPolicy(t, s, "failed$", `{"max-length":2,"overflow":"reject-publish"}`)
	require.Eventually(t, func() bool {
		return examine(t, s).has("policies", doctor.Warning, "queue healz.events.failed has max-length 2 (policy test)", "messages now: 0")
	}, patience, tick)
	s.AMQP.ManagementURL = "http://guest:s3cret@" + strings.SplitN(testservers.RabbitMQManagement(t), "@", 2)[1]
	found := examine(t, s)
	found.requireFinding(t, "policies", doctor.Unknown, "not known", "401", "rabbitmqctl list_queues")
	require.False(t, found.has("policies", doctor.OK, "s3cret"))
}

// The cause comes first: what follows from a server that does not work has no advice of its own.
func TestABrokerThatDoesNotWork(t *testing.T) {
	t.Parallel()
	server, err := testservers.StartRabbitMQ(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop()) })
	s := onPostgres(testservers.Postgres(t))
	b := migrated(t, s)
	s.AMQP.URL, s.AMQP.ManagementURL = server.URL(), server.ManagementURL()
	declare(t, s)
	tail, err := b.Tail(t.Context(), store.TailConfig{BatchSize: 1, Start: store.StartEnd})
	require.NoError(t, err)
	require.NoError(t, tail.Close())
	db := connect(t, s.DatabaseURL)
	foreign := event(time.Now().Add(-time.Hour))
	require.NoError(t, b.Append(t.Context(), foreign))
	execute(t, db, "UPDATE relay_position SET moved_at = now() - interval '1 hour'")

	var found examined
	await := func(check string, says ...string) { // transactions of other tests hold back the relay, too
		t.Helper()
		require.Eventually(t, func() bool {
			found = examine(t, s)
			return found.has(check, doctor.Wrong, says...)
		}, patience, tick)
	}
	await("relay", "1 event not published yet", "check whether a worker runs")
	found.requireFinding(t, "publishing", doctor.OK)
	_, err = server.Control("eval", "vm_memory_monitor:set_vm_memory_high_watermark(0.00001).")
	require.NoError(t, err)
	await("publishing", "RabbitMQ blocks its publishers: low on memory", "rabbitmq-diagnostics alarms")
	await("relay", "1 event not published yet", "fix publishing first")
	require.False(t, found.has("relay", doctor.Wrong, "--relay-only-own"))

	require.NoError(t, server.Kill())
	await("relay", "1 event not published yet", "fix rabbitmq first")
	require.Less(t, found.index("rabbitmq"), found.index("relay"))
	found.requireFinding(t, "rabbitmq", doctor.Wrong, "check whether it runs")
	found.requireFinding(t, "publishing", doctor.Skipped, "rabbitmq is wrong")
	s.DatabaseURL = "postgres://worker@127.0.0.1:1/events"
	found = examine(t, s)
	found.requireFinding(t, "postgres", doctor.Wrong)
	found.requireFinding(t, "rabbitmq", doctor.Wrong, "check whether it runs")
	found.requireFinding(t, "relay", doctor.Skipped)
}

// A user that may not publish to the default exchange learns that it is not known.
func TestPublishingIsUnknownWithoutTheRight(t *testing.T) {
	t.Parallel()
	var r doctor.Report
	doctor.JudgePublishing(fmt.Errorf("publish: %w", amqp.ErrRefused), &r)
	require.Equal(t, doctor.Unknown, r[0].Status)
}

// The doctor says what is in flight, of which AMQP says nothing.
func TestMessagesInFlight(t *testing.T) {
	t.Parallel()
	s, channel := onBroker(t)
	s.AMQP.ManagementURL, s.AMQP.Competing = testservers.RabbitMQManagement(t), true
	declare(t, s)
	_, err := channel.Consume("healz.events.consumer", "", false, false, false, false, nil)
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, channel.PublishWithContext(t.Context(), "", "healz.events.consumer", false, false, amqp091.Publishing{}))
	}
	require.Eventually(t, func() bool { return examine(t, s).has("queues", doctor.OK, "3 messages in flight, none ready") }, patience, tick)
}

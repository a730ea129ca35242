package amqp_test

import (
	"context"
	"encoding/json"
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

// patience is how long a test waits for what must come.
const patience = 90 * time.Second

const (
	consumerQueue = "healz.events.consumer"
	failedQueue   = "healz.events.failed"
)

func TestMain(m *testing.M) { testservers.Main(m) }

func dial(tb testing.TB, config amqp.Config) *amqp.Connection {
	tb.Helper()
	if config.Name == "" {
		config.Name = tb.Name()
	}
	c, err := amqp.Dial(tb.Context(), config)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, c.Close()) })
	return c
}

// raw is a channel of a program that knows nothing of the worker.
func raw(tb testing.TB, url string) *amqp091.Channel {
	tb.Helper()
	c, err := amqp091.Dial(url)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = c.Close() }) // a test may have killed it
	ch, err := c.Channel()
	require.NoError(tb, err)
	return ch
}

func count(tb testing.TB, ch *amqp091.Channel, queue string) int {
	tb.Helper()
	q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	require.NoError(tb, err)
	return q.Messages
}

func awaitCount(tb testing.TB, ch *amqp091.Channel, queue string, n int) {
	tb.Helper()
	require.Eventually(tb, func() bool { return count(tb, ch, queue) == n }, patience, 5*time.Millisecond)
}

// event is a message whose aggregate and version can be told from its body.
func event(aggregate uuid.UUID, version int) *message.Message {
	return bus.NewMessage(fmt.Appendf(nil,
		`{"event_id":%q,"event_type":"Tested","aggregate_id":%q,"aggregate_version":%d,"correlation_id":%q,"created_at":%q}`,
		uuid.New(), aggregate, version, uuid.New(), "2026-01-02T03:04:05.678Z"))
}

// publish publishes messages, and returns when they are confirmed.
func publish(tb testing.TB, publisher *amqp.Publisher, messages ...*message.Message) {
	tb.Helper()
	require.NoError(tb, publisher.PublishBatch(tb.Context(), messages))
}

func versionOf(tb testing.TB, m *message.Message) (aggregate uuid.UUID, version int) {
	tb.Helper()
	var e struct {
		AggregateID      uuid.UUID `json:"aggregate_id"`
		AggregateVersion int       `json:"aggregate_version"`
	}
	require.NoError(tb, json.Unmarshal(m.Payload, &e))
	return e.AggregateID, e.AggregateVersion
}

func receive(tb testing.TB, messages <-chan *message.Message) *message.Message {
	tb.Helper()
	select {
	case m, ok := <-messages:
		require.True(tb, ok, "channel of messages is closed")
		return m
	case <-time.After(patience):
		require.Fail(tb, "no message")
		return nil
	}
}

// management asks the broker's management API; path is relative to its /api.
func management(tb testing.TB, method, path string) *http.Response {
	tb.Helper()
	request, err := http.NewRequestWithContext(context.WithoutCancel(tb.Context()), method,
		testservers.RabbitMQManagement(tb)+"/api"+path, http.NoBody)
	require.NoError(tb, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = response.Body.Close() })
	return response
}

func vhostOf(tb testing.TB, amqpURL string) string {
	tb.Helper()
	u, err := url.Parse(amqpURL)
	require.NoError(tb, err)
	return strings.TrimPrefix(u.Path, "/")
}

// connectionsTo are the names of the connections to a vhost whose client name begins with prefix.
func connectionsTo(tb testing.TB, vhost, prefix string) []string {
	tb.Helper()
	response := management(tb, http.MethodGet, "/vhosts/"+url.PathEscape(vhost)+"/connections")
	require.Equal(tb, http.StatusOK, response.StatusCode)
	var connections []struct {
		Name   string `json:"name"`
		Client struct {
			Name string `json:"connection_name"`
		} `json:"client_properties"`
	}
	require.NoError(tb, json.NewDecoder(response.Body).Decode(&connections))
	var names []string
	for _, c := range connections {
		if strings.HasPrefix(c.Client.Name, prefix) {
			names = append(names, c.Name)
		}
	}
	return names
}

// kill ends connections by their client name, and waits until there were some.
func kill(tb testing.TB, amqpURL, prefix string) {
	tb.Helper()
	require.Eventually(tb, func() bool {
		killed := 0
		for _, name := range connectionsTo(tb, vhostOf(tb, amqpURL), prefix) {
			if management(tb, http.MethodDelete, "/connections/"+url.PathEscape(name)).StatusCode == http.StatusNoContent {
				killed++
			}
		}
		return killed > 0
	}, patience, 50*time.Millisecond)
}

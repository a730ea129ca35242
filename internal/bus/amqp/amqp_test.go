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
	"github.com/healz/worker/internal/testservers"
)

const patience = 20 * time.Second

func TestMain(m *testing.M) { testservers.Main(m) }

func dial(t testing.TB, config amqp.Config) *amqp.Connection {
	t.Helper()
	if config.Name == "" {
		config.Name = t.Name()
	}
	c, err := amqp.Dial(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// raw is a channel of a program that knows nothing of the worker.
func raw(t testing.TB, url string) *amqp091.Channel {
	t.Helper()
	c, err := amqp091.Dial(url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() }) // a test may have killed it
	ch, err := c.Channel()
	require.NoError(t, err)
	return ch
}

func count(t testing.TB, ch *amqp091.Channel, queue string) int {
	t.Helper()
	q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	require.NoError(t, err)
	return q.Messages
}

// event is a message whose aggregate and version can be told from its body.
func event(aggregate uuid.UUID, version int) *message.Message {
	return bus.NewMessage(fmt.Appendf(nil,
		`{"event_id":%q,"event_type":"Tested","aggregate_id":%q,"aggregate_version":%d,"correlation_id":%q,"created_at":%q}`,
		uuid.New(), aggregate, version, uuid.New(), "2026-01-02T03:04:05.678Z"))
}

func versionOf(t testing.TB, m *message.Message) (aggregate uuid.UUID, version int) {
	t.Helper()
	var e struct {
		AggregateID      uuid.UUID `json:"aggregate_id"`
		AggregateVersion int       `json:"aggregate_version"`
	}
	require.NoError(t, json.Unmarshal(m.Payload, &e))
	return e.AggregateID, e.AggregateVersion
}

func receive(t testing.TB, messages <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case m, ok := <-messages:
		require.True(t, ok, "channel of messages is closed")
		return m
	case <-time.After(patience):
		require.Fail(t, "no message")
		return nil
	}
}

// management asks the broker's management API; path is relative to its /api.
func management(t testing.TB, method, path string, body string) *http.Response {
	t.Helper()
	request, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), method,
		testservers.RabbitMQManagement(t)+"/api"+path, strings.NewReader(body))
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	t.Cleanup(func() { _ = response.Body.Close() })
	return response
}

func vhostOf(t testing.TB, amqpURL string) string {
	t.Helper()
	u, err := url.Parse(amqpURL)
	require.NoError(t, err)
	return strings.TrimPrefix(u.Path, "/")
}

// connectionsTo are the names of the connections to a vhost whose client name begins with prefix.
func connectionsTo(t testing.TB, vhost, prefix string) []string {
	t.Helper()
	response := management(t, http.MethodGet, "/vhosts/"+url.PathEscape(vhost)+"/connections", "")
	require.Equal(t, http.StatusOK, response.StatusCode)
	var connections []struct {
		Name   string `json:"name"`
		Client struct {
			Name string `json:"connection_name"`
		} `json:"client_properties"`
	}
	require.NoError(t, json.NewDecoder(response.Body).Decode(&connections))
	var names []string
	for _, c := range connections {
		if strings.HasPrefix(c.Client.Name, prefix) {
			names = append(names, c.Name)
		}
	}
	return names
}

// kill ends connections by their client name, and waits until there were some.
func kill(t testing.TB, amqpURL, prefix string) {
	t.Helper()
	require.Eventually(t, func() bool {
		killed := 0
		for _, name := range connectionsTo(t, vhostOf(t, amqpURL), prefix) {
			if management(t, http.MethodDelete, "/connections/"+url.PathEscape(name), "").StatusCode == http.StatusNoContent {
				killed++
			}
		}
		return killed > 0
	}, patience, 50*time.Millisecond)
}

package amqp_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/test/testservers"
)

func look(t *testing.T, c amqp.Config) map[string]amqp.Part {
	t.Helper()
	survey, err := amqp.Inspect(t.Context(), c)
	require.NoError(t, err)
	require.Equal(t, "RabbitMQ", survey.Product)
	require.NotEmpty(t, survey.Version)
	parts := map[string]amqp.Part{}
	for _, p := range survey.Parts {
		if p.Kind == "queue" || parts[p.Name].Kind == "" { // the exchange of a retry has the name of its queue
			parts[p.Name] = p
		}
	}
	return parts
}

// A look at an untouched broker leaves it so, and after the worker has declared all that it needs, all is as it should be.
func TestInspect(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]amqp.Config{
		"the contract": {},
		"all else": {
			Prefix: "clinic", Partitions: 3, QueueType: amqp.QuorumQueues, RetryLater: []time.Duration{time.Minute, 90 * time.Second},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config.URL = testservers.RabbitMQ(t)
			for range 2 {
				for _, p := range look(t, config) {
					require.True(t, p.Missing, p.Name)
					require.NoError(t, p.Err)
				}
			}
			prefix := dial(t, config).Topics()[0]
			prefix = strings.TrimSuffix(prefix, ".consumer")
			parts := look(t, config)
			require.Contains(t, parts, prefix+".failed")
			for _, p := range parts {
				require.False(t, p.Missing, p.Name)
				require.NoError(t, p.Err)
				require.Equal(t, p.Name == prefix+".failed", p.Failed)
			}
		})
	}
}

func TestInspectFindsWhatDiffers(t *testing.T) {
	t.Parallel()
	config := amqp.Config{URL: testservers.RabbitMQ(t)}
	ch := raw(t, config.URL)
	require.NoError(t, ch.ExchangeDeclare("healz.events", "fanout", true, false, false, false, nil))
	require.NoError(t, ch.ExchangeDeclare("healz.events.dlx", "topic", true, false, false, false, nil))
	_, err := ch.QueueDeclare(consumerQueue, true, false, false, false, nil)
	require.NoError(t, err)
	require.NoError(t, ch.ExchangeDeclare("healz.events.partitioned", "fanout", true, false, false, false, nil))
	for range 3 {
		require.NoError(t, ch.PublishWithContext(t.Context(), "", consumerQueue, false, false, amqp091.Publishing{}))
	}
	_, err = ch.Consume(consumerQueue, "", true, false, false, false, nil)
	require.NoError(t, err)

	parts := look(t, config)
	for name, difference := range map[string]string{
		"healz.events":             "inequivalent arg 'type'",
		consumerQueue:              "inequivalent arg 'x-dead-letter-exchange'",
		"healz.events.partitioned": "the workers on this broker have partitions",
	} {
		var topology *amqp.TopologyError
		require.ErrorAs(t, parts[name].Err, &topology, name)
		require.ErrorContains(t, parts[name].Err, difference)
	}
	require.Equal(t, 1, parts[consumerQueue].Consumers)
	require.NoError(t, parts["healz.events.dlx"].Err)
	require.True(t, parts[failedQueue].Missing)

	_, err = ch.QueueDeclare(failedQueue, true, false, false, false, nil)
	require.NoError(t, err)
	require.NoError(t, ch.PublishWithContext(t.Context(), "", failedQueue, false, false, amqp091.Publishing{}))
	require.Eventually(t, func() bool { return look(t, config)[failedQueue].Messages == 1 }, patience, 50*time.Millisecond)
}

func TestInspectFindsMissingRights(t *testing.T) {
	t.Parallel()
	config := amqp.Config{URL: testservers.RabbitMQ(t)}
	dial(t, config)
	for name, test := range map[string]struct{ configure, write, read, missing string }{
		"none are missing": {".*", ".*", ".*", ""},
		"configure":        {"", ".*", ".*", "exchange healz.events"},
		"publish":          {".*", ".*consumer|.*failed", ".*", "right to publish to exchange healz.events"},
		"bind":             {".*", "^healz.events(.dlx)?$", ".*", "right to bind queue healz.events.consumer"},
		"read":             {".*", ".*", "", "right to bind queue healz.events.failed"},
		"consume":          {".*", ".*", "events$|dlx$", "right to consume queue healz.events.consumer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			limited := config
			limited.URL = user(t, config.URL, test.configure, test.write, test.read)
			survey, err := amqp.Inspect(t.Context(), limited)
			require.NoError(t, err)
			var missing []string
			for _, p := range survey.Parts {
				if p.Err != nil {
					require.ErrorContains(t, p.Err, "access")
					missing = append(missing, p.Kind+" "+p.Name)
				}
			}
			if test.missing == "" {
				require.Empty(t, missing)
			} else {
				require.Contains(t, missing, test.missing)
			}
		})
	}
}

// user returns the URL with a new user, who has these rights in its vhost.
func user(t *testing.T, broker, configure, write, read string) string {
	t.Helper()
	u, err := url.Parse(broker)
	require.NoError(t, err)
	name := strings.ReplaceAll(strings.TrimPrefix(u.Path, "/")+t.Name(), "/", "_")
	manage(t, http.MethodPut, "/api/users/"+name, `{"password":"secret","tags":""}`)
	t.Cleanup(func() { manage(t, http.MethodDelete, "/api/users/"+name, "") })
	manage(t, http.MethodPut, "/api/permissions"+u.Path+"/"+name,
		fmt.Sprintf(`{"configure":%q,"write":%q,"read":%q}`, configure, write, read))
	u.User = url.UserPassword(name, "secret")
	return u.String()
}

func TestInspectThatFails(t *testing.T) {
	t.Parallel()
	good := testservers.RabbitMQ(t)
	u, err := url.Parse(good)
	require.NoError(t, err)
	u.User = url.UserPassword("nobody", "s3cret")
	for name, test := range map[string]struct {
		url  string
		want error
	}{
		"wrong password": {u.String(), amqp.ErrRefused},
		"no such vhost":  {good + "_not", amqp.ErrRefused},
		"no broker":      {"amqp://guest:s3cret@127.0.0.1:1/", amqp.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := amqp.Inspect(t.Context(), amqp.Config{URL: test.url})
			require.ErrorIs(t, err, test.want)
			require.NotContains(t, err.Error(), "s3cret")
		})
	}
	_, err = amqp.Inspect(t.Context(), amqp.Config{URL: "amqp://guest:s3cret@host:port/"})
	require.Error(t, err)
	require.NotContains(t, err.Error(), "s3cret")
}

func manage(t *testing.T, method, path, body string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	require.NoError(t, testservers.Manage(ctx, testservers.RabbitMQManagement(t), method, path, body))
}

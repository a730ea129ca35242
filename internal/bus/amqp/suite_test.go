package amqp_test

import (
	"testing"
	"time"

	wamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/test/testservers"
)

// TestWatermillSuite holds publisher and subscriber to Watermill's universal suite, with a queue for each topic and
// group.
func TestWatermillSuite(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		concurrency int
		features    tests.Features
	}{
		"one at a time": {1, tests.Features{
			ConsumerGroups: true, GuaranteedOrder: true, GuaranteedOrderWithSingleSubscriber: true, Persistent: true,
			ForceShort: true,
		}},
		"concurrent": {0, tests.Features{ConsumerGroups: true, Persistent: true, ForceShort: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testservers.RabbitMQ(t)
			group := func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
				t.Helper()
				routing := amqp.ContractConfig(url, "suite")
				routing.Exchange.GenerateName = wamqp.GenerateExchangeNameTopicName
				routing.Queue.GenerateName = func(topic string) string {
					if topic == "" {
						return ""
					}
					return topic + "." + group
				}
				routing.Publish.GenerateRoutingKey = func(topic string) string { return topic }
				config := amqp.Config{URL: url, Prefix: "suite", Concurrency: test.concurrency, DrainTimeout: time.Second}
				c, err := amqp.DialRouting(t.Context(), config, routing)
				require.NoError(t, err)
				t.Cleanup(func() { require.NoError(t, c.Close()) })
				return amqp.NewPublisher(c), amqp.NewSubscriber(c)
			}
			tests.TestPubSub(t, test.features, func(t *testing.T) (message.Publisher, message.Subscriber) {
				t.Helper()
				return group(t, "all")
			}, group)
		})
	}
}

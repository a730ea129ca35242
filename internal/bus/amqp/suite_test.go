package amqp_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/test/testservers"
)

// TestWatermillSuite holds publisher and subscriber to Watermill's universal suite, with an exchange for each topic and a
// queue for each topic and group.
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
				s := &topics{
					config: amqp.Config{URL: url, Concurrency: test.concurrency, DrainTimeout: time.Second}, group: group,
					byName: map[string]*topic{},
				}
				t.Cleanup(func() { require.NoError(t, s.disconnect()) })
				return topicPublisher{s}, topicSubscriber{s}
			}
			tests.TestPubSub(t, test.features, func(t *testing.T) (message.Publisher, message.Subscriber) {
				t.Helper()
				return group(t, "all")
			}, group)
		})
	}
}

// topics have a Connection each.
type topics struct {
	config amqp.Config
	group  string

	mu     sync.Mutex
	byName map[string]*topic
}

type topic struct {
	conn       *amqp.Connection
	publisher  *amqp.Publisher
	subscriber *amqp.Subscriber
}

func (s *topics) topic(name string) (*topic, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName[name] == nil {
		config := s.config
		config.Prefix = name
		conn, err := amqp.DialQueue(context.Background(), config, name+"."+s.group)
		if err != nil {
			return nil, err
		}
		s.byName[name] = &topic{conn, amqp.NewPublisher(conn), amqp.NewSubscriber(conn)}
	}
	return s.byName[name], nil
}

func (s *topics) each(closeOne func(*topic) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []error
	for _, t := range s.byName {
		all = append(all, closeOne(t))
	}
	return errors.Join(all...)
}

func (s *topics) disconnect() error {
	return s.each(func(t *topic) error { return t.conn.Close() })
}

type topicPublisher struct{ *topics }

func (p topicPublisher) Publish(name string, messages ...*message.Message) error {
	t, err := p.topic(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return t.publisher.PublishBatch(ctx, messages)
}

func (p topicPublisher) Close() error {
	return p.each(func(t *topic) error { return t.publisher.Close() })
}

type topicSubscriber struct{ *topics }

func (s topicSubscriber) SubscribeInitialize(name string) error {
	_, err := s.topic(name)
	return err
}

func (s topicSubscriber) Subscribe(ctx context.Context, name string) (<-chan *message.Message, error) {
	t, err := s.topic(name) //nolint:contextcheck // a Connection outlives its first subscription
	if err != nil {
		return nil, err
	}
	return t.subscriber.Subscribe(ctx, name)
}

func (s topicSubscriber) Close() error {
	return s.each(func(t *topic) error { return t.subscriber.Close() })
}

package amqp

import (
	"github.com/ThreeDotsLabs/watermill"
	wamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	amqp091 "github.com/rabbitmq/amqp091-go"
)

// DefaultPrefix is the contract's name of the exchange, of which the other names are made.
const DefaultPrefix = "healz.events"

// failedKey is the routing key of dead letters.
const failedKey = "failed"

// Names of the topology, all made of the prefix.
type names struct{ exchange, deadLetterExchange, consumerQueue, failedQueue string }

func namesOf(prefix string) names {
	return names{
		exchange: prefix, deadLetterExchange: prefix + ".dlx",
		consumerQueue: prefix + ".consumer", failedQueue: prefix + ".failed",
	}
}

// ContractConfig is the contract in watermill-amqp's terms. Whatever the topic, messages go to the one exchange and
// come from the one queue.
func ContractConfig(url, prefix string) wamqp.Config {
	n := namesOf(prefix)
	return wamqp.Config{
		Connection: wamqp.ConnectionConfig{AmqpURI: url},
		Marshaler:  Marshaler{},
		Exchange: wamqp.ExchangeConfig{
			GenerateName: wamqp.GenerateExchangeNameConstant(n.exchange), Type: amqp091.ExchangeTopic, Durable: true,
		},
		Queue: wamqp.QueueConfig{
			GenerateName: wamqp.GenerateQueueNameConstant(n.consumerQueue), Durable: true,
			Arguments: amqp091.Table{
				"x-dead-letter-exchange":    n.deadLetterExchange,
				"x-dead-letter-routing-key": failedKey,
			},
		},
		QueueBind: wamqp.QueueBindConfig{GenerateRoutingKey: func(string) string { return "#" }},
		Publish: wamqp.PublishConfig{
			GenerateRoutingKey: func(topic string) string { return topic }, Mandatory: true, ConfirmDelivery: true,
		},
		TopologyBuilder: Topology{Prefix: prefix},
	}
}

// Topology declares the contract's exchanges, queues and bindings. Declaring what is there, by whomever, changes
// nothing; if it is there with other properties the error is a *[TopologyError]. An exchange is left to be declared
// before what depends on it.
type Topology struct{ Prefix string }

var _ wamqp.TopologyBuilder = Topology{}

// BuildTopology declares everything, and the consumer's queue as config has it.
func (t Topology) BuildTopology(
	channel *amqp091.Channel, params wamqp.BuildTopologyParams, config wamqp.Config, _ watermill.LoggerAdapter,
) error {
	n := namesOf(t.Prefix)
	for _, exchange := range []string{params.ExchangeName, n.deadLetterExchange} {
		if err := t.ExchangeDeclare(channel, exchange, config); err != nil {
			return err
		}
	}
	for _, q := range []struct {
		name, key, exchange string
		arguments           amqp091.Table
	}{
		{params.QueueName, params.RoutingKey, params.ExchangeName, config.Queue.Arguments},
		{n.failedQueue, failedKey, n.deadLetterExchange, nil},
	} {
		if _, err := channel.QueueDeclare(q.name, true, false, false, false, q.arguments); err != nil {
			return &TopologyError{Kind: "queue", Name: q.name, Err: err}
		}
		if err := channel.QueueBind(q.name, q.key, q.exchange, false, nil); err != nil {
			return &TopologyError{Kind: "binding of queue", Name: q.name, Err: err}
		}
	}
	return nil
}

// ExchangeDeclare declares a durable topic exchange.
func (t Topology) ExchangeDeclare(channel *amqp091.Channel, name string, _ wamqp.Config) error {
	if err := channel.ExchangeDeclare(name, amqp091.ExchangeTopic, true, false, false, false, nil); err != nil {
		return &TopologyError{Kind: "exchange", Name: name, Err: err}
	}
	return nil
}

// build declares what a topic needs.
func build(channel *amqp091.Channel, config wamqp.Config, topic string) error {
	params := wamqp.BuildTopologyParams{
		Topic:        topic,
		QueueName:    config.Queue.GenerateName(topic),
		ExchangeName: config.Exchange.GenerateName(topic),
		RoutingKey:   config.QueueBind.GenerateRoutingKey(topic),
	}
	return config.TopologyBuilder.BuildTopology(channel, params, config, watermill.NopLogger{})
}

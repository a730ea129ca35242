package amqp

import (
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
)

// DefaultPrefix is the contract's name of the exchange, of which the other names are made.
const DefaultPrefix = "healz.events"

const (
	// failedKey is the routing key of dead letters.
	failedKey = "failed"
	// consistentHash is the exchange type that RabbitMQ's plugin rabbitmq_consistent_hash_exchange brings.
	consistentHash = "x-consistent-hash"
	// partitionWeight is the binding key of a partition: each has an equal share of the aggregates.
	partitionWeight = "1"
)

// Names of the topology, all made of the prefix.
type names struct {
	exchange, deadLetterExchange, partitionedExchange string
	consumerQueue, failedQueue                        string
}

func namesOf(prefix string) names {
	return names{
		exchange: prefix, deadLetterExchange: prefix + ".dlx", partitionedExchange: prefix + ".partitioned",
		consumerQueue: prefix + ".consumer", failedQueue: prefix + ".failed",
	}
}

// partition is the queue of a partition.
func (n names) partition(i int) string { return n.consumerQueue + "." + strconv.Itoa(i) }

// partitionOf is the number of the partition whose queue it is.
func (n names) partitionOf(queue string) (int, bool) {
	number, found := strings.CutPrefix(queue, n.consumerQueue+".")
	i, err := strconv.Atoi(number)
	return i, found && err == nil
}

// queue is the queue of a topic: that of a partition is its own topic, and every other topic's is the contract's.
func (n names) queue(topic string) string {
	if _, ok := n.partitionOf(topic); ok {
		return topic
	}
	return n.consumerQueue
}

// ContractConfig is the contract in watermill-amqp's terms. Whatever the topic, messages go to the one exchange and
// come from the one queue, except for the topics of partitions.
func ContractConfig(url, prefix string) wamqp.Config {
	n := namesOf(prefix)
	return wamqp.Config{
		Connection: wamqp.ConnectionConfig{AmqpURI: url},
		Marshaler:  Marshaler{},
		Exchange: wamqp.ExchangeConfig{
			GenerateName: wamqp.GenerateExchangeNameConstant(n.exchange), Type: amqp091.ExchangeTopic, Durable: true,
		},
		Queue: wamqp.QueueConfig{
			GenerateName: n.queue, Durable: true,
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

// FailedQueue is the name of the queue of dead letters.
func (c Config) FailedQueue() string { return namesOf(c.Prefix).failedQueue }

// Topology declares the contract's exchanges, queues and bindings, and those that the other fields add to them.
// Declaring what is there, by whomever, changes nothing; if it is there with other properties the error is a
// *[TopologyError]. An exchange is left to be declared before what depends on it.
type Topology struct {
	Prefix string
	// Partitions, LeavePartitions, QueueType and RetryLater are those of [Config].
	Partitions      int
	LeavePartitions bool
	QueueType       string
	RetryLater      []time.Duration
}

var _ wamqp.TopologyBuilder = Topology{}

// BuildTopology declares everything, and the consumer's queue as config has it; for the topic of a partition it declares
// just that.
func (t Topology) BuildTopology(
	channel *amqp091.Channel, params wamqp.BuildTopologyParams, config wamqp.Config, _ watermill.LoggerAdapter,
) error {
	d, n := declaration{channel}, namesOf(t.Prefix)
	if i, ok := n.partitionOf(params.QueueName); ok {
		return t.partition(d, n, i, config)
	}
	for _, exchange := range []string{params.ExchangeName, n.deadLetterExchange} {
		if err := t.ExchangeDeclare(channel, exchange, config); err != nil {
			return err
		}
	}
	if err := d.queue(n.failedQueue, t.arguments(nil)); err != nil {
		return err
	}
	if err := d.bind(n.failedQueue, failedKey, n.deadLetterExchange); err != nil {
		return err
	}
	if err := d.queue(params.QueueName, t.arguments(config.Queue.Arguments)); err != nil {
		return err
	}
	for _, wait := range t.RetryLater {
		if err := t.retry(d, wait); err != nil {
			return err
		}
	}
	if t.Partitions > 0 {
		return t.partitioned(d, n, params, config)
	}
	if err := d.bind(params.QueueName, params.RoutingKey, params.ExchangeName); err != nil {
		return err
	}
	// No error if there is none; one that is in use is of workers that have partitions.
	if err := channel.ExchangeDelete(n.partitionedExchange, !t.LeavePartitions, false); err != nil {
		return &TopologyError{Kind: "no exchange", Name: n.partitionedExchange, Err: err}
	}
	return nil
}

// partitioned declares the partitions and leads the events to them instead of the contract's queue. At no time are they
// led nowhere: for a moment they go both ways, which the inbox makes good.
func (t Topology) partitioned(d declaration, n names, params wamqp.BuildTopologyParams, config wamqp.Config) error {
	err := d.channel.ExchangeDeclare(n.partitionedExchange, consistentHash, true, false, false, false, t.partitionedArguments(n))
	if err != nil {
		return &TopologyError{Kind: "exchange", Name: n.partitionedExchange, Err: err}
	}
	for i := range t.Partitions {
		if err := t.partition(d, n, i, config); err != nil {
			return err
		}
	}
	if err := d.channel.ExchangeBind(n.partitionedExchange, "#", params.ExchangeName, false, nil); err != nil {
		return &TopologyError{Kind: "binding of exchange", Name: n.partitionedExchange, Err: err}
	}
	if err := d.channel.QueueUnbind(params.QueueName, params.RoutingKey, params.ExchangeName, nil); err != nil {
		return &TopologyError{Kind: "no binding of queue", Name: params.QueueName, Err: err}
	}
	return nil
}

// partition declares the queue of one partition. One that is left over is not bound.
func (t Topology) partition(d declaration, n names, i int, config wamqp.Config) error {
	if err := d.queue(n.partition(i), t.partitionArguments(config.Queue.Arguments)); err != nil || i >= t.Partitions {
		return err
	}
	return d.bind(n.partition(i), partitionWeight, n.partitionedExchange)
}

// partitionedArguments are those of the exchange that spreads the events. The alternate exchange does not exist: it
// carries the number of partitions, so that the broker refuses another.
func (t Topology) partitionedArguments(n names) amqp091.Table {
	return amqp091.Table{
		"hash-header":        bus.AggregateIDKey,
		"alternate-exchange": n.partitionedExchange + "." + strconv.Itoa(t.Partitions),
	}
}

// partitionArguments are those of the queue of a partition, besides its own.
func (t Topology) partitionArguments(own amqp091.Table) amqp091.Table {
	all := t.arguments(own)
	all[amqp091.SingleActiveConsumerArg] = true
	return all
}

// arguments are those of a queue of the type that is set, besides its own. Whether a queue is a classic one is never
// said: the contract does not.
//
// What returns to a quorum queue without a limit goes to its end, and with the broker's own limit is dead-lettered when
// it has returned often, as it does each time that a worker stops.
func (t Topology) arguments(own amqp091.Table) amqp091.Table {
	all := amqp091.Table{}
	maps.Copy(all, own)
	if t.QueueType == QuorumQueues {
		all[amqp091.QueueTypeArg] = amqp091.QueueTypeQuorum
		all["x-delivery-limit"] = noDeliveryLimit
	}
	return all
}

// noDeliveryLimit is a limit that is never reached.
const noDeliveryLimit = 1_000_000_000

// ExchangeDeclare declares a durable topic exchange.
func (t Topology) ExchangeDeclare(channel *amqp091.Channel, name string, _ wamqp.Config) error {
	if err := channel.ExchangeDeclare(name, amqp091.ExchangeTopic, true, false, false, false, nil); err != nil {
		return &TopologyError{Kind: "exchange", Name: name, Err: err}
	}
	return nil
}

// declaration declares on a channel.
type declaration struct{ channel *amqp091.Channel }

func (d declaration) queue(name string, arguments amqp091.Table) error {
	if _, err := d.channel.QueueDeclare(name, true, false, false, false, arguments); err != nil {
		return &TopologyError{Kind: "queue", Name: name, Err: err}
	}
	return nil
}

func (d declaration) bind(queue, key, exchange string) error {
	if err := d.channel.QueueBind(queue, key, exchange, false, nil); err != nil {
		return &TopologyError{Kind: "binding of queue", Name: queue, Err: err}
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

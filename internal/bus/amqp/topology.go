package amqp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
)

// DefaultPrefix is the contract's name of the exchange, from which the other names are made.
const DefaultPrefix = "healz.events"

const (
	// contractKey is the routing key of dead letters of workers without a service name; with one, serviceKey goes before it.
	contractKey = "failed"
	serviceKey  = "failed."
	// everyKey is the binding key that matches every event.
	everyKey = "#"
	// consistentHash is the exchange type that RabbitMQ's plugin rabbitmq_consistent_hash_exchange brings.
	consistentHash = "x-consistent-hash"
	// partitionWeight is the binding key of a partition: each has an equal share of the aggregates.
	partitionWeight = "1"
	// noDeliveryLimit is a limit that is never reached.
	noDeliveryLimit  = 1_000_000_000
	deliveryLimitKey = "x-delivery-limit"
)

// names of the topology, all made of the prefix and the name of the service. The exchanges for events and for dead letters are
// those of all services.
type names struct {
	exchange, deadLetterExchange, partitionedExchange string
	consumerQueue, failedQueue                        string
	failedKey                                         string // of dead letters
	retryPrefix                                       string
}

func namesOf(prefix, service string) names {
	own, consumer, key := prefix, prefix+".consumer", contractKey
	if service != "" {
		own = prefix + "." + service
		consumer, key = own, serviceKey+service
	}
	return names{
		exchange: prefix, deadLetterExchange: prefix + ".dlx", partitionedExchange: own + ".partitioned",
		consumerQueue: consumer, failedQueue: own + ".failed", failedKey: key, retryPrefix: own + ".retry.",
	}
}

// CheckService says what is wrong with the name of a service. It must not be that of a part of the contract.
func CheckService(name string) error {
	if name != "" && !serviceName.MatchString(name) {
		return fmt.Errorf("%q is not 1 to 40 of a-z, 0-9, - and _ that begin with a letter", name)
	}
	if slices.Contains([]string{"consumer", "dlx", "failed", "partitioned", "retry"}, name) {
		return fmt.Errorf("%q is the name of a queue or an exchange", name)
	}
	return nil
}

var serviceName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,39}$`)

// contract are the names without a service.
func (n names) contract() names { return namesOf(n.exchange, "") }

// partition is the queue of a partition.
func (n names) partition(i int) string { return n.consumerQueue + "." + strconv.Itoa(i) }

// partitionOf is the number of the partition that a queue belongs to.
func (n names) partitionOf(queue string) (int, bool) {
	number, found := strings.CutPrefix(queue, n.consumerQueue+".")
	i, err := strconv.Atoi(number)
	return i, found && err == nil
}

// consumes tells whether workers with these names consume a queue.
func (n names) consumes(queue string) bool {
	_, isPartition := n.partitionOf(queue)
	return isPartition || queue == n.consumerQueue
}

// retryQueue is the name of the queue, and of the exchange, in which messages wait for so long.
func (n names) retryQueue(wait time.Duration) string {
	text := wait.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return n.retryPrefix + text
}

// topology is what the broker is to have: the contract's exchanges, queues and bindings, and what the settings add.
type topology struct {
	names
	keys            []string // by which events are routed to the consumer's queue
	partitions      int
	leavePartitions bool
	quorum          bool
	retryLater      []time.Duration
}

// wants tells whether the workers' own queue gets messages with a routing key.
func (t topology) wants(key string) bool {
	return slices.Contains(t.keys, key) || slices.Contains(t.keys, everyKey)
}

func (c Config) topology() topology {
	keys := []string{everyKey}
	if c.Service != "" {
		keys = make([]string, len(c.Types))
		for i, eventType := range c.Types {
			keys[i] = cutKey(eventType)
		}
	}
	return topology{
		names: namesOf(c.Prefix, c.Service), keys: keys, partitions: c.Partitions, leavePartitions: c.LeavePartitions,
		quorum: c.QueueType == QuorumQueues, retryLater: c.RetryLater,
	}
}

// part is an exchange or a queue.
type part struct {
	kind, name   string
	exchangeType string // "" of a queue
	arguments    amqp091.Table
}

// declare changes nothing if the part exists. If it exists with other properties, the error is a *[TopologyError].
func (p part) declare(channel *amqp091.Channel) error {
	var err error
	if p.exchangeType == "" {
		_, err = channel.QueueDeclare(p.name, true, false, false, false, p.arguments)
	} else {
		err = channel.ExchangeDeclare(p.name, p.exchangeType, true, false, false, false, p.arguments)
	}
	return topologyError(p.kind, p.name, err)
}

// currentLimit is the value in a refusal of another delivery limit; "current is none" if there is none.
var currentLimit = regexp.MustCompile(`current is the value '(-?\d+)'`)

// limitAttempts is how often a queue is declared with another limit: a refusal is cut off at 255 bytes, and the one of a queue
// without a limit is shorter.
const limitAttempts = 2

// withLimitOf is a queue with the delivery limit that it exists with, by the broker's refusal. So whatever else differs is
// refused.
func (p part) withLimitOf(refusal error) part {
	p.arguments = maps.Clone(p.arguments)
	delete(p.arguments, deliveryLimitKey)
	if value := currentLimit.FindStringSubmatch(refusal.Error()); value != nil {
		if limit, err := strconv.ParseInt(value[1], 10, 64); err == nil {
			p.arguments[deliveryLimitKey] = limit
		}
	}
	return p
}

// isOtherLimit tells whether a queue is refused as it exists with another delivery limit, or none.
func isOtherLimit(err error) bool {
	answer, ok := errors.AsType[*amqp091.Error](err)
	return ok && answer.Code == amqp091.PreconditionFailed && strings.Contains(answer.Reason, "'"+deliveryLimitKey+"'")
}

// exists fails if the part does not exist. It needs no right.
func (p part) exists(channel *amqp091.Channel) error {
	if p.exchangeType == "" {
		_, err := channel.QueueDeclarePassive(p.name, true, false, false, false, nil)
		return err
	}
	return channel.ExchangeDeclarePassive(p.name, p.exchangeType, true, false, false, false, nil)
}

// declarer declares on one channel after another: the broker closes a channel with each refusal.
type declarer struct {
	open    func() (*amqp091.Channel, error)
	channel *amqp091.Channel
	// unverified are the refusals for lack of a right of what may be there already, and otherLimits those of queues with
	// another delivery limit.
	unverified, otherLimits []error
}

func (d *declarer) warn(ctx context.Context, logger *slog.Logger) {
	for _, refusal := range d.unverified {
		logger.WarnContext(ctx, "the user lacks a right: what exists is used, but not restored if it is deleted, and bindings "+
			"cannot be verified", "error", refusal)
	}
	for _, refusal := range d.otherLimits {
		logger.WarnContext(ctx, "a quorum queue has another delivery limit than the worker's: the broker may drop or dead-letter "+
			"what returns to it often, as when workers stop", "error", refusal, "advice", AdviceOnLimits)
	}
}

// declare declares a part. A queue that another program has declared may have another delivery limit.
func (d *declarer) declare(p part) error {
	err := d.do(p.declare, p.exists)
	if !isOtherLimit(err) {
		return err
	}
	d.otherLimits = append(d.otherLimits, err)
	for range limitAttempts {
		p = p.withLimitOf(err)
		if d.channel, err = d.open(); err != nil {
			return err
		}
		if err = d.do(p.declare, p.exists); !isOtherLimit(err) {
			break
		}
	}
	return err
}

// do does something that the broker may refuse for lack of a right. Then it suffices that a check passes; nil is none.
func (d *declarer) do(do, check func(*amqp091.Channel) error) error {
	refusal := do(d.channel)
	if !isRefusedRight(refusal) {
		return refusal
	}
	d.unverified = append(d.unverified, refusal)
	var err error
	if d.channel, err = d.open(); err != nil || check == nil {
		return err
	}
	if check(d.channel) != nil {
		return refusal
	}
	if d.channel.IsClosed() { // what is not to be there is not
		d.channel, err = d.open()
	}
	return err
}

// parts are in the order in which they are declared.
func (t topology) parts() []part {
	exchange := func(name, exchangeType string, arguments amqp091.Table) part {
		return part{"exchange", name, exchangeType, arguments}
	}
	all := []part{
		exchange(t.exchange, amqp091.ExchangeTopic, nil), exchange(t.deadLetterExchange, amqp091.ExchangeTopic, nil),
		t.queue(t.failedQueue, nil), t.queue(t.consumerQueue, t.deadLettering()),
	}
	for _, wait := range t.retryLater {
		name := t.retryQueue(wait)
		arguments := amqp091.Table{amqp091.QueueMessageTTLArg: wait.Milliseconds(), "x-dead-letter-exchange": ""}
		if t.quorum { // the way back is confirmed, too
			arguments["x-dead-letter-strategy"] = "at-least-once"
			arguments[amqp091.QueueOverflowArg] = amqp091.QueueOverflowRejectPublish
		}
		// Messages are published there with the name of their queue as the routing key, by which the default exchange
		// leads them back.
		all = append(all, exchange(name, amqp091.ExchangeFanout, nil), t.queue(name, arguments))
	}
	if t.partitions > 0 {
		all = append(all, exchange(t.partitionedExchange, consistentHash, amqp091.Table{
			"hash-header": bus.AggregateIDKey,
			// It does not exist: its name carries the number of partitions, so that the broker refuses another number.
			"alternate-exchange": t.partitionedExchange + "." + strconv.Itoa(t.partitions),
		}))
	}
	for i := range t.partitions {
		all = append(all, t.partitionQueue(i))
	}
	return all
}

// queue is a queue of the type that is set. Whether a queue is a classic one is not said: the contract does not.
//
// A message that is requeued to a quorum queue without a limit goes to its end, and with the broker's own limit it is
// dead-lettered when it was requeued often, as it is each time that a worker stops.
func (t topology) queue(name string, arguments amqp091.Table) part {
	all := amqp091.Table{}
	maps.Copy(all, arguments)
	if t.quorum {
		all[amqp091.QueueTypeArg] = amqp091.QueueTypeQuorum
		all[deliveryLimitKey] = noDeliveryLimit
	}
	return part{kind: "queue", name: name, arguments: all}
}

func (t topology) partitionQueue(i int) part {
	arguments := t.deadLettering()
	arguments[amqp091.SingleActiveConsumerArg] = true
	return t.queue(t.partition(i), arguments)
}

func (t topology) deadLettering() amqp091.Table {
	return amqp091.Table{"x-dead-letter-exchange": t.deadLetterExchange, "x-dead-letter-routing-key": t.failedKey}
}

// declare declares what a queue needs: all, or of a partition just its queue and, unless it is left over, its binding.
// A user who may not declare, bind or delete can use what there is; whether it is bound cannot be asked.
func (t topology) declare(d *declarer, queue string) error {
	if i, ok := t.partitionOf(queue); ok {
		p := t.partitionQueue(i)
		if err := d.declare(p); err != nil || i >= t.partitions {
			return err
		}
		return t.bindPartition(d, i)
	}
	for _, p := range t.parts() {
		if err := d.declare(p); err != nil {
			return err
		}
	}
	if err := bind(d, t.failedQueue, t.failedKey, t.deadLetterExchange); err != nil {
		return err
	}
	for _, wait := range t.retryLater {
		if err := bind(d, t.retryQueue(wait), "", t.retryQueue(wait)); err != nil {
			return err
		}
	}
	if t.partitions > 0 {
		return t.bindPartitions(d)
	}
	for _, key := range t.keys {
		if err := bind(d, t.consumerQueue, key, t.exchange); err != nil {
			return err
		}
	}
	return d.do(func(channel *amqp091.Channel) error {
		// It is no error if there is none. One that is bound to belongs to workers that have partitions.
		err := channel.ExchangeDelete(t.partitionedExchange, !t.leavePartitions, false)
		return topologyError("no exchange", t.partitionedExchange, err)
	}, func(channel *amqp091.Channel) error {
		exchange := part{name: t.partitionedExchange, exchangeType: consistentHash}
		if err := exchange.exists(channel); !isNotFound(err) {
			return errors.Join(errExists, err)
		}
		return nil
	})
}

var errExists = errors.New("it exists")

// bindPartitions leads the events to the partitions instead of the consumer's queue. For a moment they go both ways
// rather than nowhere; the inbox recognizes the second copy.
func (t topology) bindPartitions(d *declarer) error {
	for i := range t.partitions {
		if err := t.bindPartition(d, i); err != nil {
			return err
		}
	}
	for _, key := range t.keys {
		if err := d.do(func(channel *amqp091.Channel) error {
			err := channel.ExchangeBind(t.partitionedExchange, key, t.exchange, false, nil)
			return topologyError("binding of exchange", t.partitionedExchange, err)
		}, nil); err != nil {
			return err
		}
	}
	for _, key := range append([]string{everyKey}, t.keys...) { // a version before may have had all events
		if err := d.do(func(channel *amqp091.Channel) error {
			return topologyError("no binding of queue", t.consumerQueue, channel.QueueUnbind(t.consumerQueue, key, t.exchange, nil))
		}, nil); err != nil {
			return err
		}
	}
	return nil
}

func (t topology) bindPartition(d *declarer, i int) error {
	return bind(d, t.partition(i), partitionWeight, t.partitionedExchange)
}

func bind(d *declarer, queue, key, exchange string) error {
	return d.do(func(channel *amqp091.Channel) error {
		return topologyError("binding of queue", queue, channel.QueueBind(queue, key, exchange, false, nil))
	}, nil)
}

// topologyError wraps an error, if it is one.
func topologyError(kind, name string, err error) error {
	if err == nil {
		return nil
	}
	return &TopologyError{Kind: kind, Name: name, Err: err}
}

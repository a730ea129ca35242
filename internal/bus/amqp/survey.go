package amqp

import (
	"context"
	"errors"
	"fmt"
	"slices"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

// Survey is what [Inspect] finds on a broker.
type Survey struct {
	// Product and Version are what the broker calls itself.
	Product, Version string
	Parts            []Part
	// Alone tells that a worker has the lock by which it consumes the contract's queue alone.
	Alone bool
}

// Part is an exchange or a queue that the settings ask for, or one that must not exist with these settings.
type Part struct {
	Kind, Name string
	// Missing tells that it does not exist. The worker declares it when it starts.
	Missing bool
	// Err is what the worker would fail with: other properties, or missing rights. It is a *[TopologyError].
	Err error
	// Optional tells that Err is the lack of a right that the worker needs only to declare or to restore what exists.
	Optional bool
	// Right is the one that is missing, in RabbitMQ's words.
	Right string
	// OtherLimit tells that another program has declared the quorum queue with another delivery limit, or none.
	OtherLimit bool
	// Messages and Consumers are those of a queue.
	Messages, Consumers int
	// Consumed marks a queue that workers consume, and Failed the one of dead letters. Abandoned is the contract's queue that
	// nobody consumes, where the worker has one of its service.
	Consumed, Failed, Abandoned bool
}

// Inspect makes one connection and compares what the broker has with what the settings ask for, including the rights to
// declare, to bind, to publish and to consume. It changes nothing. The bindings cannot be checked: AMQP tells about them
// only by a change. Errors of the connection are as of [Dial].
func Inspect(ctx context.Context, c Config) (Survey, error) {
	conn, err := newConnection(ctx, c)
	if err != nil {
		return Survey{}, err
	}
	defer conn.end()
	conn.declares = false
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	s, err := conn.connect(ctx, "doctor", nil)
	if err != nil {
		return Survey{}, err
	}
	defer s.close()
	defer context.AfterFunc(ctx, s.kill)()
	property := func(name string) string {
		text, _ := s.conn.Properties[name].(string)
		return text
	}
	survey := Survey{Product: property("product"), Version: property("version")}
	if survey.Parts, err = (inspection{s, conn.topology}).parts(); err != nil {
		return survey, fmt.Errorf("inspect RabbitMQ: %w", classify(err))
	}
	err = inspection{s, conn.topology}.do(func(c *amqp091.Channel) error {
		_, err := c.QueueDeclarePassive(conn.consumerQueue+lockSuffix, false, false, true, false, nil)
		return exclusive("", err)
	})
	survey.Alone = errors.Is(err, errTaken)
	return survey, nil
}

type inspection struct {
	session *session
	topology
}

// parts checks all that is wanted, the rights, and what is not wanted. An error is one of the connection.
func (i inspection) parts() ([]Part, error) {
	var parts []Part
	exists := make(map[string]bool)
	for _, wanted := range i.topology.parts() {
		p, err := i.part(wanted)
		if err != nil {
			return parts, err
		}
		exists[wanted.name] = !p.Missing
		parts = append(parts, p)
	}
	for _, right := range i.rights() {
		if !exists[right.name] || !exists[right.other] {
			continue
		}
		if err := i.do(right.ask); isAnswer(err) {
			parts = append(parts, Part{
				Kind: right.kind, Name: right.name, Err: topologyError(right.kind, right.name, err),
				Optional: right.optional, Right: right.right,
			})
		} else if err != nil {
			return parts, err
		}
	}
	if contract := i.contract().consumerQueue; contract != i.consumerQueue {
		var q amqp091.Queue
		err := i.do(func(c *amqp091.Channel) (err error) {
			q, err = c.QueueDeclarePassive(contract, true, false, false, false, nil)
			return err
		})
		if err == nil && q.Consumers == 0 {
			parts = append(parts, Part{Kind: "queue", Name: contract, Messages: q.Messages, Abandoned: true})
		} else if err != nil && !isAnswer(err) {
			return parts, err
		}
	}
	if i.partitions > 0 {
		return parts, nil
	}
	err := i.do(func(c *amqp091.Channel) error {
		return c.ExchangeDeclarePassive(i.partitionedExchange, consistentHash, true, false, false, false, nil)
	})
	if err == nil {
		err = errors.New("it exists: the workers on this broker have partitions")
		err = topologyError("no exchange", i.partitionedExchange, err)
		return append(parts, Part{Kind: "no exchange", Name: i.partitionedExchange, Err: err}), nil
	}
	if isAnswer(err) {
		err = nil
	}
	return parts, err
}

// part checks whether a part exists, and only then declares it: the broker refuses that if its properties are others or
// the right is missing, and else does nothing.
func (i inspection) part(wanted part) (Part, error) {
	_, isPartition := i.partitionOf(wanted.name)
	p := Part{
		Kind: wanted.kind, Name: wanted.name, Failed: wanted.name == i.failedQueue,
		Consumed: isPartition || wanted.name == i.consumerQueue,
	}
	err := i.do(func(c *amqp091.Channel) error {
		if wanted.exchangeType != "" {
			return c.ExchangeDeclarePassive(wanted.name, wanted.exchangeType, true, false, false, false, nil)
		}
		q, err := c.QueueDeclarePassive(wanted.name, true, false, false, false, nil)
		p.Messages, p.Consumers = q.Messages, q.Consumers
		return err
	})
	switch {
	case err == nil:
		if err = i.do(wanted.declare); isRefusedRight(err) {
			p.Optional, p.Right = true, "configure on "+wanted.kind+" "+wanted.name
		} else if p.OtherLimit = isOtherLimit(err); p.OtherLimit {
			for n := 0; n < limitAttempts && isOtherLimit(err); n++ {
				err = i.do(wanted.withLimitOf(err).declare)
			}
		}
	case isNotFound(err):
		p.Missing = true
		return p, nil
	case isAnswer(err):
		err = topologyError(wanted.kind, wanted.name, err)
	}
	if isAnswer(err) {
		p.Err, err = err, nil
	}
	return p, err
}

// right is a right that the worker needs on a part, for which another part must exist.
type right struct {
	kind, name, other string
	right             string // in RabbitMQ's words
	optional          bool
	// ask asks for something that needs the right and changes nothing: to remove a binding that does not exist.
	ask func(*amqp091.Channel) error
}

// unusedKey is the key of a binding that does not exist.
const unusedKey = "worker.doctor.checks.rights"

func (i inspection) rights() []right {
	publish := func(exchange, other string) right {
		return right{"right to publish to exchange", exchange, other, "write on exchange " + exchange, false, func(c *amqp091.Channel) error {
			return c.ExchangeUnbind(exchange, unusedKey, other, false, nil)
		}}
	}
	bind := func(queue, exchange string) right {
		return right{
			"right to bind queue", queue, exchange, "write on queue " + queue + " or read on exchange " + exchange, true,
			func(c *amqp091.Channel) error { return c.QueueUnbind(queue, unusedKey, exchange, nil) },
		}
	}
	consume := func(queue string) right {
		return right{"right to consume queue", queue, queue, "read on queue " + queue, false, func(c *amqp091.Channel) error {
			// The broker checks the right before the argument, which is no number.
			_, err := c.Consume(queue, consumerTag, false, false, false, false, amqp091.Table{"x-priority": "none"})
			if !isRefusedRight(err) && isAnswer(err) {
				return nil
			}
			return err
		}}
	}
	return []right{
		publish(i.exchange, i.deadLetterExchange), publish(i.deadLetterExchange, i.exchange),
		bind(i.consumerQueue, i.exchange), bind(i.failedQueue, i.deadLetterExchange),
		consume(i.consumerQueue), consume(i.failedQueue),
	}
}

// do does something on a channel of its own: the broker closes a channel with each refusal.
func (i inspection) do(do func(*amqp091.Channel) error) error {
	defer i.session.bound()()
	channel, err := i.session.conn.Channel()
	if err != nil {
		return err
	}
	if err := do(channel); err != nil {
		return err
	}
	if channel.IsClosed() {
		return nil
	}
	return channel.Close()
}

// isAnswer tells whether an error is the broker's refusal of a request, rather than the loss of the connection.
func isAnswer(err error) bool {
	answer, ok := errors.AsType[*amqp091.Error](err)
	return ok && slices.Contains([]int{
		amqp091.AccessRefused, amqp091.NotFound, amqp091.PreconditionFailed, amqp091.ResourceLocked,
	}, answer.Code)
}

func isNotFound(err error) bool {
	answer, ok := errors.AsType[*amqp091.Error](err)
	return ok && answer.Code == amqp091.NotFound
}

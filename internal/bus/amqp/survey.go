package amqp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

// Survey is what a look at a broker finds. The look declares, binds and takes nothing.
type Survey struct {
	// Product and Version are what the broker calls itself.
	Product, Version string
	Parts            []Part
}

// Part is an exchange or a queue that the settings ask for, or one that they have no place for.
type Part struct {
	Kind, Name string
	// Missing tells that it is not there. The worker makes it when it starts.
	Missing bool
	// Err is what the worker would fail of: properties that are not the contract's, or rights that are missing. It is a
	// *[TopologyError].
	Err error
	// Messages and Consumers are those of a queue, so far as the broker tells.
	Messages, Consumers int
	// Consumed tells that it is a queue that workers consume, and Failed that it is the one of dead letters.
	Consumed, Failed bool
}

// Look makes one connection and compares what the broker has with what the settings ask for, including the rights to
// declare, to bind and to publish. That of consuming it cannot see, nor whether the bindings are there: AMQP tells of
// neither but by changing something. Errors of the connection are as of [Dial].
func Look(ctx context.Context, c Config) (Survey, error) {
	c = c.withDefaults()
	uri, err := amqp091.ParseURI(c.URL)
	if err != nil {
		return Survey{}, errURL
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	s := &session{responseTimeout: c.ResponseTimeout}
	defer context.AfterFunc(ctx, s.kill)()
	properties := amqp091.NewConnectionProperties()
	properties.SetClientConnectionName(c.Name + " doctor")
	if err := s.dial(ctx, c.URL, amqp091.Config{Heartbeat: c.Heartbeat, Properties: properties}); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w: %w", ErrUnavailable, context.Cause(ctx), err)
		} else {
			err = classify(err)
		}
		return Survey{}, fmt.Errorf("connect to RabbitMQ at %s, vhost %q: %w",
			net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)), uri.Vhost, err)
	}
	defer s.close()
	v := surveyor{session: s, names: namesOf(c.Prefix), topology: Topology{
		Prefix: c.Prefix, Partitions: c.Partitions, LeavePartitions: c.LeavePartitions, QueueType: c.QueueType, RetryLater: c.RetryLater,
	}}
	survey := Survey{Product: s.property("product"), Version: s.property("version")}
	if survey.Parts, err = v.parts(ContractConfig(c.URL, c.Prefix).Queue.Arguments); err != nil {
		return survey, fmt.Errorf("look at RabbitMQ: %w", classify(err))
	}
	return survey, nil
}

func (s *session) property(name string) string {
	text, _ := s.conn.Properties[name].(string)
	return text
}

// surveyor looks at one thing after the other, each on a channel of its own: the broker closes it with each refusal.
type surveyor struct {
	session  *session
	names    names
	topology Topology
}

// wanted is what the settings ask for: what [Topology] declares.
type wanted struct {
	kind, name, exchangeType string
	arguments                amqp091.Table
}

func (v surveyor) wanted(own amqp091.Table) []wanted {
	t, n := v.topology, v.names
	topic := func(name string) wanted { return wanted{"exchange", name, amqp091.ExchangeTopic, nil} }
	queue := func(name string, arguments amqp091.Table) wanted { return wanted{"queue", name, "", arguments} }
	all := []wanted{
		topic(n.exchange), topic(n.deadLetterExchange),
		queue(n.failedQueue, t.arguments(nil)), queue(n.consumerQueue, t.arguments(own)),
	}
	for _, wait := range t.RetryLater {
		name := n.retryQueue(wait)
		all = append(all, wanted{"exchange", name, amqp091.ExchangeFanout, nil}, queue(name, t.retryArguments(wait)))
	}
	if t.Partitions > 0 {
		all = append(all, wanted{"exchange", n.partitionedExchange, consistentHash, t.partitionedArguments(n)})
	}
	for i := range t.Partitions {
		all = append(all, queue(n.partition(i), t.partitionArguments(own)))
	}
	return all
}

// parts looks at all that is wanted, at the rights, and at what is not wanted. An error is one of the connection.
func (v surveyor) parts(own amqp091.Table) ([]Part, error) {
	var parts []Part
	there := make(map[string]bool)
	for _, w := range v.wanted(own) {
		p, err := v.part(w)
		if err != nil {
			return parts, err
		}
		there[w.name] = !p.Missing
		parts = append(parts, p)
	}
	for _, right := range v.rights() {
		if !there[right.name] || !there[right.other] {
			continue
		}
		if err := v.on(right.ask); err != nil {
			if !isAnswer(err) {
				return parts, err
			}
			refusal := &TopologyError{Kind: right.kind, Name: right.name, Err: err}
			parts = append(parts, Part{Kind: right.kind, Name: right.name, Err: refusal})
		}
	}
	if v.topology.Partitions == 0 {
		w := wanted{kind: "exchange", name: v.names.partitionedExchange, exchangeType: consistentHash}
		err := v.on(func(c *amqp091.Channel) error { return v.exists(c, w, &Part{}) })
		switch {
		case err == nil:
			parts = append(parts, Part{Kind: "no exchange", Name: w.name, Err: &TopologyError{
				Kind: "no exchange", Name: w.name, Err: errors.New("it is there: the workers on this broker have partitions"),
			}})
		case !isAnswer(err):
			return parts, err
		}
	}
	return parts, nil
}

// part looks whether a thing is there, and then declares it as it should be: the broker refuses that if it is another, or
// if the right is missing, and else does nothing.
func (v surveyor) part(w wanted) (Part, error) {
	p := Part{Kind: w.kind, Name: w.name, Failed: w.name == v.names.failedQueue}
	_, partition := v.names.partitionOf(w.name)
	p.Consumed = partition || w.name == v.names.consumerQueue
	err := v.on(func(c *amqp091.Channel) error { return v.exists(c, w, &p) })
	if err == nil {
		err = v.on(func(c *amqp091.Channel) error {
			if w.kind == "exchange" {
				return c.ExchangeDeclare(w.name, w.exchangeType, true, false, false, false, w.arguments)
			}
			_, err := c.QueueDeclare(w.name, true, false, false, false, w.arguments)
			return err
		})
	}
	answer, refused := errors.AsType[*amqp091.Error](err)
	switch {
	case err == nil:
	case refused && answer.Code == amqp091.NotFound:
		p.Missing = true
	case isAnswer(err):
		p.Err = &TopologyError{Kind: w.kind, Name: w.name, Err: err}
	default:
		return p, err
	}
	return p, nil
}

// exists is an error unless the thing is there.
func (v surveyor) exists(c *amqp091.Channel, w wanted, p *Part) error {
	if w.kind == "exchange" {
		return c.ExchangeDeclarePassive(w.name, w.exchangeType, true, false, false, false, nil)
	}
	q, err := c.QueueDeclarePassive(w.name, true, false, false, false, nil)
	p.Messages, p.Consumers = q.Messages, q.Consumers
	return err
}

// right is one that the worker needs on a thing, together with another.
type right struct {
	kind, name, other string
	// ask asks for something that changes nothing: to remove a binding that nobody has.
	ask func(*amqp091.Channel) error
}

// nobodysKey is the key of a binding that nobody has.
const nobodysKey = "worker.doctor.looks.whether.it.may"

func (v surveyor) rights() []right {
	n := v.names
	return []right{
		{"right to publish to exchange", n.exchange, n.deadLetterExchange, func(c *amqp091.Channel) error {
			return c.ExchangeUnbind(n.exchange, nobodysKey, n.deadLetterExchange, false, nil)
		}},
		{"right to publish to exchange", n.deadLetterExchange, n.exchange, func(c *amqp091.Channel) error {
			return c.ExchangeUnbind(n.deadLetterExchange, nobodysKey, n.exchange, false, nil)
		}},
		{"right to bind queue", n.consumerQueue, n.exchange, func(c *amqp091.Channel) error {
			return c.QueueUnbind(n.consumerQueue, nobodysKey, n.exchange, nil)
		}},
		{"right to bind queue", n.failedQueue, n.deadLetterExchange, func(c *amqp091.Channel) error {
			return c.QueueUnbind(n.failedQueue, nobodysKey, n.deadLetterExchange, nil)
		}},
	}
}

// on does something on a channel of its own.
func (v surveyor) on(do func(*amqp091.Channel) error) error {
	defer v.session.bound()()
	channel, err := v.session.conn.Channel()
	if err != nil {
		return err
	}
	if err := do(channel); err != nil {
		return err
	}
	return channel.Close()
}

// isAnswer tells whether the broker has answered, and only does not do what it was asked for.
func isAnswer(err error) bool {
	answer, ok := errors.AsType[*amqp091.Error](err)
	return ok && slices.Contains([]int{
		amqp091.AccessRefused, amqp091.NotFound, amqp091.PreconditionFailed, amqp091.ResourceLocked,
	}, answer.Code)
}

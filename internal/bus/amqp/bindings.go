package amqp

import (
	"context"
	"errors"
	"fmt"
	"slices"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

// AdviceOnUnneeded says what to do about [Bindings.Unneeded].
const AdviceOnUnneeded = "when no worker of an older version of the service runs, run `worker unbind TYPE`"

// errNoService says that the contract's queue is bound to all events.
var errNoService = errors.New("the contract's queue gets all events: only a service's own queue is bound to event types")

// Unbind makes the queue of a service get events of some types no longer, which no worker of the service may handle any more.
// What is not bound is no error. A worker never does that: another one, of an older version, may still handle them.
func Unbind(ctx context.Context, c Config, types []string) error {
	if c.Service == "" {
		return errNoService
	}
	conn, err := newConnection(ctx, c)
	if err != nil {
		return err
	}
	defer conn.end()
	conn.declares = false
	s, err := conn.connect(ctx, "unbind", nil)
	if err != nil {
		return err
	}
	defer s.close()
	for _, eventType := range types {
		key := cutKey(eventType)
		for _, unbind := range []func(*amqp091.Channel) error{
			func(channel *amqp091.Channel) error {
				return channel.QueueUnbind(conn.consumerQueue, key, conn.exchange, nil)
			},
			func(channel *amqp091.Channel) error {
				return channel.ExchangeUnbind(conn.partitionedExchange, key, conn.exchange, false, nil)
			},
		} {
			if err := (inspection{s, conn.topology}).do(unbind); err != nil && !isNotFound(err) {
				return fmt.Errorf("unbind %s from %s: %w", eventType, conn.consumerQueue, classify(err))
			}
		}
	}
	return nil
}

// Bindings are what the management API says of the event types that the workers' queue gets.
type Bindings struct {
	// Missing are those of [Config.Types] that it does not get. Without a service name it is to get "#".
	Missing []string
	// Unneeded are those that it is bound to, and Types do not name, or that it gets beside its partitions.
	Unneeded []string
}

// InspectBindings asks the management API for the bindings.
func InspectBindings(ctx context.Context, c Config) (b Bindings, err error) {
	c = c.withDefaults()
	m, err := newManagement(c)
	if err != nil {
		return b, err
	}
	defer m.client.CloseIdleConnections()
	t := c.topology()
	var found []struct {
		Destination string `json:"destination"`
		Key         string `json:"routing_key"`
	}
	if _, err := m.get(ctx, &found, "exchanges", m.vhost, t.exchange, "bindings", "source"); err != nil {
		return b, err
	}
	bound := map[string]bool{}
	for _, f := range found {
		switch {
		case f.Destination == t.partitionedExchange || f.Destination == t.consumerQueue && t.partitions == 0:
			bound[f.Key] = true
		case f.Destination == t.consumerQueue: // beside the partitions
			b.Unneeded = append(b.Unneeded, f.Key)
		}
	}
	for _, key := range t.keys {
		if !bound[key] && !bound[everyKey] {
			b.Missing = append(b.Missing, key)
		}
	}
	for key := range bound {
		if !t.wants(key) {
			b.Unneeded = append(b.Unneeded, key)
		}
	}
	slices.Sort(b.Unneeded)
	b.Unneeded = slices.Compact(b.Unneeded)
	return b, nil
}

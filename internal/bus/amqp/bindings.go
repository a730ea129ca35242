package amqp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

// AdviceOnUnhandled says what to do about [Unhandled] types.
const AdviceOnUnhandled = "when no worker of an older version of the service runs, run `worker unbind TYPE`"

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

// Unhandled returns the event types that the queue of a service gets and [Config.Types] do not name, as the management API says.
func Unhandled(ctx context.Context, c Config) ([]string, error) {
	c = c.withDefaults()
	if c.Service == "" || slices.Contains(c.Types, everyKey) {
		return nil, nil
	}
	m, err := newManagement(c)
	if err != nil {
		return nil, err
	}
	defer m.client.CloseIdleConnections()
	t := c.topology()
	var bindings []struct {
		Destination string `json:"destination"`
		Key         string `json:"routing_key"`
	}
	if _, err := m.get(ctx, &bindings, "exchanges", m.vhost, t.exchange, "bindings", "source"); err != nil {
		return nil, err
	}
	var types []string
	for _, b := range bindings {
		own := b.Destination == t.consumerQueue || b.Destination == t.partitionedExchange
		if own && !slices.Contains(t.keys, b.Key) {
			types = append(types, b.Key)
		}
	}
	slices.SortFunc(types, strings.Compare)
	return slices.Compact(types), nil
}

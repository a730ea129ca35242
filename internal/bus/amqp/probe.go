package amqp

import (
	"context"
	"errors"
	"fmt"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

// probeKey is the name of a queue that does not exist.
const probeKey = "worker.doctor.probes.publishing"

// ProbePublishing publishes two small messages, one after the other, to a queue that does not exist, so that the broker drops
// them, and waits for their confirms: a broker that blocks still takes the first message of a connection, and says that it
// blocks when it has read it. The error wraps [ErrBlocked], [ErrRefused] if the
// user may not publish to the default exchange, or that of ctx.
func ProbePublishing(ctx context.Context, c Config) error {
	conn, err := newConnection(ctx, c)
	if err != nil {
		return err
	}
	defer conn.end()
	conn.declares = false
	s, err := conn.connect(ctx, "doctor", nil)
	if err != nil {
		return err
	}
	defer s.kill() // a broker that blocks does not read the end of the connection
	defer context.AfterFunc(ctx, s.kill)()
	blocked := s.conn.NotifyBlocked(make(chan amqp091.Blocking, 1))
	channel, err := s.conn.Channel()
	if err != nil {
		return fmt.Errorf("open channel: %w", classify(err))
	}
	closed := channel.NotifyClose(make(chan *amqp091.Error, 1))
	if err := channel.Confirm(false); err != nil {
		return fmt.Errorf("ask for confirms: %w", classify(err))
	}
	for range 2 {
		if err := probe(ctx, channel, blocked, closed); err != nil {
			return err
		}
	}
	return nil
}

func probe(ctx context.Context, channel *amqp091.Channel, blocked <-chan amqp091.Blocking, closed <-chan *amqp091.Error) error {
	confirm, err := channel.PublishWithDeferredConfirmWithContext(ctx, "", probeKey, false, false, amqp091.Publishing{})
	if err != nil {
		return fmt.Errorf("publish: %w", classify(err))
	}
	for {
		select {
		case b, ok := <-blocked:
			if ok && b.Active {
				return fmt.Errorf("%w: %s", ErrBlocked, b.Reason)
			}
			blocked = nil
		case reason := <-closed:
			if reason == nil {
				return fmt.Errorf("publish: %w", errors.Join(ErrUnavailable, context.Cause(ctx)))
			}
			return fmt.Errorf("publish: %w", classify(reason))
		case <-confirm.Done():
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnconfirmed, context.Cause(ctx))
		}
	}
}

// InFlight returns how many messages of each queue are delivered and not acked, as the management API has counted a few
// seconds ago; nil if that does not say.
func InFlight(ctx context.Context, c Config) map[string]int {
	c = c.withDefaults()
	m, err := newManagement(c)
	if err != nil {
		return nil
	}
	defer m.client.CloseIdleConnections()
	counts := map[string]int{}
	for _, p := range c.topology().parts() {
		if p.exchangeType != "" {
			continue
		}
		state, err := m.state(ctx, p.name)
		if err != nil || state != nil && state.Unacked == nil {
			return nil
		}
		if state != nil {
			counts[p.name] = *state.Unacked
		}
	}
	return counts
}

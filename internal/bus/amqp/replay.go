package amqp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
)

var _ deadletter.Publisher = (*FailedQueue)(nil)

// PublishLetters implements [deadletter.Publisher]. A message is as it was, body, properties and headers of any type,
// without the headers of its failure and with those of the replay. It goes to the queue that it comes from, or else to the
// consumer's. While the broker is unavailable it waits for as long as ctx lives.
func (q *FailedQueue) PublishLetters(ctx context.Context, letters []deadletter.Release) ([]deadletter.Sending, error) {
	sendings := make([]deadletter.Sending, len(letters))
	homes := map[string]home{} // by the queue to which letters return
	topics := q.conn.Topics()
	var messages []outgoing
	var indexes []int
	for i, l := range letters {
		o, of, err := q.release(l)
		if err == nil && o.exchange == "" {
			home, known := homes[o.key]
			if !known {
				if home, err = q.home(ctx, o.key, of); err != nil {
					return nil, fmt.Errorf("replay: %w", err)
				}
				homes[o.key] = home
			}
			o.key, err = home.queue, home.problem
			if !slices.Contains(topics, o.key) && !of.consumes(o.key) {
				sendings[i].Elsewhere = o.key
			}
		}
		if err != nil {
			sendings[i] = deadletter.Sending{Problem: err}
			continue
		}
		messages, indexes = append(messages, o), append(indexes, i)
	}
	for n := len(messages) + 1; len(messages) > 0; {
		confirmed, err := q.publisher.publish(ctx, messages[:min(n, len(messages))])
		_, unroutable := errors.AsType[*UnroutableError](err)
		refused, ok := errors.AsType[*bus.RefusedError](err)
		switch {
		case unroutable && n > 1:
			n = 1 // the broker does not say which; what is missing of the workers' own queues is declared again
		case unroutable:
			refused, ok = &bus.RefusedError{Index: confirmed, Err: err}, true
		}
		switch {
		case ok:
			sendings[indexes[refused.Index]] = deadletter.Sending{Problem: refused.Err}
			messages = slices.Concat(messages[confirmed:refused.Index], messages[refused.Index+1:])
			indexes = slices.Concat(indexes[confirmed:refused.Index], indexes[refused.Index+1:])
		case err == nil || unroutable:
			messages, indexes = messages[confirmed:], indexes[confirmed:]
		default:
			return sendings, err
		}
	}
	return sendings, nil
}

// ofOwnService removes from a message that it is a replay, if it is that of another service's letter: what becomes of it here is
// not that letter's outcome.
func (n names) ofOwnService(headers amqp091.Table) {
	if key := text(headers, deadletter.ReplayServiceKey); key == "" || key == n.failedKey {
		return
	}
	for _, key := range deadletter.ReplayKeys() {
		delete(headers, key)
	}
}

// release is the message of a letter, and the names of the service whose worker it is for. The error says why there is none;
// it may wrap [ErrTooLarge].
func (q *FailedQueue) release(l deadletter.Release) (o outgoing, of names, err error) {
	var p amqp091.Publishing
	service := q.conn.config.Service
	source, topic := "", ""
	if l.Raw == nil { // it does not come from a broker
		if p, err = Marshal(l.Message()); err != nil {
			return o, of, err
		}
	} else {
		d, err := deliveryOf(l.Raw, l.Body)
		if err != nil {
			return o, of, err
		}
		p = publishingOf(d)
		p.Headers = withoutLetterKeys(p.Headers)
		p.Expiration = cmp.Or(text(d.Headers, expirationKey), p.Expiration)
		source, topic = l.Source, text(d.Headers, deadletter.TopicKey)
		service = serviceOfKey(d.RoutingKey)
	}
	if l.Handler != "" && deadletter.ServiceOf(l.Handler) != service { // it did not fail there, as its handler was changed
		service, source = deadletter.ServiceOf(l.Handler), ""
	}
	of = namesOf(q.conn.config.Prefix, service)
	o.key = cmp.Or(source, of.consumerQueue)
	if service == q.conn.config.Service {
		o.key = q.returnQueue(source)
	}
	neverOnBus := l.Raw == nil && l.Handler == "" && l.Source == "" // and so of no service
	if neverOnBus || l.To == deadletter.ToBus {
		o.exchange, o.key = q.conn.names.exchange, cutKey(cmp.Or(l.Type, topic))
	}
	delete(p.Headers, bus.ReplayHandlerKey)
	delete(p.Headers, deadletter.ReplayServiceKey)
	if l.To == deadletter.ToBus && !neverOnBus {
		p.Headers[deadletter.ReplayServiceKey] = of.failedKey
	}
	for key, value := range l.ReplayHeaders() {
		p.Headers[key] = value
	}
	err = q.prepare(&p)
	if errors.Is(err, ErrTooLarge) { // its own headers leave no room for ours
		delete(p.Headers, deadletter.HistoryKey)
		err = q.prepare(&p)
	}
	o.eventType, o.message = p.Type, p
	return o, of, err
}

// home is where letters of some queue go, and why that takes nothing.
type home struct {
	queue   string
	problem error
}

// home finds the queue of letters of a queue that is a service's. Another service may have left the partition that it was.
func (q *FailedQueue) home(ctx context.Context, queue string, of names) (home, error) {
	depths, err := q.conn.inspect(ctx, queue)
	_, isPartition := of.partitionOf(queue)
	switch answer, ok := errors.AsType[*amqp091.Error](err); {
	case isPartition && of != q.conn.names && (ok && answer.Code == amqp091.NotFound || err == nil && depths[0].Consumers == 0):
		return q.home(ctx, of.consumerQueue, of)
	case ok && answer.Code == amqp091.NotFound:
		return home{queue, &UnroutableError{RoutingKey: queue}}, nil
	}
	return home{queue: queue}, err
}

// serviceOfKey is the name of the service in the routing key of a dead letter.
func serviceOfKey(key string) string {
	service, found := strings.CutPrefix(key, serviceKey)
	if !found || CheckService(service) != nil {
		return ""
	}
	return service
}

// ServiceOf is the name of the service of a letter; known is false if it tells of none, not even of the contract's.
func ServiceOf(l deadletter.Letter) (service string, known bool) {
	if l.Handler != "" {
		return deadletter.ServiceOf(l.Handler), true
	}
	d, err := deliveryOf(l.Raw, nil)
	return serviceOfKey(d.RoutingKey), err == nil && l.Raw != nil
}

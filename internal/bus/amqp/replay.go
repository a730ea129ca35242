package amqp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

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
	problems := map[string]error{} // of each queue to which letters return, why nothing can be sent there
	topics := q.conn.Topics()
	var messages []outgoing
	var indexes []int
	for i, l := range letters {
		o, err := q.release(l)
		if err == nil && o.exchange == "" {
			problem, known := problems[o.key]
			if !known {
				if problem, err = q.home(ctx, o.key); err != nil {
					return nil, fmt.Errorf("replay: %w", err)
				}
				problems[o.key] = problem
			}
			err = problem
			if !slices.Contains(topics, o.key) {
				sendings[i].Elsewhere = o.key
			}
		}
		if err != nil {
			sendings[i] = deadletter.Sending{Problem: err}
			continue
		}
		messages, indexes = append(messages, o), append(indexes, i)
	}
	for {
		confirmed, err := q.publisher.publish(ctx, messages)
		refused, ok := errors.AsType[*bus.RefusedError](err)
		if !ok {
			return sendings, err
		}
		sendings[indexes[refused.Index]] = deadletter.Sending{Problem: refused.Err}
		messages = slices.Concat(messages[confirmed:refused.Index], messages[refused.Index+1:])
		indexes = slices.Concat(indexes[confirmed:refused.Index], indexes[refused.Index+1:])
	}
}

// release is the message of a letter. The error says why there is none; it may wrap [ErrTooLarge].
func (q *FailedQueue) release(l deadletter.Release) (outgoing, error) {
	var p amqp091.Publishing
	o := outgoing{key: q.conn.names.consumerQueue}
	topic := ""
	if l.Raw == nil { // it does not come from a broker
		var err error
		if p, err = Marshal(l.Message()); err != nil {
			return o, err
		}
	} else {
		d, err := deliveryOf(l.Raw, l.Body)
		if err != nil {
			return o, err
		}
		p = publishingOf(d)
		p.Headers = withoutLetterKeys(p.Headers)
		p.Expiration = cmp.Or(text(d.Headers, expirationKey), p.Expiration)
		topic = text(d.Headers, deadletter.TopicKey)
		o.key = q.returnQueue(l.Source)
	}
	if l.To == deadletter.ToBus {
		o.exchange, o.key = q.conn.names.exchange, cutKey(cmp.Or(l.Type, topic))
	}
	delete(p.Headers, bus.ReplayHandlerKey)
	for key, value := range l.ReplayHeaders() {
		p.Headers[key] = value
	}
	err := q.prepare(&p)
	if errors.Is(err, ErrTooLarge) { // its own headers leave no room for ours
		delete(p.Headers, deadletter.HistoryKey)
		err = q.prepare(&p)
	}
	o.eventType, o.message = p.Type, p
	return o, err
}

// home finds out why a queue takes nothing. err says why that cannot be found out.
func (q *FailedQueue) home(ctx context.Context, queue string) (problem, err error) {
	_, err = q.conn.inspect(ctx, queue)
	if answer, ok := errors.AsType[*amqp091.Error](err); ok && answer.Code == amqp091.NotFound {
		return &UnroutableError{RoutingKey: queue}, nil
	}
	return nil, err
}

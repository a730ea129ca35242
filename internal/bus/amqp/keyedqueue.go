package amqp

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
)

// delivery is a message of the broker from its arrival until it is acked or requeued.
type delivery struct {
	amqp091.Delivery

	channel *amqp091.Channel // on which it is acked
	message *message.Message // to be handed over; a new one for each attempt
	cancel  context.CancelFunc
	key     *key
	nacks   int
}

// keyOf is a message's aggregate, or else the message itself, so that no two copies of it are in flight at once.
func keyOf(m *message.Message) string {
	if aggregate := m.Metadata.Get(bus.AggregateIDKey); aggregate != "" {
		return "aggregate " + aggregate
	}
	return "message " + m.UUID
}

// keyedQueue decides which delivery is handed over next: of each key one at a time, in the order of arrival.
type keyedQueue struct {
	inFlight int
	keys     map[string]*key
	ready    []*key // those with deliveries waiting and none in flight
}

type key struct {
	name     string
	waiting  []*delivery
	inFlight bool
}

// add appends a delivery.
func (q *keyedQueue) add(name string, d *delivery) {
	k := q.keys[name]
	if k == nil {
		k = &key{name: name}
		q.keys[name] = k
	}
	d.key = k
	k.waiting = append(k.waiting, d)
	if !k.inFlight && len(k.waiting) == 1 {
		q.ready = append(q.ready, k)
	}
}

// next is the delivery to hand over, nil if there is none.
func (q *keyedQueue) next() *delivery {
	if len(q.ready) == 0 {
		return nil
	}
	return q.ready[0].waiting[0]
}

// take removes next, which is now in flight.
func (q *keyedQueue) take() {
	k := q.ready[0]
	q.ready[0], k.waiting[0] = nil, nil
	q.ready, k.waiting = q.ready[1:], k.waiting[1:]
	k.inFlight = true
	q.inFlight++
}

// done notes that d is no longer in flight.
func (q *keyedQueue) done(d *delivery) {
	q.inFlight--
	d.key.inFlight = false
	q.update(d.key)
}

// again notes that d is no longer in flight, and makes it the next of its key.
func (q *keyedQueue) again(d *delivery) {
	d.key.waiting = append([]*delivery{d}, d.key.waiting...)
	q.done(d)
}

func (q *keyedQueue) update(k *key) {
	switch {
	case k.inFlight:
	case len(k.waiting) > 0:
		q.ready = append(q.ready, k)
	default:
		delete(q.keys, k.name)
	}
}

// clear removes and returns all that wait. What is in flight still blocks its key.
func (q *keyedQueue) clear() []*delivery {
	var all []*delivery
	q.ready = nil
	for _, k := range q.keys {
		all = append(all, k.waiting...)
		k.waiting = nil
		q.update(k)
	}
	return all
}

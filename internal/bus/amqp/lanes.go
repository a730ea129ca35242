package amqp

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
)

// held is a delivery from its arrival until it is settled.
type held struct {
	delivery amqp091.Delivery
	channel  *amqp091.Channel // on which it is settled
	message  *message.Message // to be handed out; a new one for each try
	cancel   context.CancelFunc
	lane     *lane
	nacks    int
}

// laneOf is the key of a message's lane: its aggregate, or else the message itself, so that no two copies of one
// message are in hand at once.
func laneOf(m *message.Message) string {
	if aggregate := m.Metadata.Get(bus.AggregateIDKey); aggregate != "" {
		return "aggregate " + aggregate
	}
	return "message " + m.UUID
}

// lanes decide which delivery is handed out next: of each lane one at a time, in the order of arrival, and of all lanes
// so many at a time as the limit allows.
type lanes struct {
	limit  int
	inHand int
	byKey  map[string]*lane
	ready  []*lane // those that have something waiting and nothing in hand
}

type lane struct {
	key     string
	waiting []*held
	busy    bool
}

func newLanes(limit int) *lanes { return &lanes{limit: limit, byKey: map[string]*lane{}} }

// add puts a delivery at the end of its lane.
func (l *lanes) add(key string, h *held) {
	h.lane = l.byKey[key]
	if h.lane == nil {
		h.lane = &lane{key: key}
		l.byKey[key] = h.lane
	}
	h.lane.waiting = append(h.lane.waiting, h)
	if !h.lane.busy && len(h.lane.waiting) == 1 {
		l.ready = append(l.ready, h.lane)
	}
}

// next is the delivery to hand out, nil if there is none or enough are in hand.
func (l *lanes) next() *held {
	if l.inHand == l.limit || len(l.ready) == 0 {
		return nil
	}
	return l.ready[0].waiting[0]
}

// take notes that next was handed out.
func (l *lanes) take() {
	lane := l.ready[0]
	l.ready[0] = nil
	l.ready = l.ready[1:]
	lane.waiting[0] = nil
	lane.waiting = lane.waiting[1:]
	lane.busy = true
	l.inHand++
}

// done notes that h is no longer in hand.
func (l *lanes) done(h *held) {
	l.inHand--
	h.lane.busy = false
	l.settle(h.lane)
}

// again notes that h is no longer in hand and makes it the next of its lane.
func (l *lanes) again(h *held) {
	h.lane.waiting = append([]*held{h}, h.lane.waiting...)
	l.done(h)
}

func (l *lanes) settle(lane *lane) {
	switch {
	case lane.busy:
	case len(lane.waiting) > 0:
		l.ready = append(l.ready, lane)
	default:
		delete(l.byKey, lane.key)
	}
}

// clear removes and returns all that wait. What is in hand still keeps its lane busy.
func (l *lanes) clear() []*held {
	var all []*held
	l.ready = nil
	for _, lane := range l.byKey {
		all = append(all, lane.waiting...)
		lane.waiting = nil
		l.settle(lane)
	}
	return all
}

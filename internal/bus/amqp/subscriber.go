package amqp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"
	amqp091 "github.com/rabbitmq/amqp091-go"
)

// consumerTag names the one consumer of a channel.
const consumerTag = "worker"

const (
	// minNackWait and maxNackWait bound the growing wait before a message that was nacked is handed out again.
	minNackWait = 50 * time.Millisecond
	maxNackWait = time.Second
)

// Subscriber consumes queues. It is safe for concurrent use.
type Subscriber struct {
	conn  *Connection
	share *share

	mu            sync.Mutex
	closed        bool
	subscriptions map[*subscription]struct{}
}

var (
	_ message.Subscriber           = (*Subscriber)(nil)
	_ message.SubscribeInitializer = (*Subscriber)(nil)
)

// NewSubscriber returns a Subscriber over a Connection.
func NewSubscriber(c *Connection) *Subscriber {
	return &Subscriber{conn: c, share: newShare(c), subscriptions: map[*subscription]struct{}{}}
}

// SubscribeInitialize declares what is needed for a topic.
func (s *Subscriber) SubscribeInitialize(topic string) error {
	ctx, cancel := context.WithTimeout(s.conn.life, connectTimeout)
	defer cancel()
	session, err := s.conn.consuming.session(ctx, nil)
	if err != nil {
		return fmt.Errorf("declare topology: %w", err)
	}
	defer session.bound()()
	channel, err := session.open(s.conn.routing, topic)
	if err != nil {
		return classify(err)
	}
	return channel.Close()
}

// Subscribe consumes the queue of a topic: under the contract, whatever the topic, the one queue; with partitions each of
// [Connection.Topics] is to be subscribed to, once, and nothing is handed out of the others until the leftover queues
// have been empty once. It hands out up to
// the configured number of messages at once, and those of one aggregate one after another in the order of the queue,
// also over nacks, lost connections and redeliveries: a message is not handed out while an earlier of its aggregate, or
// an earlier copy of itself, is in hand.
//
// A nacked message stays here, ahead of the later ones of its aggregate, and is handed out again after a wait that
// grows: given back to the broker it could be overtaken.
//
// When ctx ends or the Subscriber is closed, consuming stops, what was not handed out goes back to the queue, and the
// messages in hand are waited for, up to the drain timeout; then the returned channel is closed. A message's context
// ends with ctx, when it is acked, and when the drain is over.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	c := s.conn.config
	sub := &subscription{
		conn:    s.conn,
		topic:   topic,
		queue:   s.conn.routing.Queue.GenerateName(topic),
		logger:  c.Logger,
		out:     make(chan *message.Message),
		lanes:   newLanes(c.Concurrency),
		results: make(chan result, c.Concurrency),
		ended:   make(chan struct{}),
		share:   s.share,
	}
	_, sub.partition = s.conn.names.partitionOf(sub.queue)
	sub.old = s.share != nil && s.share.isOld(sub.queue)
	sub.handling, sub.abandon = context.WithCancel(context.WithoutCancel(ctx))
	sub.messages, sub.cancelMessages = context.WithCancel(ctx)
	sub.consuming, sub.stop = context.WithCancel(ctx)

	var err error
	if sub.share == nil || sub.old || sub.share.settled.Err() != nil {
		err = sub.open(isPermanent)
	}
	if err == nil && !s.start(sub) { //nolint:contextcheck // the subscription carries its contexts
		err = ErrClosed
	}
	if err != nil {
		sub.end()
		return nil, fmt.Errorf("subscribe to queue %q: %w", sub.queue, err)
	}
	return sub.out, nil
}

func (s *Subscriber) start(sub *subscription) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	started := !s.closed && s.conn.spawn(func() {
		sub.run()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subscriptions, sub)
	})
	if started {
		s.subscriptions[sub] = struct{}{}
	}
	return started
}

// Close ends all subscriptions, see [Subscriber.Subscribe], and waits for their end.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	var ends []<-chan struct{}
	for sub := range s.subscriptions {
		sub.stop()
		ends = append(ends, sub.ended)
	}
	s.mu.Unlock()
	for _, end := range ends {
		<-end
	}
	return nil
}

// subscription is one consumer of one queue, over all its channels. One goroutine runs it and owns the lanes.
type subscription struct {
	conn         *Connection
	topic, queue string
	logger       *slog.Logger

	consuming      context.Context // until it is to stop
	stop           context.CancelFunc
	messages       context.Context // parent of the messages' contexts
	cancelMessages context.CancelFunc
	handling       context.Context // until the drain is over
	abandon        context.CancelFunc

	out     chan *message.Message
	lanes   *lanes
	results chan result // has room for all that can be in hand
	waiters sync.WaitGroup
	ended   chan struct{}

	share     *share // nil if this is the only one
	partition bool   // this one is of a partition
	active    bool   // and the broker delivers to it
	yielding  bool   // and it hands it on
	old       bool   // the queue is a leftover not known to be empty
	quiet     int    // looks at it in a row that found nothing
	bytes     int    // of the bodies that are held
	slot      bool   // has a slot of the share for the next message

	session    *session
	channel    *amqp091.Channel
	closed     chan *amqp091.Error
	deliveries <-chan amqp091.Delivery
}

// result is what became of a message in hand.
type result struct {
	held  *held
	acked bool
}

func (s *subscription) run() {
	defer close(s.ended)
	defer close(s.out)
	defer s.end()
	ready := s.channel != nil || s.awaitTurn()
	for ready && s.consume() {
		s.discard()
		ready = s.open(never) == nil // otherwise it is to stop
	}
	s.drain()
}

// awaitTurn begins to consume once the leftover queues are empty. It reports whether it did.
func (s *subscription) awaitTurn() bool {
	select {
	case <-s.share.settled.Done():
		return s.open(never) == nil
	case <-s.consuming.Done():
		return false
	}
}

// consume takes deliveries in and hands messages out, until it is to stop, or the channel is lost or to be given up.
func (s *subscription) consume() (again bool) {
	look := s.looks()
	defer look.Stop()
	for !s.yielding || s.lanes.inHand > 0 {
		var (
			out   chan<- *message.Message
			next  *message.Message
			slots chan<- struct{}
			h     = s.lanes.next()
		)
		switch {
		case h == nil || s.yielding:
		case s.share != nil && !s.slot:
			slots = s.share.slots
		default:
			out, next = s.out, s.messageOf(h)
		}
		select {
		case slots <- struct{}{}:
			s.slot = true
		case <-look.C:
			s.look(look)
		case d, ok := <-s.deliveries:
			if !ok {
				return s.consuming.Err() == nil
			}
			s.receive(d)
		case out <- next:
			s.lanes.take()
			s.slot = false
			s.waiters.Go(func() { s.wait(h, next) })
		case r := <-s.results:
			s.settle(r)
		case <-s.consuming.Done():
			return false
		}
	}
	return true
}

// looks ticks when it is time for a look; never where there is nothing to look for.
func (s *subscription) looks() *time.Ticker {
	ticker := time.NewTicker(balanceInterval)
	switch {
	case s.old:
		ticker.Reset(leftoverInterval)
	case !s.partition:
		ticker.Stop()
	}
	return ticker
}

// look finds out whether a leftover queue is empty, and whether a partition is to be handed on.
func (s *subscription) look(ticker *time.Ticker) {
	if s.conn.window.full() || s.old && len(s.lanes.byKey) > 0 || !s.old && !s.active {
		s.quiet = 0
		return
	}
	name := s.queue
	if !s.old { // each worker consumes the contract's queue, and not every queue counts those that wait in line
		name = s.conn.names.consumerQueue
	}
	release := s.session.bound()
	queue, err := s.channel.QueueDeclarePassive(name, true, false, false, false, nil)
	release()
	switch {
	case err != nil: // the channel is lost, which shows elsewhere
	case s.old && queue.Messages > 0:
		s.quiet = 0
	case s.old:
		if s.quiet++; s.quiet == quietLooks {
			s.old = false
			s.share.empty(s.queue)
			s.logger.InfoContext(s.consuming, "the leftover queue is empty", "queue", s.queue)
			ticker.Reset(balanceInterval)
		}
	case s.share.yield(queue.Consumers):
		s.active, s.yielding = false, true
	}
}

func (s *subscription) receive(d amqp091.Delivery) {
	if d.Acknowledger == nil {
		return // no delivery: the queue is gone
	}
	if s.partition && s.share != nil && !s.active && !s.yielding {
		s.active = true
		s.share.gain()
	}
	s.hold(len(d.Body))
	resume := s.pause(d)
	m, err := s.conn.routing.Marshaler.Unmarshal(d)
	resume()
	if err != nil {
		s.hold(-len(d.Body))
		s.logger.ErrorContext(s.consuming, "cannot read a message, the broker dead-letters it", "queue", s.queue,
			"error", err)
		_ = s.channel.Reject(d.DeliveryTag, false) // fails only if the channel is lost
		return
	}
	key := laneOf(m)
	if s.conn.config.Concurrency == 1 {
		key = ""
	}
	s.lanes.add(key, &held{delivery: d, channel: s.channel, message: m})
}

// hold counts bytes of bodies that are held, and with less than 0 such as no longer are.
func (s *subscription) hold(bytes int) {
	s.bytes += bytes
	s.conn.window.hold(bytes)
}

// pause closes the window while a large body is read as JSON: what the library reads meanwhile, nobody has counted yet.
func (s *subscription) pause(d amqp091.Delivery) (resume func()) {
	if len(d.Body) < largeBody {
		return func() {}
	}
	s.conn.window.hold(maxHeldBytes)
	return func() { s.conn.window.hold(-maxHeldBytes) }
}

// forget gives up what is not handed out.
func (s *subscription) forget(all []*held) {
	for _, h := range all {
		if h.cancel != nil {
			h.cancel()
		}
		s.hold(-len(h.delivery.Body))
	}
}

// messageOf is the message to hand out for h.
func (s *subscription) messageOf(h *held) *message.Message {
	if h.message == nil {
		h.message, _ = s.conn.routing.Marshaler.Unmarshal(h.delivery) // it could be read before
	}
	if h.cancel == nil {
		var ctx context.Context
		ctx, h.cancel = context.WithCancel(withOrigin(s.messages, h.delivery, s.queue))
		h.message.SetContext(ctx)
	}
	return h.message
}

// wait waits for what becomes of a message in hand.
func (s *subscription) wait(h *held, m *message.Message) {
	defer h.cancel()
	if s.share != nil {
		defer func() { <-s.share.slots }()
	}
	r := result{held: h}
	select {
	case <-m.Acked():
		r.acked = true
	case <-m.Nacked():
		timer := time.NewTimer(min(minNackWait<<min(h.nacks, 16), maxNackWait))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.consuming.Done():
		}
	case <-s.handling.Done():
		return
	}
	s.results <- r
}

// settle tells the broker what became of a message. If the channel of its delivery is gone, the broker has it again.
func (s *subscription) settle(r result) {
	h := r.held
	current := h.channel == s.channel
	if current && !r.acked && s.consuming.Err() == nil {
		h.nacks++
		h.message, h.cancel = nil, nil
		s.lanes.again(h)
		return
	}
	s.lanes.done(h)
	s.hold(-len(h.delivery.Body))
	switch { // errors mean that the channel is lost, which shows elsewhere
	case current && r.acked:
		_ = h.channel.Ack(h.delivery.DeliveryTag, false)
	case current && !s.keeps():
		_ = h.channel.Nack(h.delivery.DeliveryTag, false, true)
	}
}

// discard forgets a channel that is lost or given up, and what waits to be handed out: the broker delivers it again.
func (s *subscription) discard() {
	reason := "the queue is gone"
	select {
	case err := <-s.closed:
		if err != nil {
			reason = err.Error()
		}
	default:
	}
	if s.yielding {
		s.logger.InfoContext(s.consuming, "handing a partition on to another worker", "queue", s.queue)
	} else {
		s.logger.WarnContext(s.consuming, "consuming was interrupted", "queue", s.queue, "reason", reason)
	}
	s.forget(s.lanes.clear())
	s.closeChannel()
}

func (s *subscription) closeChannel() {
	if s.active {
		s.share.lose()
	}
	s.active, s.yielding = false, false
	if s.slot {
		s.slot = false
		<-s.share.slots
	}
	if s.channel == nil {
		return
	}
	defer s.session.bound()()
	_ = s.channel.Close() // of no use any more, whatever it says
	s.channel = nil
}

// drain stops consuming, gives back what was not handed out, and waits for what is in hand; not for long, and not once
// the Connection is closed and nothing can be acked any more.
func (s *subscription) drain() {
	s.stop()
	if s.channel != nil && !s.keeps() {
		s.giveBack()
	}
	timeout := time.NewTimer(s.conn.config.DrainTimeout)
	defer timeout.Stop()
	deliveries := s.deliveries
	if s.channel == nil || !s.keeps() {
		deliveries = nil
	}
	for s.lanes.inHand > 0 {
		select {
		case _, ok := <-deliveries: // let go of the body; it is delivered again
			if !ok {
				deliveries = nil
			}
		case r := <-s.results:
			s.settle(r)
		case <-s.conn.life.Done():
			return
		case <-timeout.C:
			s.logger.WarnContext(s.handling, "messages are still in hand after the drain timeout, and go back to their queue",
				"queue", s.queue, "messages", s.lanes.inHand, "timeout", s.conn.config.DrainTimeout)
			return
		}
	}
}

// keeps tells whether a drain keeps all until its end, when the channel is closed: the next worker must not begin with a
// partition while something is in hand here, and to a quorum queue messages return in the order in which they are given
// back.
func (s *subscription) keeps() bool {
	return s.partition || s.conn.config.QueueType == QuorumQueues
}

// giveBack cancels the consumer and requeues what was not handed out.
func (s *subscription) giveBack() {
	waiting := s.lanes.clear()
	var tags []uint64
	for _, h := range waiting {
		tags = append(tags, h.delivery.DeliveryTag)
	}
	s.forget(waiting)
	canceled := make(chan struct{})
	s.waiters.Go(func() {
		defer close(canceled)
		defer s.session.bound()()
		_ = s.channel.Cancel(consumerTag, false) // an error means that the channel is lost, and all is given back
	})
	for d := range s.deliveries { // until the broker has heard of it
		tags = append(tags, d.DeliveryTag)
	}
	<-canceled
	slices.Sort(tags)
	for _, tag := range tags {
		_ = s.channel.Nack(tag, false, true) // likewise
	}
}

// end ends all that the subscription has begun. What is still in hand is abandoned.
func (s *subscription) end() {
	s.stop()
	s.cancelMessages()
	s.abandon()
	s.waiters.Wait()
	s.hold(-s.bytes)
	s.closeChannel()
}

// never and isPermanent tell whether an attempt to consume is to be the last.
func never(error) bool { return false }

func isPermanent(err error) bool { return !errors.Is(err, ErrUnavailable) }

// open begins to consume, on a channel of its own. It tries until it succeeds, gives up at an error as it is told, or is
// to stop.
func (s *subscription) open(giveUp func(error) bool) error {
	waits := backoff.NewExponentialBackOff()
	waits.InitialInterval, waits.MaxInterval, waits.Multiplier = 50*time.Millisecond, maxReconnectWait, 2
	for {
		session, err := s.conn.consuming.session(s.consuming, nil)
		if err != nil {
			return err
		}
		if err = s.openOn(session); err == nil {
			return nil
		}
		if err = classify(err); giveUp(err) {
			return err
		}
		s.logger.WarnContext(s.consuming, "cannot consume, will try again", "queue", s.queue, "error", err)
		timer := time.NewTimer(waits.NextBackOff())
		select {
		case <-timer.C:
		case <-s.consuming.Done():
			timer.Stop()
			return context.Cause(s.consuming)
		}
	}
}

func (s *subscription) openOn(session *session) error {
	defer session.bound()()
	channel, err := session.open(s.conn.routing, s.topic)
	if err != nil {
		return err
	}
	if err := channel.Qos(s.conn.config.Prefetch, 0, false); err != nil {
		return fmt.Errorf("set prefetch: %w", err)
	}
	closed := channel.NotifyClose(make(chan *amqp091.Error, 1))
	deliveries, err := channel.Consume(s.queue, consumerTag, false, false, false, false, nil)
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	s.session, s.channel, s.closed, s.deliveries = session, channel, closed, deliveries
	return nil
}

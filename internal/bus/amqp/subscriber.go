package amqp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/observe"
)

// consumerTag names the one consumer of a channel.
const consumerTag = "worker"

const (
	// minNackWait and maxNackWait bound the backoff before a nacked message is handed over again.
	minNackWait = 50 * time.Millisecond
	maxNackWait = time.Second
	// silenceInterval is how often a subscription that hands nothing over listens whether the broker is heard again.
	silenceInterval = 50 * time.Millisecond
)

// Subscriber consumes queues. It is safe for concurrent use.
type Subscriber struct {
	conn       *Connection
	partitions *partitions // nil if there is one queue

	mu            sync.Mutex
	closed        bool
	subscriptions map[*subscription]struct{}
}

var _ message.Subscriber = (*Subscriber)(nil)

// NewSubscriber returns a Subscriber over a Connection.
func NewSubscriber(c *Connection) *Subscriber {
	return &Subscriber{conn: c, partitions: newPartitions(c), subscriptions: map[*subscription]struct{}{}}
}

// Subscribe consumes the queue of a topic: the contract's, whatever the topic, unless it is one of [Connection.Topics],
// which are to be subscribed to once each. Of several workers one consumes the contract's queue, and the others wait for
// their turn, unless [Config.Competing] is set. With partitions, the others are consumed once the leftover queues were empty.
// It hands over up to the configured number of messages at once, and those of one aggregate one after another in the
// order of the queue, also over nacks, lost connections and redeliveries: a message is not handed over while an earlier
// one of its aggregate, or an earlier copy of itself, is in flight.
//
// A nacked message is not requeued, as others could overtake it: it stays ahead of the later ones of its aggregate, and
// is handed over again after a backoff.
//
// When ctx ends or the Subscriber is closed, consuming stops, what was not handed over is requeued, and the messages in
// flight are waited for, up to the drain timeout; then the returned channel is closed. If this worker consumes alone, all
// is requeued at the end. A message's context ends with ctx,
// when it is acked, and when the drain is over.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	sub := newSubscription(ctx, s.conn, topic)
	if s.partitions != nil {
		s.partitions.join(sub)
	}
	var err error
	if sub.mayBegin() {
		err = sub.open(func(err error) bool { return !errors.Is(err, ErrUnavailable) }) //nolint:contextcheck // the subscription carries its contexts
	}
	if errors.Is(err, errTaken) || errors.Is(err, errStranger) {
		err = nil // it waits for its turn
	}
	if err == nil && !s.start(sub) { //nolint:contextcheck // the subscription carries its contexts
		err = ErrClosed
	}
	if err != nil {
		sub.end()
		s.forget(sub)
		return nil, fmt.Errorf("subscribe to queue %q: %w", sub.queue, err)
	}
	return sub.out, nil
}

// start runs a subscription, unless it is too late for that.
func (s *Subscriber) start(sub *subscription) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	started := !s.closed && s.conn.spawn(func() {
		defer s.forget(sub)
		if s.partitions != nil {
			sub.tasks.Go(func() { s.partitions.supervise(sub) })
		}
		sub.run()
	})
	if started {
		s.subscriptions[sub] = struct{}{}
	}
	return started
}

func (s *Subscriber) forget(sub *subscription) {
	if s.partitions != nil {
		s.partitions.leave(sub)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.subscriptions, sub)
}

// Consuming says more about a Subscriber that works: "" if it consumes, [Standby] if it waits for its turn, or why consuming
// was interrupted last. The error says why a queue is not consumed at present.
func (s *Subscriber) Consuming() (state string, err error) {
	if err := s.conn.consuming.ready(); err != nil && !errors.Is(err, ErrBlocked) { // acks are not blocked
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for sub := range s.subscriptions {
		if fault := sub.fault.Load(); fault != nil {
			return "", fmt.Errorf("queue %s is not consumed: %w", sub.queue, *fault)
		}
		if said := sub.state.Load(); said != nil && *said != "" {
			state = *said
		}
	}
	return state, nil
}

// Share is what a Subscriber has of a queue.
type Share struct {
	Queue string
	// Consumes tells that RabbitMQ delivers the queue's messages to it. Of a partition it is known from the first delivery on,
	// as all workers have consumers there.
	Consumes bool
	// Unacked is how many messages are delivered to it and not settled, whether a handler runs on them or not.
	Unacked int
}

// Shares are those of the queues that are subscribed to.
func (s *Subscriber) Shares() []Share {
	s.mu.Lock()
	defer s.mu.Unlock()
	shares := make([]Share, 0, len(s.subscriptions))
	for sub := range s.subscriptions {
		consumes := sub.consumes.Load()
		if !sub.alone && !sub.conn.config.Competing {
			consumes = sub.active.Load()
		}
		shares = append(shares, Share{sub.queue, consumes && sub.conn.consuming.ready() == nil, int(sub.unacked.Load())})
	}
	return shares
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

// subscription is one consumer of one queue, over one channel after another. One goroutine runs it.
type subscription struct {
	conn        *Connection
	queue       string
	isPartition bool
	alone       bool // one worker at a time consumes the queue
	logger      *slog.Logger

	consuming      context.Context // until it is to stop
	stop           context.CancelFunc
	messages       context.Context // parent of the messages' contexts
	cancelMessages context.CancelFunc
	abandoned      chan struct{} // closed when the drain is over
	ended          chan struct{}
	tasks          sync.WaitGroup

	out      chan *message.Message
	queued   bus.KeyedQueue[*delivery]
	inFlight chan struct{} // has one element for each message in flight, which may be shared with other subscriptions
	reserved bool          // one element is for the next message
	results  chan result   // has room for all messages in flight
	bytes    int           // of the bodies in memory
	// finished are the messages that were acked after their channel was lost, each with the number of losses: the broker
	// delivers them again.
	finished map[identity]int

	begin      <-chan struct{} // closed when it may consume; nil if it may
	requests   chan func()     // to be called while it consumes
	active     atomic.Bool     // the broker delivers to it
	consumes   atomic.Bool     // it has a consumer
	unacked    atomic.Int64    // the length of queued
	exclusive  bool            // it consumes exclusively, as it may not declare the lock
	unconsumed bool            // the queue had no consumer when it was not its turn, at the last count
	hasTurn    bool            // it shares the Connection's lock of the queue
	state      atomic.Pointer[string]
	outage     observe.Outage
	fault      atomic.Pointer[error] // why nobody consumes the queue, as far as it can tell
	handing    bool                  // it hands its queue over to another worker, once nothing is in flight

	interrupted string // when and why the broker closed a channel last
	losses      int    // of channels

	session    *session
	channel    *amqp091.Channel
	closed     chan *amqp091.Error
	deliveries <-chan amqp091.Delivery
}

// delivery is a message of the broker from its arrival until it is acked or requeued.
type delivery struct {
	amqp091.Delivery

	channel *amqp091.Channel // on which it is acked
	message *message.Message // to be handed over; a new one for each attempt
	cancel  context.CancelFunc
	key     string
	nacks   int
}

// result is what became of a message in flight.
type result struct {
	delivery *delivery
	acked    bool
}

func newSubscription(ctx context.Context, c *Connection, topic string) *subscription {
	s := &subscription{
		conn: c, queue: c.consumerQueue, logger: c.config.Logger,
		out: make(chan *message.Message), inFlight: make(chan struct{}, c.config.Concurrency),
		results: make(chan result, c.config.Concurrency), abandoned: make(chan struct{}), ended: make(chan struct{}),
		requests: make(chan func()), finished: map[identity]int{},
		outage: observe.Outage{After: observe.Moment},
	}
	if _, s.isPartition = c.partitionOf(topic); s.isPartition {
		s.queue = topic
	}
	s.alone = c.aloneOn(s.queue)
	s.messages, s.cancelMessages = context.WithCancel(ctx)
	s.consuming, s.stop = context.WithCancel(ctx)
	return s
}

func (s *subscription) mayBegin() bool {
	select {
	case <-s.begin:
		return true
	default:
		return s.begin == nil
	}
}

// run consumes until it is to stop.
func (s *subscription) run() {
	defer close(s.ended)
	defer close(s.out)
	defer s.end()
	if s.begin != nil {
		select {
		case <-s.begin:
		case <-s.consuming.Done():
		}
	}
	if s.channel == nil {
		_ = s.open(func(error) bool { return false }) // an error means that it is to stop
	}
	for s.channel != nil && s.consume() {
		s.discard()
		_ = s.open(func(error) bool { return false }) // likewise
	}
	s.drain()
}

// open opens a channel and consumes. It tries again until it succeeds, is to stop, or an error is one to give up at.
func (s *subscription) open(giveUp func(error) bool) error {
	for waits := newWaits(); ; {
		session, err := s.conn.consuming.session(s.consuming, nil)
		if err != nil {
			return err
		}
		if err = s.openOn(session); err == nil {
			return nil
		}
		if errors.Is(err, errTaken) {
			if giveUp(err) {
				return err
			}
			s.awaitTurn(session)
			if s.consuming.Err() != nil {
				return context.Cause(s.consuming)
			}
			continue
		}
		if !errors.Is(err, errStranger) {
			err = classify(err)
		}
		s.fault.Store(&err)
		if giveUp(err) {
			return err
		}
		if session.conn.IsClosed() { // the connection has a line of its own
			s.logger.DebugContext(s.consuming, "cannot consume, will try again", "queue", s.queue, "error", err)
		} else {
			s.outage.Fails(s.consuming, s.logger, slog.LevelWarn, "cannot consume, will try again", "queue", s.queue, "error", err)
		}
		if pause(s.consuming, waits.NextBackOff()); s.consuming.Err() != nil {
			return context.Cause(s.consuming)
		}
	}
}

func (s *subscription) openOn(session *session) error {
	defer session.bound()()
	if s.alone {
		if err := s.takeTurn(session); err != nil {
			return err
		}
	}
	declared, err := session.open(s.conn.topology, s.queue)
	if err != nil {
		return err
	}
	channel := declared.channel
	if err := channel.Qos(s.conn.config.Prefetch, 0, false); err != nil {
		return fmt.Errorf("set prefetch: %w", err)
	}
	if s.alone {
		if err := s.awaitReturns(channel); err != nil {
			return fmt.Errorf("count consumers: %w", err)
		}
	}
	closed := channel.NotifyClose(make(chan *amqp091.Error, 1))
	deliveries, err := channel.Consume(s.queue, consumerTag, false, s.exclusive, false, false, nil)
	if err = exclusive("consume", err); errors.Is(err, errTaken) && s.hasTurn {
		return errStranger
	}
	if err != nil {
		return err
	}
	s.say(s.interrupted)
	s.fault.Store(nil)
	s.outage.Over(s.consuming, s.logger, "consuming again", "queue", s.queue)
	s.session, s.channel, s.closed, s.deliveries = session, channel, closed, deliveries
	s.consumes.Store(true)
	s.unconsumed = false
	return nil
}

// consume receives deliveries and hands messages over. It returns false when it is to stop, and true when the channel is
// lost or to be given up.
func (s *subscription) consume() (goOn bool) {
	for !s.handing || s.queued.InFlight() > 0 {
		var (
			out     chan<- *message.Message
			m       *message.Message
			reserve chan<- struct{}
			again   <-chan time.Time
			next, _ = s.queued.Next()
		)
		switch {
		case next == nil || s.handing:
		case s.session.isSilent():
			again = time.After(silenceInterval)
		case !s.reserved:
			reserve = s.inFlight
		default:
			out, m = s.out, s.messageOf(next)
		}
		select {
		case d, ok := <-s.deliveries:
			if !ok {
				return s.consuming.Err() == nil
			}
			s.receive(d)
		case reserve <- struct{}{}:
			s.reserved = true
		case out <- m:
			s.queued.Take()
			s.reserved = false
			s.tasks.Go(func() { s.await(next, m) })
		case r := <-s.results:
			s.settle(r)
		case request := <-s.requests:
			request()
		case <-again:
		case <-s.consuming.Done():
			return false
		}
	}
	return true
}

// do calls f while the subscription consumes, and returns after that. It returns false if the subscription or ctx ends
// first: one that has lost its channel does not consume for as long as the broker refuses another.
func (s *subscription) do(ctx context.Context, f func()) bool {
	done := make(chan struct{})
	select {
	case s.requests <- func() { defer close(done); f() }:
		<-done
		return true
	case <-s.consuming.Done():
	case <-ctx.Done():
	}
	return false
}

// isEmpty tells whether the queue is empty, apart from a delivery that has arrived and was not received.
func (s *subscription) isEmpty() bool {
	if !s.queued.Empty() || s.conn.received.full() {
		return false
	}
	defer s.session.bound()()
	queue, err := s.channel.QueueDeclarePassive(s.queue, true, false, false, false, nil)
	return err == nil && queue.Messages == 0 // an error means that the channel is lost
}

// giveUp hands the queue over to another worker that waits for it.
func (s *subscription) giveUp() {
	if s.active.Swap(false) {
		s.handing = true
	}
}

func (s *subscription) receive(d amqp091.Delivery) {
	if d.Acknowledger == nil {
		return // no delivery: the queue was deleted
	}
	if !s.handing {
		s.active.Store(true)
	}
	s.conn.ofOwnService(d.Headers)
	if s.isFinished(d) {
		_ = s.channel.Ack(d.DeliveryTag, false) // an error means that the channel is lost
		return
	}
	s.count(len(d.Body))
	m := s.messageFrom(d)
	key := ""
	if s.conn.config.Concurrency > 1 {
		key = bus.KeyOf(m)
	}
	s.queued.Add(key, &delivery{Delivery: d, channel: s.channel, message: m, key: key})
	s.noteUnacked()
}

// messageFrom parses a large body with the limit reached: nothing counts yet what the library reads meanwhile.
func (s *subscription) messageFrom(d amqp091.Delivery) *message.Message {
	if len(d.Body) >= largeBody {
		s.conn.received.add(maxReceivedBytes)
		defer s.conn.received.add(-maxReceivedBytes)
	}
	return unmarshal(d, s.conn.config.MaxMessage)
}

// count counts bytes of bodies that are in memory, or with less than 0 no longer are.
func (s *subscription) count(bytes int) {
	s.bytes += bytes
	s.conn.received.add(bytes)
}

// messageOf is the message to hand over.
func (s *subscription) messageOf(d *delivery) *message.Message {
	if d.message == nil {
		d.message = unmarshal(d.Delivery, s.conn.config.MaxMessage)
	}
	if d.cancel == nil {
		var ctx context.Context
		ctx, d.cancel = context.WithCancel(withOrigin(s.messages, d.Delivery, s.queue))
		d.message.SetContext(ctx)
	}
	return d.message
}

// await waits for the ack of a message in flight.
func (s *subscription) await(d *delivery, m *message.Message) {
	defer d.cancel()
	r := result{delivery: d}
	select {
	case <-m.Acked():
		r.acked = true
	case <-m.Nacked():
		pause(s.consuming, min(minNackWait<<min(d.nacks, 16), maxNackWait))
	case <-s.abandoned:
		return
	}
	s.results <- r
}

// settle acks a message, or has it handled again. If its channel is lost, the broker has requeued
// it: of a message that is acked, the copy is.
func (s *subscription) settle(r result) {
	d := r.delivery
	<-s.inFlight
	current := d.channel == s.channel
	if current && !r.acked && s.consuming.Err() == nil {
		d.nacks++
		d.message, d.cancel = nil, nil
		s.queued.Again(d.key, d)
		return
	}
	if r.acked && (!current || d.channel.Ack(d.DeliveryTag, false) != nil) {
		s.finish(d)
	}
	if current && !r.acked && !s.requeuesAtEnd() {
		_ = d.channel.Nack(d.DeliveryTag, false, true) // an error means that the channel is lost
	}
	s.queued.Done(d.key)
	s.noteUnacked()
	s.count(-len(d.Body))
}

// isFinished tells whether a delivery is the copy of a message that was finished after its channel was lost.
func (s *subscription) isFinished(d amqp091.Delivery) bool {
	if !d.Redelivered || len(s.finished) == 0 {
		return false
	}
	id, err := identityOf(d)
	_, finished := s.finished[id]
	delete(s.finished, id)
	return err == nil && finished
}

// finish acks the copy of a message that was finished after its channel was lost, or has it acked when it is delivered.
// It would else be handled again, and if it fails become a dead letter each time.
func (s *subscription) finish(d *delivery) {
	id, err := identityOf(d.Delivery)
	if err != nil {
		return // no copy can be recognized
	}
	if other, found := s.queued.Remove(d.key, func(other *delivery) bool {
		if !other.Redelivered || other.MessageId != d.MessageId || len(other.Body) != len(d.Body) {
			return false
		}
		otherID, err := identityOf(other.Delivery)
		return err == nil && otherID == id
	}); found {
		s.count(-len(other.Body))
		_ = other.channel.Ack(other.DeliveryTag, false) // an error means that this channel is lost, too
		return
	}
	s.finished[id] = s.losses
}

// discard forgets a channel that is lost or given up, and what was not handed over: the broker requeues it.
func (s *subscription) discard() {
	reason := "the queue was deleted"
	select {
	case err := <-s.closed:
		if err != nil {
			reason = err.Error() + adviceOnClose(err)
		}
		if err != nil && err.Server && (err.Code == amqp091.PreconditionFailed || err.Code == amqp091.ChannelError) {
			s.interrupted = "interrupted at " + time.Now().UTC().Format(time.RFC3339) + ": " + reason
		}
	default:
	}
	s.losses++
	maps.DeleteFunc(s.finished, func(_ identity, loss int) bool { return loss < s.losses-1 }) // another worker has the copy
	if s.handing {
		s.logger.InfoContext(s.consuming, "handing a partition over to another worker", "queue", s.queue)
	} else {
		level := slog.LevelWarn
		if s.session.conn.IsClosed() { // the connection has a line of its own
			level = slog.LevelDebug
		}
		s.logger.Log(s.consuming, level, "consuming was interrupted", "queue", s.queue, "reason", reason)
	}
	s.clear()
	s.closeChannel()
}

// clear removes what was not handed over, and returns its delivery tags.
func (s *subscription) clear() (tags []uint64) {
	for _, d := range s.queued.RemoveAll(func(*delivery) bool { return true }) {
		if d.cancel != nil {
			d.cancel()
		}
		s.count(-len(d.Body))
		tags = append(tags, d.DeliveryTag)
	}
	s.noteUnacked()
	return tags
}

func (s *subscription) noteUnacked() { s.unacked.Store(int64(s.queued.Len())) }

func (s *subscription) closeChannel() {
	if s.reserved {
		s.reserved = false
		<-s.inFlight
	}
	if s.channel == nil {
		return
	}
	release := s.session.bound()
	discarded := make(chan struct{})
	go func() {
		defer close(discarded)
		for range s.deliveries { // what arrives before the answer, so that the library does not keep it in memory
		}
	}()
	_ = s.channel.Close() // it is gone either way
	<-discarded
	release()
	s.channel = nil
	s.active.Store(false)
	s.consumes.Store(false)
	s.handing = false
}

// drain stops consuming, requeues what was not handed over, and waits for what is in flight, up to the drain timeout or
// until the Connection is closed and nothing can be acked any more.
func (s *subscription) drain() {
	s.stop()
	var deliveries <-chan amqp091.Delivery
	switch {
	case s.channel == nil:
	case s.requeuesAtEnd():
		s.clear()
		deliveries = s.deliveries
	default:
		s.requeue()
	}
	timeout := time.NewTimer(s.conn.config.DrainTimeout)
	defer timeout.Stop()
	for s.queued.InFlight() > 0 {
		select {
		case _, ok := <-deliveries: // it is not kept in memory, and delivered again
			if !ok {
				deliveries = nil
			}
		case r := <-s.results:
			s.settle(r)
		case <-s.conn.life.Done():
			return
		case <-timeout.C:
			s.logger.WarnContext(s.consuming, "messages are still in flight after the drain timeout, and are requeued",
				"queue", s.queue, "messages", s.queued.InFlight(), "timeout", s.conn.config.DrainTimeout)
			return
		}
	}
}

// requeuesAtEnd tells whether a drain requeues by closing the channel at its end: the next worker must not begin with a
// queue while a message is in flight here, and a quorum queue keeps the order only of what is requeued together.
func (s *subscription) requeuesAtEnd() bool {
	return s.isPartition || s.alone || s.conn.quorum
}

// requeue cancels the consumer and requeues what was not handed over.
func (s *subscription) requeue() {
	tags := s.clear()
	canceled := make(chan struct{})
	s.tasks.Go(func() {
		defer close(canceled)
		defer s.session.bound()()
		_ = s.channel.Cancel(consumerTag, false) // an error means that the channel is lost, and all is requeued
	})
	for d := range s.deliveries { // until the broker has canceled it
		tags = append(tags, d.DeliveryTag)
	}
	<-canceled
	slices.Sort(tags)
	for _, tag := range tags {
		_ = s.channel.Nack(tag, false, true) // likewise
	}
}

// end ends all that the subscription has begun. What is still in flight is abandoned, and requeued with the channel.
func (s *subscription) end() {
	s.stop()
	s.cancelMessages()
	close(s.abandoned)
	s.tasks.Wait()
	for range s.queued.InFlight() {
		<-s.inFlight
	}
	s.conn.received.add(-s.bytes)
	s.closeChannel()
	s.endTurn()
}

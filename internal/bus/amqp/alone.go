package amqp

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

const (
	// lockSuffix makes of a queue's name that of its lock.
	lockSuffix = ".reader"
	// turnInterval is how often a worker on standby counts the consumers of the queue, and turnTimeout after how long it
	// tries to take the queue although their number is the same.
	turnInterval = 500 * time.Millisecond
	turnTimeout  = 30 * time.Second
	// returnsInterval is how often it is asked whether the former consumer is gone, and returnsTimeout for how long: the consumer
	// may be that of another program.
	returnsInterval = 10 * time.Millisecond
	returnsTimeout  = 2 * time.Second
)

// Standby is the state of a Subscriber that waits for its turn.
const Standby = "standby: another worker consumes; set --partitions to share the load"

// errTaken says that another connection has what only one can have.
var errTaken = errors.New("another worker has it")

// errUnconsumed says that the worker that has the lock does not consume.
var errUnconsumed = errors.New("another worker has its lock and does not consume it")

// errStranger says that another program has the queue for itself.
var errStranger = errors.New("another program, or a worker that may not declare the lock, consumes it exclusively and gets all events")

// aloneOn tells whether one worker at a time consumes a queue by means of a lock. Partitions need none.
func (c *Connection) aloneOn(queue string) bool {
	return queue == c.consumerQueue && c.config.Partitions == 0 && !c.config.Competing
}

// lock declares a queue that only one connection can have. An exclusive consumer is not enough: quorum queues do not know
// of that, a consumer is replaced to change its prefetch, and consumers of other programs are not to be refused.
func (s *session) lock(queue string) error {
	defer s.bound()()
	channel, err := s.conn.Channel()
	if err != nil {
		return fmt.Errorf("open channel: %w", classify(err))
	}
	defer channel.Close() // the broker closes it when it refuses
	_, err = channel.QueueDeclare(queue, false, false, true, false,
		amqp091.Table{amqp091.QueueTypeArg: amqp091.QueueTypeClassic}) // a vhost may have another as its default
	return exclusive("lock queue "+queue, err)
}

// unlock lets another connection take the lock before this one ends.
func (s *session) unlock(queue string) {
	defer s.bound()()
	if channel, err := s.conn.Channel(); err == nil { // an error means that the connection is lost, and the lock with it
		_, _ = channel.QueueDelete(queue, false, false, false)
		_ = channel.Close()
	}
}

// exclusive is [errTaken] if the broker refuses something because another has it.
func exclusive(doing string, err error) error {
	answer, ok := errors.AsType[*amqp091.Error](err)
	switch {
	case err == nil:
		return nil
	case ok && (answer.Code == amqp091.ResourceLocked || // 403 is also for missing rights
		answer.Code == amqp091.AccessRefused && strings.Contains(answer.Reason, "in exclusive use")):
		return errTaken
	}
	return fmt.Errorf("%s: %w", doing, classify(err))
}

// isRefusedRight tells whether the broker refused something for lack of a right.
func isRefusedRight(err error) bool {
	answer, ok := errors.AsType[*amqp091.Error](err)
	return ok && answer.Code == amqp091.AccessRefused
}

// turn counts the subscriptions of a Connection that share its lock.
type turn struct {
	mu      sync.Mutex
	sharing int
}

// say changes what [Subscriber.Consuming] says, and tells whether that is another text.
func (s *subscription) say(state string) (changed bool) {
	old := s.state.Swap(&state)
	return old == nil || *old != state
}

// takeTurn takes the lock of the queue. Another connection gets it when this one is lost, together with what is unacked.
func (s *subscription) takeTurn(session *session) error {
	t := &s.conn.alone
	t.mu.Lock()
	defer t.mu.Unlock()
	switch err := session.lock(s.queue + lockSuffix); {
	case isRefusedRight(err):
		if !s.exclusive {
			s.exclusive = true
			s.logger.WarnContext(s.consuming, "the user may not declare the lock by which one worker consumes: this one consumes "+
				"exclusively instead, so other programs cannot consume the queue, and if it is a quorum queue, the order of an "+
				"aggregate is not kept between workers", "lock", s.queue+lockSuffix)
		}
		return nil
	case err != nil:
		return err
	}
	if !s.hasTurn {
		s.hasTurn = true
		t.sharing++
	}
	return nil
}

// awaitReturns waits until the queue has no consumer. A broker that has closed a channel removes the consumer from a quorum queue
// later, together with the return of what it had: who consumes before that gets newer messages first.
func (s *subscription) awaitReturns(channel *amqp091.Channel) error {
	s.conn.alone.mu.Lock()
	shares := s.conn.alone.sharing > 1 // the consumer is this connection's own
	s.conn.alone.mu.Unlock()
	ctx, cancel := context.WithTimeout(s.consuming, returnsTimeout)
	defer cancel()
	for !shares && ctx.Err() == nil {
		q, err := channel.QueueDeclarePassive(s.queue, true, false, false, false, nil)
		if err != nil || q.Consumers == 0 {
			return err
		}
		pause(ctx, returnsInterval)
	}
	return nil
}

// endTurn releases the lock, after the channel was closed.
func (s *subscription) endTurn() {
	t := &s.conn.alone
	t.mu.Lock()
	defer t.mu.Unlock()
	if !s.hasTurn {
		return
	}
	s.hasTurn = false
	if t.sharing--; t.sharing == 0 && s.session != nil {
		s.session.unlock(s.queue + lockSuffix)
	}
}

// awaitTurn waits until the queue has fewer consumers: the one of the worker that has the lock may be gone. To try the
// lock instead would be an error in the broker's log each time.
func (s *subscription) awaitTurn(session *session) {
	if !s.unconsumed {
		s.fault.Store(nil)
	}
	if s.say(Standby) {
		s.logger.InfoContext(s.consuming, Standby, "queue", s.queue)
	}
	ctx, cancel := context.WithTimeout(s.consuming, turnTimeout)
	defer cancel()
	for before := 1; ; {
		if pause(ctx, turnInterval); ctx.Err() != nil {
			return
		}
		n, err := session.consumers(s.queue)
		if err == nil {
			switch {
			case n > 0:
				s.fault.Store(nil)
				s.outage.Over(s.consuming, s.logger, "consuming again, by another worker", "queue", s.queue)
			case s.unconsumed: // it was not just a change of turns
				s.fault.Store(&errUnconsumed)
			}
			s.unconsumed = n == 0
		}
		if err != nil || n < before || n == 0 {
			return
		}
		before = n
	}
}

func (s *session) consumers(queue string) (int, error) {
	defer s.bound()()
	channel, err := s.conn.Channel()
	if err != nil {
		return 0, err
	}
	defer channel.Close()
	q, err := channel.QueueDeclarePassive(queue, true, false, false, false, nil)
	return q.Consumers, err
}

// isSilent tells whether nothing was received for so long that the broker may have given the queue to another worker, as
// after a freeze of this process.
func (s *session) isSilent() bool {
	read, heartbeat := s.read.Load(), s.conn.Config.Heartbeat
	return read != nil && heartbeat > 0 && time.Since(*read) > heartbeat
}

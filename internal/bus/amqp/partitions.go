package amqp

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

// MaxPartitions is the most partitions that there can be.
const MaxPartitions = 256

const (
	// leftoverInterval is how often it is looked whether a leftover queue is empty, balanceInterval how often whether
	// this worker has more than its share of the partitions.
	leftoverInterval = 50 * time.Millisecond
	balanceInterval  = 2 * time.Second
	// quietLooks is how many looks at a leftover queue have to find nothing: what the broker has just sent is in no count.
	quietLooks = 2
)

// leftovers are the queues that hold what is older than all that is published from now on: with partitions the
// contract's, and when they are left, theirs.
func (s *session) leftovers(c Config, n names) ([]string, error) {
	if c.Partitions > 0 {
		return []string{n.consumerQueue}, nil
	}
	if !c.LeavePartitions {
		return nil, nil
	}
	channel, err := s.conn.Channel()
	if err != nil {
		return nil, err
	}
	var queues []string
	for i := 0; ; i++ {
		_, err := channel.QueueDeclarePassive(n.partition(i), true, false, false, false, nil)
		if answer, ok := errors.AsType[*amqp091.Error](err); ok && answer.Code == amqp091.NotFound {
			return queues, nil
		}
		if err != nil {
			return nil, err
		}
		queues = append(queues, n.partition(i))
	}
}

// share is what the subscriptions to the topics of a Connection have in common.
type share struct {
	partitions int
	// slots has one element for each message in hand.
	slots chan struct{}

	mu      sync.Mutex
	active  int             // partitions that deliver to this Subscriber
	old     []string        // leftover queues not known to be empty
	settled context.Context //nolint:containedctx // done when all leftover queues were empty once
	settle  context.CancelFunc
}

// newShare returns nil where there is but one topic.
func newShare(c *Connection) *share {
	if len(c.Topics()) == 1 {
		return nil
	}
	s := &share{
		partitions: c.config.Partitions, slots: make(chan struct{}, c.config.Concurrency), old: slices.Clone(c.leftovers),
	}
	s.settled, s.settle = context.WithCancel(context.WithoutCancel(c.life))
	return s
}

// isOld tells whether a queue is a leftover not known to be empty.
func (s *share) isOld(queue string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.old, queue)
}

// empty notes that a leftover queue is empty. The last one lets the other queues be consumed.
func (s *share) empty(queue string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.old = slices.DeleteFunc(s.old, func(old string) bool { return old == queue })
	if len(s.old) == 0 {
		s.settle()
	}
}

// gain and lose count the partitions that deliver to this Subscriber: the broker has one worker alone consume each.
func (s *share) gain() { s.count(1) }
func (s *share) lose() { s.count(-1) }

func (s *share) count(change int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active += change
}

// yield tells whether a partition is to be handed on to another of so many workers that consume it or wait to: if this one
// has more than its share. If so, it counts as lost.
func (s *share) yield(workers int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	fair := (s.partitions + workers - 1) / max(1, workers)
	if s.partitions == 0 || s.active <= fair {
		return false
	}
	s.active--
	return true
}

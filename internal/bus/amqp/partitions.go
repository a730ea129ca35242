package amqp

import (
	"context"
	"slices"
	"sync"
	"time"
)

// MaxPartitions is the most partitions that there can be.
const MaxPartitions = 256

const (
	// leftoverInterval is how often a leftover queue is polled until it is empty, rebalanceInterval how often this worker
	// checks whether it has more than its share of the partitions.
	leftoverInterval  = 50 * time.Millisecond
	rebalanceInterval = 2 * time.Second
	// emptyPolls is how many polls in a row must find a queue empty. A delivery that is under way is in no count: it may
	// arrive after the answer to the first poll, right before that to the second, and is found by the third.
	emptyPolls = 3
)

// findLeftovers returns the queues that hold what is older than all that is published from now on: with partitions the
// contract's, and when they are left, theirs.
func (c *Connection) findLeftovers(s *session) ([]string, error) {
	if c.partitions > 0 {
		return []string{c.consumerQueue}, nil
	}
	if !c.leavePartitions {
		return nil, nil
	}
	channel, err := s.conn.Channel()
	if err != nil {
		return nil, err
	}
	var queues []string
	for i := 0; ; i++ {
		_, err := channel.QueueDeclarePassive(c.partition(i), true, false, false, false, nil)
		if isNotFound(err) { // which has closed the channel
			return queues, nil
		}
		if err != nil {
			return nil, err
		}
		queues = append(queues, c.partition(i))
	}
}

// partitions coordinates the subscriptions of a Subscriber to several queues: the leftovers are emptied before the others
// are consumed, and each worker has its share of the partitions. The broker makes one worker alone consume a partition;
// the others wait in line.
type partitions struct {
	conn     *Connection
	inFlight chan struct{}   // has one element for each message in flight
	emptied  context.Context //nolint:containedctx // done once all leftovers were empty
	setEmpty context.CancelFunc

	mu            sync.Mutex
	leftovers     []string // not known to be empty
	subscriptions []*subscription
}

// newPartitions returns nil where there is but one queue.
func newPartitions(c *Connection) *partitions {
	if len(c.leftovers) == 0 {
		return nil
	}
	p := &partitions{conn: c, inFlight: make(chan struct{}, c.config.Concurrency), leftovers: slices.Clone(c.leftovers)}
	p.emptied, p.setEmpty = context.WithCancel(context.WithoutCancel(c.life))
	return p
}

// join makes a subscription one of these.
func (p *partitions) join(s *subscription) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.inFlight = p.inFlight
	if !slices.Contains(p.leftovers, s.queue) {
		s.begin = p.emptied.Done()
	}
	p.subscriptions = append(p.subscriptions, s)
}

func (p *partitions) leave(s *subscription) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.subscriptions = slices.DeleteFunc(p.subscriptions, func(other *subscription) bool { return other == s })
}

// supervise runs while a subscription does. With partitions there is one subscription to the contract's queue, which is a
// leftover first; its supervisor then rebalances the partitions.
func (p *partitions) supervise(s *subscription) {
	if !slices.Contains(p.conn.leftovers, s.queue) || !p.awaitEmpty(s) || p.conn.partitions == 0 {
		return
	}
	for {
		pause(s.consuming, rebalanceInterval)
		if s.consuming.Err() != nil {
			return
		}
		p.rebalance(s.consuming)
	}
}

// awaitEmpty polls a leftover queue until it is empty. It returns false if the subscription ends first.
func (p *partitions) awaitEmpty(s *subscription) bool {
	for quiet := 0; quiet < emptyPolls; {
		pause(s.consuming, leftoverInterval)
		empty := false
		if !s.do(s.consuming, func() { empty = s.isEmpty() }) {
			return false
		}
		if quiet++; !empty {
			quiet = 0
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.leftovers, s.queue); i >= 0 {
		s.logger.InfoContext(s.consuming, "the leftover queue is empty", "queue", s.queue)
		p.leftovers = slices.Delete(p.leftovers, i, i+1)
	}
	if len(p.leftovers) == 0 {
		p.setEmpty()
	}
	return true
}

// rebalance makes this worker hand over the partitions beyond its share.
func (p *partitions) rebalance(ctx context.Context) {
	p.mu.Lock()
	active := slices.DeleteFunc(slices.Clone(p.subscriptions), func(s *subscription) bool {
		return !s.isPartition || !s.active.Load()
	})
	p.mu.Unlock()
	if len(active) == 0 {
		return
	}
	// Each worker consumes the contract's queue, and not every queue counts the consumers that wait in line.
	depths, err := p.conn.inspect(ctx, p.conn.consumerQueue)
	if err != nil {
		return
	}
	workers := max(1, depths[0].Consumers)
	share := (p.conn.partitions + workers - 1) / workers
	ctx, cancel := context.WithTimeout(ctx, rebalanceInterval) // the others are not to wait for long
	defer cancel()
	for _, s := range active[min(share, len(active)):] {
		s.do(ctx, s.giveUp)
	}
}

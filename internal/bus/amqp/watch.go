package amqp

import (
	"context"
	"fmt"
	"time"
)

// Watcher is told how the broker fares. Its methods are called by many goroutines, for each message: they are to be quick.
type Watcher interface {
	// Confirmed tells how long the broker took to confirm a message, from when it was sent.
	Confirmed(took time.Duration)
	// ConnectionLost tells that the connection to "publish" or the one to "consume" was lost.
	ConnectionLost(connection string)
}

type nobody struct{}

func (nobody) Confirmed(time.Duration) {}
func (nobody) ConnectionLost(string)   {}

// QueueDepth is what a queue holds ready to be delivered, and by how many it is consumed.
type QueueDepth struct {
	Queue               string
	Messages, Consumers int
}

// Depths looks at the queues of [Connection.Topics], those of [Config.RetryLater] and the failed queue, the last of all.
// It waits for no longer than ctx lives. A queue that is not there is an error.
func (c *Connection) Depths(ctx context.Context) ([]QueueDepth, error) {
	queues := c.Topics()
	for _, wait := range c.config.RetryLater {
		queues = append(queues, c.names.retryQueue(wait))
	}
	return c.inspect(ctx, append(queues, c.names.failedQueue)...)
}

// inspect is Depths of some queues.
func (c *Connection) inspect(ctx context.Context, queues ...string) ([]QueueDepth, error) {
	type answer struct {
		depths []QueueDepth
		err    error
	}
	answers := make(chan answer, 1)
	if !c.spawn(func() {
		depths, err := c.depths(ctx, queues)
		answers <- answer{depths, err}
	}) {
		return nil, fmt.Errorf("look at the queues: %w", ErrClosed)
	}
	select {
	case a := <-answers:
		return a.depths, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("look at the queues: %w", context.Cause(ctx))
	}
}

func (c *Connection) depths(ctx context.Context, queues []string) ([]QueueDepth, error) {
	link := c.publishing
	if link.ready() != nil && !c.window.full() { // a broker that blocks publishers still answers consumers
		link = c.consuming
	}
	session, err := link.session(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("look at the queues: %w", err)
	}
	defer session.bound()()
	channel, err := session.conn.Channel()
	if err != nil {
		return nil, fmt.Errorf("look at the queues: open channel: %w", classify(err))
	}
	defer channel.Close()
	depths := make([]QueueDepth, 0, len(queues))
	for _, name := range queues {
		q, err := channel.QueueDeclarePassive(name, true, false, false, false, nil)
		if err != nil {
			return nil, fmt.Errorf("look at queue %q: %w", name, classify(err))
		}
		depths = append(depths, QueueDepth{Queue: name, Messages: q.Messages, Consumers: q.Consumers})
	}
	return depths, nil
}

// Up tells of the connections to "publish" and to "consume" whether they stand and are not blocked.
func (c *Connection) Up() map[string]bool {
	return map[string]bool{
		c.publishing.purpose: c.publishing.ready() == nil,
		c.consuming.purpose:  c.consuming.ready() == nil,
	}
}

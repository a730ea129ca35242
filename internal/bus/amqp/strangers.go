package amqp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/healz/worker/internal/observe"
)

// consumersInterval is how often the consumers of the queue are counted.
const consumersInterval = 5 * time.Second

// strangersTimeout bounds the requests to the management API for the names of consumers.
const strangersTimeout = 5 * time.Second

// ErrSplit says that each event reaches the workers or others, and not both. The order of an aggregate is not kept between them.
var ErrSplit = errors.New("events are split between the workers and others, without their order")

// AdviceOnSplit says what to do about [ErrSplit].
const AdviceOnSplit = "give the other program a queue of its own, bound to the exchange, or, if it is a worker, a --service of its own; " +
	"workers of one service share the load by --partitions"

// Split says who else consumes the queue of the workers, so that each event reaches only one of them; nil if nobody is known to.
func (c *Connection) Split() error {
	if err := c.split.Load(); err != nil {
		return *err
	}
	return nil
}

// WatchConsumers keeps [Connection.Split] up to date, and logs its changes, until the Connection is closed.
func (c *Connection) WatchConsumers(ctx context.Context) { c.watchConsumers(ctx, consumersInterval) }

func (c *Connection) watchConsumers(ctx context.Context, interval time.Duration) {
	if c.partitions > 0 {
		return // the workers have further queues, which nobody else knows
	}
	c.spawn(func() {
		ctx, cancel := c.whileOpen(context.WithoutCancel(ctx))
		defer cancel()
		var outage observe.Outage
		for before := 0; ctx.Err() == nil; pause(ctx, interval) {
			n, err := c.others(ctx)
			if err != nil {
				continue // what is known stays; the connection has a line of its own
			}
			if before > 0 && n > 0 { // it is not just a worker that takes over from another
				err := SplitBetween(ctx, c.config, n)
				outage.Fails(ctx, c.config.Logger, slog.LevelWarn, "another program consumes the queue of the workers",
					"error", err, "advice", AdviceOnSplit)
				c.split.Store(&err)
			} else if n == 0 {
				c.split.Store(nil)
				outage.Over(ctx, c.config.Logger, "no other program consumes the queue of the workers any more")
			}
			before = n
		}
	})
}

// others counts the consumers of the queue besides that of the one worker that consumes it. Where several do, the management API
// tells them apart.
func (c *Connection) others(ctx context.Context) (int, error) {
	if c.config.Competing {
		names, err := Strangers(ctx, c.config)
		return len(names), err
	}
	depths, err := c.inspect(ctx, c.consumerQueue)
	if err != nil {
		return 0, err
	}
	return max(0, depths[0].Consumers-1), nil
}

// SplitBetween wraps [ErrSplit] with how many consumers the queue has besides the worker's, and their names as far as the
// management API knows them.
func SplitBetween(ctx context.Context, c Config, others int) error {
	c = c.withDefaults()
	plural, who := "s", "other programs, or workers with --competing-consumers"
	if others == 1 {
		plural, who = "", "another program, or a worker with --competing-consumers"
	}
	if names, err := Strangers(ctx, c); err == nil && len(names) > 0 {
		who = strings.Join(names, ", ")
	}
	return fmt.Errorf("%w: queue %s has %d other consumer%s: %s", ErrSplit, c.Queue(), others, plural, who)
}

// Strangers asks the management API for the consumers of the queue that are no workers.
func Strangers(ctx context.Context, c Config) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, strangersTimeout)
	defer cancel()
	m, err := newManagement(c)
	if err != nil {
		return nil, err
	}
	defer m.client.CloseIdleConnections()
	var queue struct {
		Consumers []struct {
			Tag     string `json:"consumer_tag"`
			Channel struct {
				Connection string `json:"connection_name"`
				User       string `json:"user"`
			} `json:"channel_details"`
		} `json:"consumer_details"`
	}
	found, err := m.get(ctx, &queue, "queues", m.vhost, c.Queue())
	if err != nil || !found {
		return nil, err
	}
	var names []string
	for _, consumer := range queue.Consumers {
		if consumer.Tag != consumerTag {
			names = append(names, m.nameOf(ctx, consumer.Channel.Connection, consumer.Channel.User))
		}
	}
	return names, nil
}

// nameOf names the program at the other end of a connection.
func (m *management) nameOf(ctx context.Context, connection, user string) string {
	from, _, _ := strings.Cut(connection, " -> ")
	var details struct {
		Name string `json:"user_provided_name"`
	}
	name := fmt.Sprintf("user %s at %s", user, from)
	if found, err := m.get(ctx, &details, "connections", connection); err == nil && found && details.Name != "" {
		name = fmt.Sprintf("%q (%s)", details.Name, name)
	}
	return name
}

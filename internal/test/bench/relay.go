package bench

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/lease"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/relay"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/worker"
)

// fillSQL puts so many events into a migrated database.
//
//go:embed fill.sql
var fillSQL string

// relayPatience is as the worker's.
const relayPatience = 15 * time.Second

// fill puts n events into a migrated database, in one transaction.
func fill(ctx context.Context, address string, n int) error {
	if err := execute(ctx, address, fmt.Sprintf(fillSQL, n)); err != nil {
		return fmt.Errorf("fill the table: %w", err)
	}
	return execute(ctx, address, "VACUUM ANALYZE events")
}

// measureRelay measures how fast a backlog goes from the store to the broker.
func measureRelay(ctx context.Context, s *stage) error {
	if !s.wants("relay") {
		return nil
	}
	raw, err := s.newRawPublisher(ctx)
	if err != nil {
		return err
	}
	stock, err := s.stockRelay(ctx)
	if err != nil {
		return err
	}
	settings, backend, err := s.newStore(ctx)
	if err != nil {
		return err
	}
	if err := fill(ctx, settings.DatabaseURL, s.config.Backlog); err != nil {
		return err
	}
	ours, err := s.ownRelay(ctx, settings, backend)
	if err != nil {
		return err
	}
	return s.measureRate(ctx, rate{
		name: "relay", what: fmt.Sprintf("relay, store to broker, of a backlog of %s", thousands(int64(s.config.Backlog))),
		reach: 0.8, step: settings.Relay.BatchSize, stockStep: 1, most: s.config.Backlog,
	}, contenders{
		raw:   s.rawPublishing(raw, bare),
		stock: stock,
		ours:  ours,
	})
}

// ownRelay relays, each time from the beginning of the backlog, until n events are confirmed.
func (s *stage) ownRelay(ctx context.Context, settings worker.Settings, backend worker.Backend) (contender, error) {
	publisher, queue, err := s.ownPublisher(ctx)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, n int) (_ spent, err error) {
		tail, err := backend.Tail(ctx, store.TailConfig{BatchSize: settings.Relay.BatchSize, Start: store.StartBeginning})
		if err != nil {
			return spent{}, err
		}
		defer func() { err = errors.Join(err, tail.Close()) }()
		if err := execute(ctx, settings.DatabaseURL, "UPDATE relay_position SET transaction_id = '0', id = 0"); err != nil {
			return spent{}, err
		}
		counted := &countedPublisher{publisher: publisher, count: newCount(n)}
		r := relay.New(tail, lease.New(tail, store.RelayTask), counted, relay.Config{
			Observer: observe.None{},
			Poll:     settings.Tuning.RelayPoll, Patience: relayPatience, Refused: deadletter.NewTable(backend.SQL()),
		}, logger())
		stop := spending()
		go r.Run(ctx)
		_, err = counted.count.wait(ctx)
		took := stop()
		r.Stop(ctx)
		return took, errors.Join(err, s.empty(queue))
	}, nil
}

// whileRouting does something while the router runs.
func whileRouting(
	ctx context.Context, router *message.Router, do func(context.Context) (spent, error),
) (spent, error) {
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		defer stop()
		ended <- router.Run(ctx)
	}()
	select {
	case <-router.Running():
	case <-running.Done():
		return spent{}, <-ended
	}
	took, err := do(running)
	return took, errors.Join(err, router.Close(), <-ended)
}

// stockRelay forwards a backlog, from where the last turn has stopped.
func (s *stage) stockRelay(ctx context.Context) (contender, error) {
	db, err := s.stockDatabase(ctx)
	if err != nil {
		return nil, err
	}
	publisher, queue, err := s.stockPublisher()
	if err != nil {
		return nil, err
	}
	schema := wsql.DefaultPostgreSQLSchema{}
	outbox, err := wsql.NewPublisher(db, wsql.PublisherConfig{SchemaAdapter: schema, AutoInitializeSchema: true}, stockLogger())
	if err != nil {
		return nil, err
	}
	into := forwarder.NewPublisher(outbox, forwarder.PublisherConfig{})
	backlog, err := samples(min(s.config.Backlog, mostQueued))
	if err != nil {
		return nil, err
	}
	messages, err := stockMessages(backlog)
	if err != nil {
		return nil, err
	}
	for batch := range slices.Chunk(messages, window) {
		if err := into.Publish(queue, batch...); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context, n int) (spent, error) {
		subscriber, err := wsql.NewSubscriber(db, wsql.SubscriberConfig{
			SchemaAdapter: schema, OffsetsAdapter: wsql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true,
		}, stockLogger())
		if err != nil {
			return spent{}, err
		}
		counted := &countedStock{Publisher: publisher, count: newCount(n)}
		f, err := forwarder.NewForwarder(subscriber, counted, stockLogger(), forwarder.Config{})
		if err != nil {
			return spent{}, err
		}
		ended := make(chan error, 1)
		stop := spending()
		go func() { ended <- f.Run(ctx) }()
		_, err = counted.count.wait(ctx)
		took := stop()
		return took, errors.Join(err, f.Close(), <-ended, s.empty(queue))
	}, nil
}

// count tells when so many of something have happened.
type count struct {
	mu   sync.Mutex
	left int
	stop func() spent // begun at the first
	took spent        // from the first to the last
	done chan struct{}
}

func newCount(n int) *count { return &count{left: n, done: make(chan struct{})} }

func (c *count) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stop == nil {
		c.stop = spending()
	}
	if c.left > 0 && c.left <= n {
		c.took = c.stop()
		close(c.done)
	}
	c.left -= n
}

// wait returns what was used from the first to the last.
func (c *count) wait(ctx context.Context) (spent, error) {
	select {
	case <-c.done:
		return c.took, nil
	case <-ctx.Done():
		return spent{}, context.Cause(ctx)
	}
}

// countedPublisher counts what is confirmed.
type countedPublisher struct {
	publisher bus.BatchPublisher
	count     *count
}

func (p *countedPublisher) PublishBatch(ctx context.Context, batch []*message.Message) error {
	err := p.publisher.PublishBatch(ctx, batch)
	if err == nil {
		p.count.add(len(batch))
	}
	return err
}

// countedStock is the same for Watermill's own. It is closed by the forwarder's router and stays open for the next turn.
type countedStock struct {
	message.Publisher
	count *count
}

func (p *countedStock) Publish(topic string, messages ...*message.Message) error {
	err := p.Publisher.Publish(topic, messages...)
	if err == nil {
		p.count.add(len(messages))
	}
	return err
}

func (*countedStock) Close() error { return nil }

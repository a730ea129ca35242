package bench

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	wamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/worker"
)

const (
	// paceInterval is the time between two appends in the rows on latency: 200 a second.
	paceInterval = 5 * time.Millisecond
	// latencyTurns is how many turns' time a turn on latency takes, for enough figures.
	latencyTurns = 3
)

// line is one way from an append to a handler. append is called by many at once; arrived is called by the handler's side.
type line struct {
	append func(context.Context, events.Event) error
	watch  *stopwatch
}

// stopwatch takes the time of each event from its append to its handler.
type stopwatch struct {
	mu      sync.Mutex
	begun   map[uuid.UUID]time.Time
	took    []time.Duration
	arrived chan struct{}
}

func newStopwatch() *stopwatch {
	return &stopwatch{begun: map[uuid.UUID]time.Time{}, arrived: make(chan struct{}, 1)}
}

func (w *stopwatch) start(id uuid.UUID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begun[id] = time.Now()
}

func (w *stopwatch) stop(id uuid.UUID) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	began, found := w.begun[id]
	if !found {
		return // delivered a second time
	}
	delete(w.begun, id)
	w.took = append(w.took, now.Sub(began))
	if len(w.begun) == 0 {
		select {
		case w.arrived <- struct{}{}:
		default:
		}
	}
}

// take returns the times since the last call, sorted, once everything has arrived.
func (w *stopwatch) take(ctx context.Context) ([]time.Duration, error) {
	for {
		w.mu.Lock()
		if len(w.begun) == 0 {
			took := w.took
			w.took = nil
			w.mu.Unlock()
			slices.Sort(took)
			return took, nil
		}
		w.mu.Unlock()
		select {
		case <-w.arrived:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// measureLatency measures the time from an append to the handler at 200 events a second.
func measureLatency(ctx context.Context, s *stage) (err error) {
	if !s.wantsAny("latency-p50", "latency-p99") {
		return nil
	}
	raw, err := s.rawLine(ctx)
	if err != nil {
		return err
	}
	stock, stopStock, err := s.stockLine(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopStock()) }()
	settings, _, err := s.newStore(ctx)
	if err != nil {
		return err
	}
	watch := newStopwatch()
	ours, stopOurs, err := s.ownLine(ctx, settings, func(_ context.Context, e events.Event, _ booked) ([]events.Event, error) {
		watch.stop(e.ID)
		return nil, nil
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopOurs()) }()

	p50 := &Row{
		Name: "latency-p50", What: "append to handler at 200 events/s, median", Unit: "ms", LessIsBetter: true, Limit: 5, Reach: 2,
	}
	p99 := &Row{
		Name: "latency-p99", What: "append to handler at 200 events/s, 99th percentile", Unit: "ms", LessIsBetter: true, Limit: 25,
	}
	lines := []struct {
		line
		p50, p99 *Series
	}{
		{raw, &p50.Raw, &p99.Raw},
		{stock, &p50.Stock, &p99.Stock},
		{line{ours.Append, watch}, &p50.Ours, &p99.Ours},
	}
	for round := range s.config.Rounds + 1 { // the first one warms up
		for i := range lines {
			l := lines[(i+round)%len(lines)]
			took, err := l.turn(ctx, s.config.Turn*latencyTurns)
			if err != nil {
				return err
			}
			if round > 0 {
				*l.p50 = append(*l.p50, milliseconds(took[len(took)/2]))
				*l.p99 = append(*l.p99, milliseconds(took[len(took)*99/100]))
			}
		}
	}
	s.add(p50)
	s.add(p99)
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// turn appends at the pace for as long as d, and waits for all to arrive. An append that takes its time delays no other.
func (l line) turn(ctx context.Context, d time.Duration) ([]time.Duration, error) {
	list, err := samples(max(10, int(d/paceInterval)))
	if err != nil {
		return nil, err
	}
	for i := range list { // each an aggregate of its own, as nobody waits for the one before
		list[i].AggregateID, list[i].AggregateVersion = list[i].ID, 1
	}
	ticker := time.NewTicker(paceInterval)
	defer ticker.Stop()
	group, ctx := errgroup.WithContext(ctx)
	for _, e := range list {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), group.Wait())
		}
		group.Go(func() error {
			l.watch.start(e.ID)
			return l.append(ctx, e)
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return l.watch.take(context.WithoutCancel(ctx))
}

// rawLine inserts, publishes with a confirm, and consumes, without an outbox between them.
func (s *stage) rawLine(ctx context.Context) (line, error) {
	pool, err := s.rawDatabase(ctx)
	if err != nil {
		return line{}, err
	}
	prefix, err := s.newTopology(ctx)
	if err != nil {
		return line{}, err
	}
	publisher, err := s.channel()
	if err != nil {
		return line{}, err
	}
	if err := publisher.Confirm(false); err != nil {
		return line{}, err
	}
	consumer, err := s.channel()
	if err != nil {
		return line{}, err
	}
	if err := consumer.Qos(rawPrefetch, 0, false); err != nil {
		return line{}, err
	}
	deliveries, err := consumer.Consume(prefix+".consumer", handlerName, false, false, false, false, nil)
	if err != nil {
		return line{}, err
	}
	watch := newStopwatch()
	var consuming errgroup.Group
	consuming.Go(func() error {
		for d := range deliveries {
			var e struct {
				ID uuid.UUID `json:"event_id"`
			}
			if err := json.Unmarshal(d.Body, &e); err != nil {
				return err
			}
			watch.stop(e.ID)
			if err := d.Ack(false); err != nil {
				return err
			}
		}
		return nil
	})
	s.onEnd(func() error { return errors.Join(consumer.Cancel(handlerName, false), consuming.Wait()) })
	return line{watch: watch, append: func(ctx context.Context, e events.Event) error {
		if _, err := pool.Exec(ctx, insertSQL, insertArgs(e)...); err != nil {
			return err
		}
		body, err := e.MarshalJSON()
		if err != nil {
			return err
		}
		confirm, err := publisher.PublishWithDeferredConfirm(prefix, e.Type, false, false, publishing(body))
		if err != nil {
			return err
		}
		if confirmed, err := confirm.WaitContext(ctx); err != nil || !confirmed {
			return errors.Join(err, errors.New("the raw publisher got no confirm"))
		}
		return nil
	}}, nil
}

// ownLine runs a worker on a database, with one handler, until stop is called.
func (s *stage) ownLine(
	ctx context.Context, settings worker.Settings, handle func(context.Context, events.Event, booked) ([]events.Event, error),
) (b worker.Backend, stop func() error, err error) {
	if settings.AMQP.Prefix, err = s.newTopology(ctx); err != nil {
		return nil, nil, err
	}
	settings.AMQP.URL = s.broker
	if b, err = settings.OpenStore(ctx); err != nil {
		return nil, nil, err
	}
	s.onEnd(b.Close)
	w, closeParts, err := worker.Open(ctx, settings, worker.OpenOptions{
		Register: func(reg *handlers.Registry) { handlers.On(reg, eventType, handlerName, handle) },
		Logger:   logger(),
	})
	if err != nil {
		return nil, nil, err
	}
	running, end := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- w.Run(running) }()
	return b, func() error {
		end()
		return errors.Join(<-ended, closeParts())
	}, nil
}

// stockLine appends with watermill-sql, forwards with the forwarder, and consumes with the router.
func (s *stage) stockLine(ctx context.Context) (line, func() error, error) {
	watch := newStopwatch()
	assembly, err := s.newStockAssembly(ctx, func(_ context.Context, m *message.Message) error {
		e, err := events.Parse(m.Payload)
		if err == nil {
			watch.stop(e.ID)
		}
		return err
	})
	if err != nil {
		return line{}, nil, err
	}
	return line{watch: watch, append: func(_ context.Context, e events.Event) error { return assembly.append(e) }}, assembly.stop, nil
}

// stockAssembly is what Watermill's parts with their defaults make of an outbox, a broker and a handler.
type stockAssembly struct {
	append func(events.Event) error
	stop   func() error
}

func (s *stage) newStockAssembly(
	ctx context.Context, handle func(context.Context, *message.Message) error,
) (*stockAssembly, error) {
	db, err := s.stockDatabase(ctx)
	if err != nil {
		return nil, err
	}
	schema := wsql.DefaultPostgreSQLSchema{}
	outbox, err := wsql.NewPublisher(db, wsql.PublisherConfig{SchemaAdapter: schema, AutoInitializeSchema: true}, stockLogger())
	if err != nil {
		return nil, err
	}
	tail, err := wsql.NewSubscriber(db, wsql.SubscriberConfig{
		SchemaAdapter: schema, OffsetsAdapter: wsql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true,
	}, stockLogger())
	if err != nil {
		return nil, err
	}
	publisher, queue, err := s.stockPublisher()
	if err != nil {
		return nil, err
	}
	forward, err := forwarder.NewForwarder(tail, publisher, stockLogger(), forwarder.Config{})
	if err != nil {
		return nil, err
	}
	subscriber, err := wamqp.NewSubscriber(wamqp.NewDurableQueueConfig(s.broker), stockLogger())
	if err != nil {
		return nil, err
	}
	router, err := message.NewRouter(message.RouterConfig{}, stockLogger())
	if err != nil {
		return nil, err
	}
	//nolint:contextcheck // the message carries the context
	router.AddConsumerHandler(handlerName, queue, subscriber, func(m *message.Message) error { return handle(m.Context(), m) })
	var running errgroup.Group
	running.Go(func() error { return forward.Run(ctx) })
	running.Go(func() error { return router.Run(ctx) })
	into := forwarder.NewPublisher(outbox, forwarder.PublisherConfig{})
	return &stockAssembly{
		append: func(e events.Event) error {
			body, err := e.MarshalJSON()
			if err != nil {
				return err
			}
			return into.Publish(queue, message.NewMessage(e.ID.String(), message.Payload(body)))
		},
		stop: func() error { return errors.Join(forward.Close(), router.Close(), running.Wait()) },
	}, nil
}

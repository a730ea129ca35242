// Package worker assembles store, relay, bus, router and handlers. It starts them in their order, checks their health, and
// stops them in the reverse order.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	wmiddleware "github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/jackc/pgx/v5"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/lease"
	"github.com/healz/worker/internal/metrics"
	"github.com/healz/worker/internal/middleware"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/relay"
	"github.com/healz/worker/internal/store"
)

const (
	// relayPatience is how long the relay tries to publish to a broker that confirms nothing.
	relayPatience = 15 * time.Second
	// closeTimeout bounds the router's own close, when only handlers that ignore their context still run.
	closeTimeout = time.Second
)

// Bus is what the worker needs of either bus.
type Bus interface {
	bus.BatchPublisher
	message.Subscriber
	// Topics are to be subscribed to, once each, to get every event once.
	Topics() []string
	// Ready is nil if the bus can carry events at the moment.
	Ready() error
	// Consuming says more about a consumer that works, as that it is on standby, which may be "", or why it does not.
	Consuming() (state string, err error)
}

// Inbox is what the worker needs of a store, besides its tail.
type Inbox interface {
	handlers.Inbox
	PruneHandled(ctx context.Context, age time.Duration, limit int) (int, error)
	Ping(ctx context.Context) error
}

// Streams is the store for programs and their handlers.
type Streams interface {
	events.Streams
	// AppendTx appends in a transaction of the caller's own. On SQLite it is an error.
	AppendTx(ctx context.Context, tx pgx.Tx, batch []events.Event) error
}

// Ingester takes dead letters from a broker into the table until ctx is done.
type Ingester interface{ Run(ctx context.Context) }

// Parts are what a worker is made of. The caller opens them and closes them after [Worker.Run].
type Parts struct {
	Inbox    Inbox
	Streams  Streams
	Tail     *store.Tail
	Bus      Bus
	Sink     deadletter.Sink
	Handlers *handlers.Registry
	// InboxRetention is how long the inbox keeps its records; 0 is for ever.
	InboxRetention time.Duration
	// Letters is the table of dead letters, and Replays puts those on the bus that are replayed: the bus itself if it is
	// nil. Ingester takes dead letters from a broker into the table; nil is none.
	Letters  *deadletter.Table
	Replays  deadletter.Publisher
	Ingester Ingester
	// IngestTask is the task of the lease for the Ingester.
	IngestTask string
	// LetterRetention is how long letters are kept that were archived, discarded or handled; 0 is for ever.
	LetterRetention time.Duration
	// Embedded tells that the bus is inside the process: its batches are in flight until they are handled.
	Embedded bool
	// Observers are told what the worker does, as Metrics are, which may be nil.
	Observers observe.All
	Metrics   *metrics.Metrics
}

// Worker consumes events and relays those of the store. A worker runs once.
type Worker struct {
	parts     Parts
	tuning    Tuning
	logger    *slog.Logger
	routerLog *slog.Logger // quiet while the worker stops
	lease     *lease.Lease // of the relay, the replays and the pruning
	relay     *relay.Relay
	replayer  *deadletter.Replayer
	dispatch  *handlers.Dispatcher
	observer  observe.Observer
	counts    observe.Counts
	outages   middleware.Outages
	sources   metrics.Sources

	stopping chan struct{}
	replayed chan struct{}   // closed when the replayer has ended
	ended    context.Context //nolint:containedctx // the end of the grace period, which cancels what still runs
	end      context.CancelFunc

	mu       sync.Mutex
	consumer error
	since    map[string]time.Time // when a part was first seen not to be ok
	ping     *ping                // the ping that has no answer yet, if there is one
}

// New assembles a worker. It fails with all that is wrong with the handlers' registrations.
func New(ctx context.Context, parts Parts, tuning Tuning, logger *slog.Logger) (*Worker, error) {
	base := logger.Handler()
	logger = slog.New(contextLog{Handler: base})
	w := &Worker{
		parts: parts, tuning: tuning, logger: logger, stopping: make(chan struct{}), replayed: make(chan struct{}),
		since:    map[string]time.Time{},
		consumer: errors.New("not started"), outages: middleware.Outages{Patience: middleware.DefaultPatience},
	}
	w.routerLog = slog.New(contextLog{base, w.stopping})
	w.ended, w.end = context.WithCancel(context.WithoutCancel(ctx))
	observers := append(slices.Clone(parts.Observers), &w.counts)
	if parts.Metrics != nil {
		parts.Metrics.Handlers(parts.Handlers.EventTypes())
		observers = append(observers, parts.Metrics)
	}
	w.observer = observers
	config := relay.Config{Poll: tuning.RelayPoll, Refused: parts.Letters, Observer: w.observer, Release: w.replayed}
	if !parts.Embedded {
		config.Patience = relayPatience
	}
	replays := parts.Replays
	if replays == nil {
		replays = deadletter.BusPublisher{BatchPublisher: observe.Publisher{Next: parts.Bus, Observer: parts.Observers}}
	}
	w.replayer = deadletter.NewReplayer(parts.Letters, replays, logger)
	w.lease = lease.New(parts.Tail, store.RelayTask)
	w.relay = relay.New(parts.Tail, w.lease, observe.Publisher{Next: parts.Bus, Observer: w.observer}, config, logger)
	var err error
	w.dispatch, err = handlers.NewDispatcher(parts.Handlers, handlers.Config{
		Inbox: parts.Inbox, Streams: parts.Streams, Letters: parts.Letters, After: tuning.AfterDeadLetter, Retry: w.retry(),
		Timeout: tuning.HandlerTimeout, MaxMessage: tuning.MaxMessage, Observer: w.observer, Logger: logger,
	})
	return w, err
}

// Streams is the store of an opened worker.
func (w *Worker) Streams() Streams { return w.parts.Streams }

func (w *Worker) retry() middleware.Retry {
	return middleware.Retry{
		Attempts: w.tuning.RetryAttempts, Initial: w.tuning.RetryInitial, Max: w.tuning.RetryMax,
		Lifetime: w.lifetime(), Logger: w.logger, Outages: &w.outages,
	}
}

func (w *Worker) lifetime() middleware.Lifetime {
	return middleware.Lifetime{Stopping: w.stopping, Ended: w.ended}
}

// Run works until ctx is done. Then it stops: it begins no new message, lets those in flight finish for up to the grace
// period, gives back the others, and returns nil. An error tells why the worker cannot work at all.
func (w *Worker) Run(ctx context.Context) error {
	defer w.end()
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: closeTimeout}, w.routerLogger())
	if err != nil {
		return fmt.Errorf("make the router: %w", err)
	}
	consumers := w.addConsumers(router)

	running := context.WithoutCancel(ctx) // the router is stopped in order, not by its context
	var background sync.WaitGroup
	defer background.Wait()
	routerDone := make(chan error, 1)
	background.Go(func() { routerDone <- router.Run(running) })
	select {
	case <-router.Running():
	case err := <-routerDone:
		return errors.Join(fmt.Errorf("start consuming: %w", err), router.Close())
	}
	w.setConsumer(nil)
	background.Go(func() { w.relay.Run(w.ended) })
	side, stopSide := context.WithCancel(running)
	defer stopSide()
	asLeader := func(work func(context.Context)) {
		background.Go(func() { w.lease.Do(side, work) })
	}
	background.Go(func() { // a letter in flight is finished at a stop
		defer close(w.replayed)
		w.replay(side)
	})
	if w.parts.Ingester != nil {
		// The broker has one consumer of dead letters, too: while the store is unavailable it keeps them, and requeues none.
		background.Go(func() { lease.New(w.parts.Tail, w.parts.IngestTask).RunUntilTaken(side, w.parts.Ingester.Run) })
	}
	if w.parts.InboxRetention > 0 {
		asLeader(func(ctx context.Context) { w.prune(ctx, "handled", w.pruneInbox) })
	}
	if w.parts.LetterRetention > 0 {
		asLeader(func(ctx context.Context) { w.prune(ctx, "dead_letters", w.pruneLetters) })
	}
	if w.parts.Metrics != nil {
		background.Go(func() { w.parts.Metrics.Poll(side, w.sources) })
	}
	if problem := w.tuning.OutlastsConsumerTimeout(handlers.Most(w.parts.Handlers)); problem != "" && !w.parts.Embedded {
		w.logger.WarnContext(ctx, "attempts may outlast the broker's consumer_timeout", "problem", problem,
			"advice", AdviceOnConsumerTimeout)
	}
	w.logger.InfoContext(ctx, "worker is running", "concurrency", w.tuning.Concurrency)

	select {
	case <-ctx.Done():
	case err := <-routerDone:
		w.end()
		return fmt.Errorf("the router stopped by itself: %w", errors.Join(err, errors.New("all subscriptions ended")))
	}
	w.logger.InfoContext(ctx, "worker is stopping", "grace_period", w.tuning.GracePeriod)
	err = w.stop(router, consumers, stopSide)
	w.logger.InfoContext(ctx, "worker has stopped", "events", &w.counts)
	return err
}

// replay replays while the lease is held, until ctx is done. At a stop the letters in flight are finished.
func (w *Worker) replay(ctx context.Context) {
	for ctx.Err() == nil {
		status := w.lease.Status()
		if status.Err == nil {
			held, cancel := status.While(w.ended)
			w.replayer.Run(held, w.stopping)
			cancel()
		}
		select {
		case <-ctx.Done():
		case <-status.Changed:
		}
	}
}

// addConsumers gives each topic of the bus to the dispatcher, with the middlewares around it.
func (w *Worker) addConsumers(router *message.Router) []*message.Handler {
	var consumers []*message.Handler
	for i, topic := range w.parts.Bus.Topics() {
		h := router.AddConsumerHandler(fmt.Sprintf("consumer-%d", i), topic, w.parts.Bus, w.dispatch.Handle)
		h.AddMiddleware(
			middleware.Correlation,
			middleware.Deliver(w.lifetime(), w.observer, w.logger),
			middleware.PoisonQueue(w.parts.Sink, w.lifetime(), w.observer, w.logger),
			w.retry().Middleware,
			wmiddleware.Recoverer,
		)
		consumers = append(consumers, h)
	}
	return consumers
}

// stop stops the parts in the order in which nothing is lost or doubled: no new batch from the store, no new message from
// the bus, and the router itself only when nothing is in flight, as its own shutdown is not graceful.
func (w *Worker) stop(router *message.Router, consumers []*message.Handler, stopSide func()) error {
	w.setConsumer(errors.New("stopping"))
	close(w.stopping)
	grace := time.AfterFunc(w.tuning.GracePeriod, w.end)
	defer grace.Stop()

	var stops sync.WaitGroup
	stopSide()
	stops.Go(func() { w.relay.Stop(w.ended) })
	for _, c := range consumers {
		c.Stop()
		stops.Go(func() {
			select {
			case <-c.Stopped():
			case <-w.ended.Done():
			}
		})
	}
	stops.Wait()
	if w.ended.Err() != nil {
		w.logger.Warn("the grace period is over: messages in flight are cancelled and given back")
	}
	w.end()
	if err := router.Close(); err != nil {
		w.logger.Warn("a handler ignores the end of its context; its event will be delivered again", "error", err)
	}
	return nil
}

func (w *Worker) setConsumer(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.consumer = err
}

// routerLogger logs the router's lines at the debug level, and while the worker stops its errors too: it takes the end of
// its handlers for one.
func (w *Worker) routerLogger() watermill.LoggerAdapter {
	return watermill.NewSlogLoggerWithLevelMapping(w.routerLog, map[slog.Level]slog.Level{
		slog.LevelInfo: slog.LevelDebug, slog.LevelDebug: watermill.LevelTrace,
	})
}

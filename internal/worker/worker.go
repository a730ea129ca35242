// Package worker is the assembly: store, relay, bus, router and handlers, started in their order, watched, and stopped
// in the reverse one.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	wmiddleware "github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/middleware"
	"github.com/healz/worker/internal/relay"
	"github.com/healz/worker/internal/store"
)

// Bus is what the worker needs of either bus.
type Bus interface {
	bus.BatchPublisher
	message.Subscriber
	// Topics are what to subscribe to, once each, to get every event once.
	Topics() []string
	// Ready says why the bus cannot carry events at the moment, nil when it can.
	Ready() error
}

// Inbox is what the worker needs of a store, besides its tail.
type Inbox interface {
	handlers.Inbox
	PruneHandled(ctx context.Context, age time.Duration, limit int) (int, error)
	Ping(ctx context.Context) error
}

// Parts are what a worker is made of. The caller opens them and closes them after [Worker.Run].
type Parts struct {
	Inbox    Inbox
	Tail     *store.Tail
	Bus      Bus
	Sink     deadletter.Sink
	Handlers *handlers.Registry
	// InboxRetention is how long the inbox keeps its records; 0 is for ever.
	InboxRetention time.Duration
	// Replayer takes up the dead letters to be replayed, where no broker does; nil otherwise.
	Replayer *deadletter.Replayer
}

// Worker consumes events and relays those of the store. A worker runs once.
type Worker struct {
	parts    Parts
	tuning   Tuning
	logger   *slog.Logger
	relay    *relay.Relay
	dispatch *handlers.Dispatcher
	counts   middleware.Counts

	stopping chan struct{}
	ended    context.Context //nolint:containedctx // the end of the grace period, which cancels what still runs
	end      context.CancelFunc

	mu       sync.Mutex
	consumer error
}

// New assembles a worker. It fails with all that is wrong with the handlers' registrations.
func New(ctx context.Context, parts Parts, tuning Tuning, logger *slog.Logger) (*Worker, error) {
	logger = slog.New(middleware.LogCorrelation(logger.Handler()))
	w := &Worker{
		parts: parts, tuning: tuning, logger: logger, stopping: make(chan struct{}),
		relay:    relay.New(parts.Tail, parts.Bus, tuning.RelayPoll, logger),
		consumer: errors.New("not started"),
	}
	w.ended, w.end = context.WithCancel(context.WithoutCancel(ctx))
	var err error
	w.dispatch, err = handlers.NewDispatcher(parts.Handlers, parts.Inbox, tuning.AfterDeadLetter, middleware.Retry{
		Attempts: tuning.RetryAttempts, Initial: tuning.RetryInitial, Max: tuning.RetryMax,
		Lifetime: w.lifetime(), Logger: logger,
	}, tuning.HandlerTimeout, logger)
	return w, err
}

func (w *Worker) lifetime() middleware.Lifetime {
	return middleware.Lifetime{Stopping: w.stopping, Ended: w.ended}
}

// Run works until ctx is done, then stops: it takes on nothing more, lets what is in hand finish for as long as the
// grace period, gives back the rest, and returns nil. An error says why the worker cannot work at all.
func (w *Worker) Run(ctx context.Context) error {
	defer w.end()
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: w.tuning.GracePeriod}, w.routerLogger())
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
	if err := w.startRelay(running, router); err != nil {
		return errors.Join(err, w.stop(router, consumers, nil))
	}
	side, stopSide := context.WithCancel(running)
	defer stopSide()
	if w.parts.Replayer != nil {
		background.Go(func() { w.parts.Replayer.Run(side) })
	}
	if w.parts.InboxRetention > 0 {
		background.Go(func() { w.prune(side) })
	}
	w.logger.InfoContext(ctx, "worker is running", "concurrency", w.tuning.Concurrency)

	select {
	case <-ctx.Done():
	case err := <-routerDone:
		return fmt.Errorf("the router stopped by itself: %w", errors.Join(err, errors.New("all subscriptions ended")))
	}
	w.logger.InfoContext(ctx, "worker is stopping", "grace_period", w.tuning.GracePeriod)
	err = w.stop(router, consumers, stopSide)
	w.logger.InfoContext(ctx, "worker has stopped", "events", w.counts.Map())
	return err
}

// addConsumers gives each topic of the bus to the dispatcher, with the middleware around it.
func (w *Worker) addConsumers(router *message.Router) []*message.Handler {
	var consumers []*message.Handler
	for i, topic := range w.parts.Bus.Topics() {
		h := router.AddConsumerHandler(fmt.Sprintf("consumer-%d", i), topic, w.parts.Bus, w.dispatch.Handle)
		h.AddMiddleware(
			middleware.Detach(w.lifetime()),
			middleware.Correlation,
			middleware.Observe(w.logger, &w.counts),
			middleware.DeadLetter(w.parts.Sink, w.lifetime(), w.logger),
			wmiddleware.Recoverer,
		)
		consumers = append(consumers, h)
	}
	return consumers
}

func (w *Worker) startRelay(ctx context.Context, router *message.Router) error {
	if err := w.relay.AddTo(w.ended, router); err != nil {
		return err
	}
	if err := router.RunHandlers(ctx); err != nil {
		return fmt.Errorf("start the relay: %w", err)
	}
	return nil
}

// stop ends what runs, in the order that loses and doubles nothing: no new batch from the store, no new message from
// the bus, and only when both are done with what they have in hand the router itself, whose own shutdown is not graceful.
func (w *Worker) stop(router *message.Router, consumers []*message.Handler, stopSide func()) error {
	w.setConsumer(errors.New("stopping"))
	close(w.stopping)
	grace := time.AfterFunc(w.tuning.GracePeriod, w.end)
	defer grace.Stop()

	var stops sync.WaitGroup
	if stopSide != nil {
		stopSide()
		stops.Go(func() { w.relay.Stop(w.ended) })
	}
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
		w.logger.Warn("the grace period is over: what is in hand is cancelled and given back")
	}
	w.end()
	if err := router.Close(); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	return nil
}

func (w *Worker) setConsumer(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.consumer = err
}

// routerLogger keeps the router's chatter to the debug level.
func (w *Worker) routerLogger() watermill.LoggerAdapter {
	return watermill.NewSlogLoggerWithLevelMapping(w.logger, map[slog.Level]slog.Level{
		slog.LevelInfo: slog.LevelDebug, slog.LevelDebug: watermill.LevelTrace,
	})
}

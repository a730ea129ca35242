package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/rawjson"
	"github.com/healz/worker/internal/store"
)

const (
	// handlerName and topic are the relay's in the router. The tail reads one table, whatever the topic.
	handlerName = "relay"
	topic       = "events"

	// resendInterval is the wait before a batch that could not be published is tried again.
	resendInterval = 500 * time.Millisecond
)

// State is what the relay does at the moment.
type State string

// The states of a relay.
const (
	// Starting: it has not looked at the store yet.
	Starting State = "starting"
	// Relaying: it has events in hand.
	Relaying State = "relaying"
	// Idle: all events are on the bus.
	Idle State = "idle"
	// Standby: another worker relays; this one takes over when that one dies.
	Standby State = "standby"
	// Failing: the store or the bus does not answer; it tries again by itself.
	Failing State = "failing"
	// Stopped: it relays no more.
	Stopped State = "stopped"
)

// Relay tails a store and publishes its events, in commit order and at least once.
type Relay struct {
	tail      *store.Tail
	publisher bus.BatchPublisher
	config    Config
	logger    *slog.Logger
	handler   *message.Handler

	// giveUp ends the publishing of the batch in hand.
	giveUp context.CancelFunc

	// stopping is closed when no further batch may begin, rested when the last one is done with, and released when
	// the subscription has been told to end.
	stopping, rested, released chan struct{}
	rest                       func()

	mu    sync.Mutex
	state State
	err   error
	// unpublished tells that the last batch could not be published.
	unpublished bool
}

// Config is how a relay works.
type Config struct {
	// Poll is how often it looks for events that it was not woken for.
	Poll time.Duration
	// Patience is how long a batch may be in hand, tries to publish it included. After it the batch is let go, and
	// whichever worker comes first tries it again: one that cannot reach the bus does not keep others from relaying.
	Patience time.Duration
	// Refused takes the events that the bus will never take; the others of their batch are published.
	Refused  deadletter.Sink
	Observer observe.Observer
}

// New returns a relay from tail to publisher.
func New(tail *store.Tail, publisher bus.BatchPublisher, c Config, logger *slog.Logger) *Relay {
	rested := make(chan struct{})
	return &Relay{
		tail: tail, publisher: publisher, config: c, logger: logger, state: Starting,
		stopping: make(chan struct{}), rested: rested, released: make(chan struct{}),
		rest: sync.OnceFunc(func() { close(rested) }),
	}
}

// AddTo makes the relay a handler of the router. Publishing ends early with ctx, which is done when a stop's grace
// period is over. The bus must be ready to take messages when the router runs the handler.
func (r *Relay) AddTo(ctx context.Context, router *message.Router) error {
	ctx, r.giveUp = context.WithCancel(ctx)
	subscriber, err := wsql.NewSubscriber(r.tail.DB, wsql.SubscriberConfig{
		AckDeadline:    &r.config.Patience,
		ResendInterval: resendInterval,
		BackoffManager: &pacer{relay: r},
		SchemaAdapter:  r.tail.Schema,
		OffsetsAdapter: r.tail.Offsets,
	}, watermill.NopLogger{}) // it adds each error to all its later lines; the pacer logs them
	if err != nil {
		return fmt.Errorf("build the relay's subscriber: %w", err)
	}
	r.handler = router.AddConsumerHandler(handlerName, topic, subscriber, func(m *message.Message) error {
		return r.publish(ctx, m)
	})
	return nil
}

// publish publishes the batch in m. An error makes the subscriber send it again.
func (r *Relay) publish(ended context.Context, m *message.Message) error {
	if r.isStopping() {
		r.rest()
		return errStopping
	}
	if state, _ := r.Status(); state != Failing {
		r.become(Relaying, nil)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.Context()), time.Until(deadlineOf(m, r.config.Patience)))
	defer cancel()
	defer context.AfterFunc(ended, cancel)()

	bodies, err := rawjson.Elements(m.Payload)
	if err != nil {
		return r.fail(fmt.Errorf("read a batch of the tail: %w", err))
	}
	batch := make([]*message.Message, len(bodies))
	for i, body := range bodies {
		batch[i] = bus.NewMessage(body)
	}
	if err := r.publishBatch(ctx, batch); err != nil {
		return r.fail(fmt.Errorf("publish %d events: %w", len(batch), err))
	}
	r.become(Relaying, nil)
	return nil
}

// deadlineOf is when the subscriber lets the batch in m go.
func deadlineOf(m *message.Message, patience time.Duration) time.Time {
	if deadline, ok := m.Context().Deadline(); ok {
		return deadline
	}
	return time.Now().Add(patience)
}

// publishBatch publishes the batch, without the events that the bus refuses.
func (r *Relay) publishBatch(ctx context.Context, batch []*message.Message) error {
	for len(batch) > 0 {
		err := r.publisher.PublishBatch(ctx, batch)
		refused, ok := errors.AsType[*bus.RefusedError](err)
		if !ok {
			return err
		}
		now := time.Now().UTC()
		m := batch[refused.Index]
		err = r.config.Refused.Put(ctx, m, deadletter.Failure{
			Reason: deadletter.CutReason(refused.Error()), Attempts: 1, FirstFailed: now, LastFailed: now,
		})
		if err != nil {
			return fmt.Errorf("keep event %s, which the bus refuses: %w", m.UUID, err)
		}
		r.config.Observer.Failed(m, "", 0)
		r.logger.ErrorContext(ctx, "the bus refuses an event: it rests in the store's dead letters", "event_id", m.UUID, "error", refused)
		batch = slices.Delete(slices.Clone(batch), refused.Index, refused.Index+1)
	}
	return nil
}

// errStopping wraps context.Canceled, which the router does not log as an error.
var errStopping = fmt.Errorf("the relay is stopping: %w", context.Canceled)

func (r *Relay) fail(err error) error {
	if r.isStopping() {
		r.rest()
		return errors.Join(errStopping, err)
	}
	r.become(Failing, err)
	r.mu.Lock()
	r.unpublished = true
	r.mu.Unlock()
	return errors.Join(errLogged, err)
}

// wasUnpublished tells, once, whether the last batch could not be published.
func (r *Relay) wasUnpublished() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.unpublished
	r.unpublished = false
	return was
}

func (r *Relay) isStopping() bool {
	select {
	case <-r.stopping:
		return true
	default:
		return false
	}
}

// errLogged keeps the router from logging once more what become has logged.
var errLogged = fmt.Errorf("will be tried again: %w", context.Canceled)

// Status is what the relay does, and the error that keeps it from it.
func (r *Relay) Status() (State, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state, r.err
}

// Leads tells whether this relay is the one among several that relays.
func (r *Relay) Leads() bool {
	state, _ := r.Status()
	return state == Relaying || state == Idle
}

// become changes the state. An outage is logged once when it begins and once when it ends.
func (r *Relay) become(s State, err error) {
	r.mu.Lock()
	before := r.state
	r.state, r.err, r.unpublished = s, err, false
	r.mu.Unlock()
	switch {
	case s == Failing && before != Failing:
		r.logger.Error("relay fails and will try again", "error", err)
	case before == Failing && s != Failing && s != Stopped:
		r.logger.Info("relay has recovered")
	case s == Standby && before != Standby:
		r.logger.Info("relay stands by: another worker relays")
	case (before == Standby || before == Starting) && s != Stopped && s != Failing:
		r.logger.Info("relay is at work")
	}
}

// Stop lets the batch in hand finish, begins none, and waits until the relay has stopped or ctx is done. A batch that
// could not be finished is published again by whoever relays next.
func (r *Relay) Stop(ctx context.Context) {
	close(r.stopping)
	if state, _ := r.Status(); state == Failing {
		r.giveUp()
	}
	select {
	case <-r.rested:
	case <-ctx.Done():
	}
	r.handler.Stop()
	close(r.released)
	select {
	case <-r.handler.Stopped():
	case <-ctx.Done():
	}
	r.become(Stopped, nil)
}

package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/lease"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/rawjson"
	"github.com/healz/worker/internal/store"
)

const (
	// resendInterval is the wait before a batch that could not be published is tried again.
	resendInterval = 500 * time.Millisecond
	// errorInterval is the wait after an error of the store.
	errorInterval = time.Second
	// nextTimeout and moveTimeout are after how long a read of a batch and a move of the position are tried again, on another
	// connection: the lease is renewed on others, so that no other worker would follow a leader whose connection is dead.
	// The time for a read grows, as a batch of 8 MB may come from a slow disk.
	nextTimeout = 20 * time.Second
	moveTimeout = 10 * time.Second
	// maxChunk is how many events are published at once. Each attempt that fails halves it, down to one, so that a slow bus
	// gets smaller batches; each that succeeds doubles it.
	maxChunk = store.MaxLimit
	// maxPatience is how many times [Config.Patience] a relay has, at most, after attempts without any confirm.
	maxPatience = 16
	// yieldTime is how long a relay that cannot publish leaves the lease to others.
	yieldTime = 2 * time.Second
)

// followUpPolls are the waits before the polls after a wake: an event can be announced a moment before the horizon of
// the tail has passed it.
var followUpPolls = [...]time.Duration{time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond} //nolint:gochecknoglobals // a constant

// State is what the relay does at the moment.
type State string

// The states of a relay.
const (
	// Starting: it is not known yet whether it is the leader.
	Starting State = "starting"
	// Relaying: it has events in flight.
	Relaying State = "relaying"
	// Idle: all events are on the bus.
	Idle State = "idle"
	// Standby: another worker is the leader; this one takes over when that one dies.
	Standby State = "standby"
	// Failing: the store or the bus does not answer; it tries again by itself.
	Failing State = "failing"
	// Stopped: it relays no more.
	Stopped State = "stopped"
)

// Relay tails a store and publishes its events, in commit order and at least once, while it holds a lease.
type Relay struct {
	tail      *store.Tail
	lease     *lease.Lease
	publisher bus.BatchPublisher
	config    Config
	logger    *slog.Logger

	// Of the goroutine that runs:
	nextTimeout time.Duration
	chunk       int
	patience    time.Duration
	confirmed   map[string]bool // bodies of the events that were published of a batch which is not finished

	// stopping is closed when no further batch may begin, and stopped when the last one is done with.
	stopping, stopped chan struct{}

	mu     sync.Mutex
	state  State
	err    error
	giveUp context.CancelFunc // ends the batch in flight
}

// Config is how a relay works.
type Config struct {
	// Poll is how often it polls for events that no notification told of.
	Poll time.Duration
	// Patience is how long it tries to publish while the bus confirms no event; 0 is for ever. After it the relay yields the
	// lease: one that cannot reach the bus does not keep others from relaying. It doubles each time, for a bus that is slow,
	// and is halved after a batch that took less than half of it.
	Patience time.Duration
	// Refused takes the events that the bus will never take; the others of their batch are published.
	Refused  deadletter.Sink
	Observer observe.Observer
	// Release is waited for before the lease is given back at the end: others work under the same lease. nil is nothing.
	Release <-chan struct{}
}

// New returns a relay from tail to publisher. The lease is that of [store.RelayTask]; the relay runs it.
func New(tail *store.Tail, l *lease.Lease, publisher bus.BatchPublisher, c Config, logger *slog.Logger) *Relay {
	return &Relay{
		tail: tail, lease: l, publisher: publisher, config: c, logger: logger, state: Starting, giveUp: func() {},
		nextTimeout: nextTimeout, chunk: maxChunk, patience: c.Patience,
		stopping: make(chan struct{}), stopped: make(chan struct{}),
	}
}

// Run relays until [Relay.Stop] or the end of ctx, which is done when a stop's grace period is over and ends the batch in
// flight early. The bus must be ready to take messages.
func (r *Relay) Run(ctx context.Context) {
	defer close(r.stopped)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.mu.Lock()
	r.giveUp = cancel
	r.mu.Unlock()
	leasing, release := context.WithCancel(context.WithoutCancel(ctx))
	var renewing sync.WaitGroup
	defer renewing.Wait()
	defer release()
	defer func() {
		if r.config.Release != nil {
			select {
			case <-r.config.Release:
			case <-ctx.Done():
			}
		}
	}()
	renewing.Go(func() { r.lease.Run(leasing) })

	polls := 0 // since the last wake, that have found nothing
	for !r.isStopping() && ctx.Err() == nil {
		status := r.lease.Status()
		if status.Err != nil {
			r.notLeader(status.Err)
			r.wait(ctx, nil, nil, status.Changed)
			continue
		}
		found, err := r.relayNext(ctx, status)
		var woken bool
		switch {
		case err != nil:
			r.wait(ctx, time.After(errorInterval), nil, status.Changed)
		case found:
			polls = 0
		case polls < len(followUpPolls):
			woken = r.wait(ctx, time.After(followUpPolls[polls]), r.tail.Wake, status.Changed)
			polls++
		default:
			r.become(Idle, nil)
			woken = r.wait(ctx, time.After(r.config.Poll), r.tail.Wake, status.Changed)
		}
		if woken {
			polls = 0
		}
	}
}

// wait waits for time to pass, for a wake, for another status of the lease, for the stop or for the end of ctx, and tells
// whether it was a wake.
func (r *Relay) wait(ctx context.Context, timer <-chan time.Time, wake, changed <-chan struct{}) (woken bool) {
	select {
	case <-r.stopping:
	case <-ctx.Done():
	case <-timer:
	case <-changed:
	case <-wake:
		return true
	}
	return false
}

func (r *Relay) notLeader(err error) {
	switch {
	case errors.Is(err, lease.ErrPending): // it starts, or has yielded because it fails
	case errors.Is(err, store.ErrNotLeader):
		r.become(Standby, nil)
	default:
		r.become(Failing, err)
	}
}

// relayNext relays the next batch, and tells whether there was one.
func (r *Relay) relayNext(ctx context.Context, status lease.Status) (found bool, err error) {
	held, cancel := status.While(ctx)
	defer cancel()
	reading, done := context.WithTimeout(held, r.nextTimeout)
	batch, err := r.tail.Next(reading)
	if err == nil {
		r.nextTimeout = nextTimeout
	} else if errors.Is(reading.Err(), context.DeadlineExceeded) {
		r.nextTimeout *= 2
	}
	done()
	var bodies [][]byte
	if err == nil && batch.Events != nil {
		bodies, err = rawjson.Elements(batch.Events)
	}
	if err == nil && batch.Events != nil && !r.isStopping() {
		if !r.publish(held, bodies) {
			return true, nil
		}
		found = true
		if err = r.move(ctx, held, batch.Position, status.Fence); err == nil {
			r.confirmed = nil
		}
	}
	if err != nil && held.Err() == nil && !errors.Is(err, store.ErrNotLeader) { // else the lease says more
		r.become(Failing, err)
	}
	return found, err
}

// move moves the position. It tries again while the lease is held: the batch is published, and need not be once more.
func (r *Relay) move(ctx, held context.Context, behind store.Position, fence store.Fence) error {
	for {
		bounded, cancel := context.WithTimeout(ctx, moveTimeout)
		err := r.tail.Move(bounded, behind, fence)
		cancel()
		if err == nil || errors.Is(err, store.ErrNotLeader) || held.Err() != nil || r.isStopping() {
			return err
		}
		r.become(Failing, err)
		r.wait(ctx, time.After(errorInterval), nil, held.Done())
	}
}

// publish publishes events, and tries again until all are published, the lease is lost or yielded, or the relay stops. An
// event that the bus has confirmed is not published again, neither here nor when the same batch is read again.
func (r *Relay) publish(ctx context.Context, bodies [][]byte) (published bool) {
	if state, _ := r.Status(); state != Failing {
		r.become(Relaying, nil)
	}
	all := bodies
	bodies = slices.DeleteFunc(slices.Clone(all), func(body []byte) bool { return r.confirmed[string(body)] })
	defer func() {
		if !published {
			r.confirmed = without(all, bodies)
		}
	}()
	began := time.Now()
	attempts, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	progress := func() {}
	if r.config.Patience > 0 {
		timer := time.AfterFunc(r.patience, func() { cancel(fmt.Errorf("no confirm within %s", r.patience)) })
		defer timer.Stop()
		progress = func() { timer.Reset(r.patience) }
	}
	for len(bodies) > 0 {
		batch := make([]*message.Message, min(r.chunk, len(bodies)))
		for i := range batch {
			batch[i] = bus.NewMessage(bodies[i])
		}
		err := r.publishBatch(attempts, batch, progress)
		bodies = slices.Concat(bodiesOf(unconfirmed(batch)), bodies[len(batch):])
		if err == nil {
			r.become(Relaying, nil)
			r.chunk = min(2*r.chunk, maxChunk)
			if attempts.Err() == nil || len(bodies) == 0 {
				continue
			}
			err = context.Cause(attempts) // the time was up just when the confirm came
		}
		r.chunk = max(len(batch)/2, 1)
		if r.isStopping() || ctx.Err() != nil {
			return false
		}
		if attempts.Err() != nil && errors.Is(err, context.Canceled) {
			err = fmt.Errorf("publish %d events: %w", len(batch), context.Cause(attempts))
		}
		r.become(Failing, err)
		if attempts.Err() == nil {
			r.wait(ctx, time.After(resendInterval), nil, attempts.Done())
		}
		if r.isStopping() || ctx.Err() != nil {
			return false
		}
		if attempts.Err() != nil {
			r.patience = min(2*r.patience, maxPatience*r.config.Patience)
			r.lease.Yield(ctx, yieldTime)
			return false
		}
	}
	if time.Since(began) < r.patience/2 {
		r.patience = max(r.patience/2, r.config.Patience)
	}
	return true
}

// without are the bodies that are not among others.
func without(bodies, others [][]byte) map[string]bool {
	rest := make(map[string]bool, len(bodies))
	for _, body := range bodies {
		rest[string(body)] = true
	}
	for _, body := range others {
		delete(rest, string(body))
	}
	return rest
}

// publishBatch publishes a batch, without the events that the bus refuses, and acks the messages that are done with. It
// reports each as progress.
func (r *Relay) publishBatch(ctx context.Context, batch []*message.Message, progress func()) error {
	watching, end := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer end()
	watch.Go(func() {
		for _, m := range batch {
			select {
			case <-m.Acked():
				progress()
			case <-watching.Done():
				return
			}
		}
	})
	for rest := batch; len(rest) > 0; rest = unconfirmed(batch) {
		began := time.Now()
		err := r.publisher.PublishBatch(ctx, rest)
		if err == nil {
			r.logger.DebugContext(ctx, "a batch is published", "events", len(rest), "took", time.Since(began).Round(time.Microsecond))
			for _, m := range rest {
				m.Ack()
			}
			progress()
			return nil
		}
		refused, ok := errors.AsType[*bus.RefusedError](err)
		if !ok {
			return fmt.Errorf("publish %d events: %w", len(rest), err)
		}
		now := time.Now().UTC()
		m := rest[refused.Index]
		err = r.config.Refused.Put(ctx, m, deadletter.Failure{
			Reason: deadletter.CutReason(refused.Error()), Attempts: 1, FirstFailed: now, LastFailed: now,
		})
		if err != nil {
			return fmt.Errorf("keep event %s, which the bus refuses: %w", m.UUID, err)
		}
		m.Ack()
		r.config.Observer.Failed(m, "", 0)
		r.logger.ErrorContext(ctx, "the bus refuses an event: it rests in the store's dead letters", "event_id", m.UUID, "error", refused)
	}
	return nil
}

// unconfirmed are the messages that are not acked.
func unconfirmed(batch []*message.Message) []*message.Message {
	return slices.DeleteFunc(slices.Clone(batch), func(m *message.Message) bool {
		select {
		case <-m.Acked():
			return true
		default:
			return false
		}
	})
}

func bodiesOf(batch []*message.Message) [][]byte {
	bodies := make([][]byte, len(batch))
	for i, m := range batch {
		bodies[i] = m.Payload
	}
	return bodies
}

func (r *Relay) isStopping() bool {
	select {
	case <-r.stopping:
		return true
	default:
		return false
	}
}

// Status is what the relay does, and the error that keeps it from it.
func (r *Relay) Status() (State, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state, r.err
}

// become changes the state. An outage is logged once when it begins and once when it ends.
func (r *Relay) become(s State, err error) {
	r.mu.Lock()
	before := r.state
	r.state, r.err = s, err
	r.mu.Unlock()
	switch {
	case s == Failing && before != Failing:
		r.logger.Error("relay fails and will try again", "error", err)
	case before == Failing && s != Failing && s != Stopped:
		r.logger.Info("relay has recovered")
	case s == Standby && before != Standby:
		r.logger.Info("relay stands by: another worker is the leader")
	case (before == Standby || before == Starting) && s != Stopped && s != Failing:
		r.logger.Info("relay is at work: this worker is the leader")
	}
}

// Stop lets the batch in flight finish, begins none, and waits until the relay has stopped or ctx is done. A batch that
// could not be finished is published again by the next leader. [Relay.Run] must have been called.
func (r *Relay) Stop(ctx context.Context) {
	close(r.stopping)
	r.mu.Lock()
	if r.state == Failing {
		r.giveUp()
	}
	r.mu.Unlock()
	select {
	case <-r.stopped:
	case <-ctx.Done():
	}
	r.become(Stopped, nil)
}

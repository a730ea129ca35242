package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
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
	// maxInFlight is how many events may be in flight, or [store.PageBytes] of them, when the next batch is read.
	maxInFlight = 1000
	// readAhead is the wait before the next batch while one is in flight: one that is handled soon is waited for, as larger
	// batches cost less.
	readAhead = 10 * time.Millisecond
	// latePart is the part of [Config.Patience] after which a relay without any confirm reports that it fails.
	latePart = 3
	// yieldTime is how long a relay that cannot publish leaves the lease to others.
	yieldTime = 2 * time.Second
)

// MaxAhead is for how long the relay reads ahead of an event in flight: the inbox must remember all that follow it.
const MaxAhead = time.Hour

// followUpPolls are the waits before the polls after a wake: an event can be announced a moment before the horizon of
// the tail has passed it.
var followUpPolls = [...]time.Duration{time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond} //nolint:gochecknoglobals // a constant

// State is what the relay does at the moment.
type State string

// The states of a relay.
const (
	// Starting: it is not known yet whether it is the leader, or it is and no event has got out yet.
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
	late        time.Duration   // without a confirm, after which it reports that it fails
	confirmed   map[string]bool // bodies of the events that were published of a batch which is not finished
	term        term
	landed      chan struct{} // has a value when a batch that was in flight is handled, or given back
	flying      atomic.Bool   // a batch is in flight

	// stopping is closed when no further batch may begin, and stopped when the last one is done with.
	stopping, stopped chan struct{}

	mu      sync.Mutex
	state   State
	err     error
	outage  outage
	wasLate bool
	role    State              // Idle or Standby: what was logged last of who leads
	giveUp  context.CancelFunc // ends the batch in flight
}

// outage is the time in which the relay fails. While no worker reaches the bus, each yields the lease to the next: for all of
// them it is one outage.
type outage struct {
	began time.Time // zero if there is none
	err   error
	// ofBus tells that the bus has failed. Then it does not end with the lease, but when events get out, or when another
	// worker has had the lease for longer than one that fails.
	ofBus bool
	// standby is since when another worker has the lease.
	standby time.Time
}

// term is a time in which the lease is held.
type term struct {
	status  lease.Status
	held    context.Context //nolint:containedctx // ends with the status
	cancel  context.CancelFunc
	flights []flight
}

// flight is a batch that the bus has taken, until the position is moved behind it.
type flight struct {
	began    time.Time
	position store.Position
	open     []*message.Message // those that are not acked
}

// Config is how a relay works.
type Config struct {
	// Poll is how often it polls for events that no notification told of.
	Poll time.Duration
	// Patience is how long it tries to publish while the bus confirms no event. After it the relay yields the lease: one that
	// cannot reach the bus does not keep others from relaying. It doubles each time, for a bus that is slow, and is halved
	// after a batch that took less than half of it. 0 is for the bus inside the process, which acks what was handled.
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
		nextTimeout: nextTimeout, chunk: maxChunk, patience: c.Patience, late: c.Patience / latePart,
		term: term{cancel: func() {}}, landed: make(chan struct{}, 1),
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

	defer r.end()
	polls := 0 // since the last wake, that have found nothing
	for !r.isStopping() && ctx.Err() == nil {
		status := r.lease.Status()
		if status.Changed != r.term.status.Changed {
			r.begin(ctx, status)
		}
		if status.Err != nil {
			r.notLeader(status.Err)
			select {
			case <-r.stopping:
			case <-ctx.Done():
			case <-status.Changed:
			case <-r.untilOver():
				r.becomeStandby(true)
			}
			continue
		}
		found, err := r.relayNext(ctx)
		var woken bool
		switch {
		case err != nil:
			if !r.isStopping() && r.term.held.Err() == nil && !errors.Is(err, store.ErrNotLeader) { // else the lease says more
				r.fail(err, false)
			}
			if slices.ContainsFunc(fatal, func(f error) bool { return errors.Is(err, f) }) {
				r.end()
			}
			r.pause(ctx, errorInterval, status.Changed)
		case found:
			polls = 0
			if len(r.term.flights) > 0 {
				r.wait(ctx, readAhead, nil, status.Changed)
			}
		case !r.hasRoom():
			r.become(Relaying)
			r.wait(ctx, readAhead, nil, status.Changed)
		case polls < len(followUpPolls):
			woken = r.wait(ctx, followUpPolls[polls], r.tail.Wake, status.Changed)
			polls++
		default:
			if len(r.term.flights) == 0 {
				r.become(Idle)
			} else {
				r.become(Relaying)
			}
			woken = r.wait(ctx, r.config.Poll, r.tail.Wake, status.Changed)
		}
		if woken {
			polls = 0
		}
	}
	r.finish(ctx)
}

// fatal are the errors after which what is in flight is forgotten: it is published again, in order, or the position has been
// changed by another.
var fatal = []error{bus.ErrGivenBack, store.ErrNotLeader, store.ErrNoPosition, store.ErrRestored} //nolint:gochecknoglobals // a constant

func (r *Relay) begin(ctx context.Context, status lease.Status) {
	r.end()
	held, cancel := status.While(ctx)
	r.term = term{status: status, held: held, cancel: cancel}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case status.Err != nil:
	case !r.outage.began.IsZero(): // no event has got out yet
		r.state, r.err = Failing, r.outage.err
	case r.state == Standby:
		r.state = Starting
	}
}

// end forgets what is in flight: the bus does not deliver it if no handler has it yet.
func (r *Relay) end() {
	r.term.cancel()
	r.term = term{cancel: func() {}}
	r.flying.Store(false)
}

// finish waits until what is in flight is handled or given back, and moves the position.
func (r *Relay) finish(ctx context.Context) {
	for len(r.term.flights) > 0 && r.term.held.Err() == nil {
		awaitAll(r.term.held, outcomes(r.term.flights[0].open))
		if err := r.land(ctx); err != nil {
			return
		}
	}
}

// wait waits for some time, for a wake, for another status of the lease, for a batch that is handled, for the stop or for the
// end of ctx, and tells whether it was a wake.
func (r *Relay) wait(ctx context.Context, d time.Duration, wake, changed <-chan struct{}) (woken bool) {
	select {
	case <-r.stopping:
	case <-ctx.Done():
	case <-time.After(d):
	case <-changed:
	case <-r.landed:
	case <-wake:
		return true
	}
	return false
}

// pause waits for some time, until changed, for the stop or for the end of ctx.
func (r *Relay) pause(ctx context.Context, d time.Duration, changed <-chan struct{}) {
	select {
	case <-r.stopping:
	case <-ctx.Done():
	case <-time.After(d):
	case <-changed:
	}
}

// hasRoom tells whether more events may be in flight.
func (r *Relay) hasRoom() bool {
	count, bytes := 0, 0
	for _, f := range r.term.flights {
		count += len(f.open)
		for _, m := range f.open {
			bytes += len(m.Payload)
		}
	}
	return count < maxInFlight && bytes < store.PageBytes &&
		(len(r.term.flights) == 0 || time.Since(r.term.flights[0].began) < MaxAhead)
}

func (r *Relay) notLeader(err error) {
	switch {
	case errors.Is(err, lease.ErrPending): // it starts, or has yielded because it fails
	case errors.Is(err, store.ErrNotLeader):
		r.becomeStandby(false)
	default:
		r.fail(err, false)
	}
}

// relayNext moves the position behind what was handled, and relays the next batch. It tells whether there was one.
func (r *Relay) relayNext(ctx context.Context) (found bool, err error) {
	held := r.term.held
	if err := r.land(ctx); err != nil || !r.hasRoom() {
		return false, err
	}
	var after *store.Position
	if n := len(r.term.flights); n > 0 {
		after = &r.term.flights[n-1].position
	}
	reading, done := context.WithTimeout(held, r.nextTimeout)
	defer done()
	batch, err := r.tail.Next(reading, after)
	if err == nil {
		r.nextTimeout = nextTimeout
	} else if errors.Is(reading.Err(), context.DeadlineExceeded) {
		r.nextTimeout *= 2
	}
	if err != nil || batch.Events == nil || r.isStopping() {
		return false, err
	}
	bodies, err := rawjson.Elements(batch.Events)
	if err != nil {
		return false, err
	}
	open, published := r.publish(held, bodies)
	if !published {
		return true, nil
	}
	r.term.flights = append(r.term.flights, flight{time.Now(), batch.Position, open})
	if len(open) > 0 {
		r.flying.Store(true)
		outcomes := outcomes(open)
		go func() {
			awaitAll(held, outcomes)
			select {
			case r.landed <- struct{}{}:
			default: // there is one
			}
		}()
	}
	return true, r.land(ctx)
}

// outcome is what becomes of a message, without the message.
type outcome struct{ acked, nacked <-chan struct{} }

func outcomes(messages []*message.Message) []outcome {
	list := make([]outcome, len(messages))
	for i, m := range messages {
		list[i] = outcome{m.Acked(), m.Nacked()}
	}
	return list
}

// awaitAll waits until all messages are acked, or one is nacked, or ctx ends.
func awaitAll(ctx context.Context, messages []outcome) {
	for _, m := range messages {
		select {
		case <-m.acked:
		case <-m.nacked:
			return
		case <-ctx.Done():
			return
		}
	}
}

// land moves the position behind the batches that are handled, as far as none before them is in flight. It is
// [bus.ErrGivenBack] if the bus has given back an event: what is in flight is to be published again, in order.
func (r *Relay) land(ctx context.Context) error {
	var rest []flight
	var behind *store.Position
	givenBack := false
	for _, f := range r.term.flights {
		f.open = unconfirmed(f.open)
		givenBack = givenBack || f.isGivenBack()
		switch last := len(rest) - 1; {
		case len(f.open) > 0:
			rest = append(rest, f)
		case last < 0:
			behind = &f.position
		case len(rest[last].open) == 0:
			rest[last] = f
		default:
			rest = append(rest, f)
		}
	}
	if behind != nil {
		if err := r.move(ctx, *behind); err != nil {
			return err
		}
		r.confirmed = nil
	}
	r.term.flights = rest
	r.flying.Store(len(rest) > 0)
	if givenBack {
		return bus.ErrGivenBack
	}
	return nil
}

func (f flight) isGivenBack() bool { return slices.ContainsFunc(f.open, isNacked) }

func isNacked(m *message.Message) bool {
	select {
	case <-m.Nacked():
		return true
	default:
		return false
	}
}

// move moves the position. It tries again while the lease is held: the batch is published, and need not be once more.
func (r *Relay) move(ctx context.Context, behind store.Position) error {
	held := r.term.held
	for {
		bounded, cancel := context.WithTimeout(ctx, moveTimeout)
		err := r.tail.Move(bounded, behind, r.term.status.Fence)
		cancel()
		if err == nil || errors.Is(err, store.ErrNotLeader) || held.Err() != nil || r.isStopping() {
			return err
		}
		r.fail(err, false)
		r.pause(ctx, errorInterval, held.Done())
	}
}

// publish publishes events, and tries again until the bus has taken all, the lease is lost or yielded, or the relay stops. It
// returns those that are not acked yet. An event that the bus has confirmed is not published again, neither here nor when
// the same batch is read again.
func (r *Relay) publish(ctx context.Context, bodies [][]byte) (open []*message.Message, published bool) {
	if r.Publishing() {
		r.become(Relaying)
	}
	all := bodies
	bodies = slices.DeleteFunc(slices.Clone(all), func(body []byte) bool { return r.confirmed[string(body)] })
	var taken []*message.Message
	defer func() {
		if !published {
			r.confirmed = without(all, slices.Concat(bodiesOf(unconfirmed(taken)), bodies))
		}
	}()
	began := time.Now()
	attempts, progress := ctx, func() {}
	if r.config.Patience > 0 { // on a bus that acks before PublishBatch returns
		var cancel context.CancelCauseFunc
		attempts, cancel = context.WithCancelCause(ctx)
		defer cancel(nil)
		timer := time.AfterFunc(r.patience, func() { cancel(fmt.Errorf("no confirm within %s", r.patience)) })
		defer timer.Stop()
		late, end := r.reportLate()
		defer end()
		progress = func() {
			timer.Reset(r.patience)
			late.Reset(r.late)
		}
	}
	for len(bodies) > 0 {
		if slices.ContainsFunc(r.term.flights, flight.isGivenBack) { // by then it would come after these
			return nil, false
		}
		batch := make([]*message.Message, min(r.chunk, len(bodies)))
		for i := range batch {
			body := bodies[i]
			if r.config.Patience == 0 { // what stays in flight does not keep its whole batch in memory
				body = slices.Clone(body)
			}
			batch[i] = bus.NewMessage(body)
		}
		err := r.publishBatch(attempts, batch, progress)
		rest := bodies[len(batch):]
		if err == nil {
			taken, bodies = append(taken, unconfirmed(batch)...), rest
			r.become(Relaying)
			r.chunk = min(2*r.chunk, maxChunk)
			if attempts.Err() == nil || len(bodies) == 0 {
				continue
			}
			err = context.Cause(attempts) // the time was up just when the confirm came
		} else {
			bodies = slices.Concat(bodiesOf(unconfirmed(batch)), rest)
		}
		r.chunk = max(len(batch)/2, 1)
		if r.isStopping() || ctx.Err() != nil {
			return nil, false
		}
		if attempts.Err() != nil && errors.Is(err, context.Canceled) {
			err = fmt.Errorf("publish %d events: %w", len(batch), context.Cause(attempts))
		}
		r.fail(err, true)
		if attempts.Err() == nil {
			r.pause(ctx, resendInterval, attempts.Done())
		}
		if r.isStopping() || ctx.Err() != nil {
			return nil, false
		}
		if attempts.Err() != nil {
			r.patience = min(2*r.patience, maxPatience*r.config.Patience)
			r.lease.Yield(ctx, yieldTime)
			return nil, false
		}
	}
	took := time.Since(began)
	if took < r.patience/2 {
		r.patience = max(r.patience/2, r.config.Patience)
	}
	if took < r.late/2 {
		r.late = max(r.late/2, r.config.Patience/latePart)
	}
	return unconfirmed(taken), true
}

// reportLate returns a timer that reports a bus which confirms nothing for some time, until end. After each such report that
// time is doubled, for a bus that is slow.
func (r *Relay) reportLate() (timer *time.Timer, end func()) {
	wait, ended := r.late, false
	timer = time.AfterFunc(wait, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if !ended && r.outage.began.IsZero() {
			r.wasLate = true
			r.failLocked(fmt.Errorf("the bus has confirmed no event for %s", wait), true)
		}
	})
	return timer, func() {
		timer.Stop()
		r.mu.Lock()
		defer r.mu.Unlock()
		ended = true
		if r.wasLate {
			r.wasLate, r.late = false, min(2*r.late, maxPatience*r.config.Patience)
		}
	}
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

// publishBatch publishes a batch, without the events that the bus refuses, and reports each confirm as progress.
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

// Publishing tells whether this relay is the leader and, as far as it has tried, gets events out.
func (r *Relay) Publishing() bool {
	state, _ := r.Status()
	return state == Relaying || state == Idle
}

// fail changes the state to [Failing]. An outage is logged once when it begins and once when it ends.
func (r *Relay) fail(err error, ofBus bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failLocked(err, ofBus)
}

func (r *Relay) failLocked(err error, ofBus bool) {
	if r.outage.began.IsZero() {
		r.outage.began = time.Now()
		r.logger.Error("relay fails and will try again", "error", err)
	}
	r.outage.err, r.outage.ofBus = err, r.outage.ofBus || ofBus
	r.state, r.err = Failing, err
}

// become changes the state to that of a leader that works.
func (r *Relay) become(s State) { r.leave(s, Idle) }

// becomeStandby changes the state to [Standby]. It ends an outage, unless that is one of the bus and not over.
func (r *Relay) becomeStandby(over bool) {
	r.mu.Lock()
	if r.outage.ofBus && !over {
		if r.state != Standby {
			r.outage.standby = time.Now()
		}
		r.state, r.err = Standby, nil
		r.mu.Unlock()
		return
	}
	r.mu.Unlock()
	r.leave(Standby, Standby)
}

// untilOver has a value when another worker has held the lease for so long that it must reach the bus.
func (r *Relay) untilOver() <-chan time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != Standby || r.outage.began.IsZero() {
		return nil
	}
	return time.After(time.Until(r.outage.standby.Add(2 * maxPatience * r.config.Patience)))
}

// leave changes the state to one in which nothing fails, and logs the end of an outage, and a new role.
func (r *Relay) leave(s, role State) {
	r.mu.Lock()
	over, isNew := r.outage, r.role != role
	r.state, r.err, r.outage, r.role = s, nil, outage{}, role
	r.mu.Unlock()
	if !over.began.IsZero() {
		text, end := "relay has recovered", time.Now()
		if role == Standby && over.ofBus {
			text, end = "relay has recovered, on another worker", over.standby
		}
		r.logger.Info(text, "outage", end.Sub(over.began).Round(time.Millisecond)) //nolint:sloglint // one of two constants
	}
	switch {
	case !isNew:
	case role == Standby:
		r.logger.Info("relay stands by: another worker is the leader")
	default:
		r.logger.Info("relay is at work: this worker is the leader")
	}
}

// Stop lets the batch in flight finish, begins none, and waits until the relay has stopped or ctx is done. A batch that
// could not be finished is published again by the next leader. [Relay.Run] must have been called.
func (r *Relay) Stop(ctx context.Context) {
	close(r.stopping)
	r.mu.Lock()
	if r.state == Failing && !r.flying.Load() {
		r.giveUp()
	}
	r.mu.Unlock()
	select {
	case <-r.stopped:
	case <-ctx.Done():
	}
	r.mu.Lock()
	r.state, r.err = Stopped, nil
	r.mu.Unlock()
}

package amqp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store"
)

const (
	// walkTime is how long a replay goes over the letters before it begins anew: the broker closes a channel on which
	// something is not acked for long, half an hour by default.
	walkTime = 10 * time.Minute
	// handledAtOnce is how many letters are looked up in the inbox at once.
	handledAtOnce = 500
)

// Replay republishes the letters that f chooses to the queue they come from, or else to the consumer's. A letter leaves the
// failed queue after the broker has confirmed its republication; if the process dies in between it is replayed twice. One
// that cannot be republished, as its queue is no more, is kept.
//
// The message is as it was, body, properties and headers of any type, without the headers of the failure, and with those
// of [deadletter.Letter.ReplayHeaders]. That a letter failed again is known from a copy of what is dead-lettered
// meanwhile, and that it was handled from the inbox.
func (q *FailedQueue) Replay(
	ctx context.Context, f deadletter.Filter, o deadletter.ReplayOptions,
) iter.Seq2[deadletter.Progress, error] {
	return func(yield func(deadletter.Progress, error) bool) {
		o, err := o.Check()
		if err != nil {
			yield(deadletter.Progress{}, err)
			return
		}
		var run *deadletter.Run
		err = q.look(ctx, func(r *reading) error {
			s := &sender{queue: q, reading: r, filter: f, options: o, plan: deadletter.NewPlan(), homes: map[string]error{}}
			var err error
			run, err = s.replay(ctx, yield)
			return err
		})
		if run == nil && err != nil {
			yield(deadletter.Progress{ReplayID: o.Resume}, fmt.Errorf("replay dead letters: %w", err))
		}
		if run != nil {
			run.End(err)
		}
	}
}

// sender is a replay from the failed queue.
type sender struct {
	queue   *FailedQueue
	reading *reading
	filter  deadletter.Filter
	options deadletter.ReplayOptions
	plan    *deadletter.Plan
	hand    map[string]letter // those that are about to be sent, by their ids
	homes   map[string]error  // of each queue to which letters return, why nothing can be sent there

	mu   sync.Mutex
	back []deadletter.Letter
}

// replay returns the run once it has begun.
func (s *sender) replay(ctx context.Context, yield func(deadletter.Progress, error) bool) (*deadletter.Run, error) {
	end, err := s.watch()
	if err != nil {
		return nil, err
	}
	defer end()
	err = s.reading.each(ctx, s.filter, func(l letter) (bool, error) {
		if !s.passedOver(l) {
			s.plan.Add(l.Letter)
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	run, err := deadletter.NewRun(s.options, s, s.plan.Len(), yield)
	for left := s.plan.Len() + 1; err == nil && 0 < s.plan.Len() && s.plan.Len() < left; {
		left = s.plan.Len()
		err = s.walk(ctx, run)
	}
	if err == nil {
		err = run.Finish(ctx)
	}
	return run, err
}

// passedOver tells whether a letter has failed again in the replay that is resumed.
func (s *sender) passedOver(l letter) bool { return l.ReplayID == s.options.Resume }

// walk sends what it meets of the plan, and stops when it has gone on for long.
func (s *sender) walk(ctx context.Context, run *deadletter.Run) error {
	s.plan.Forget()
	s.hand = map[string]letter{}
	begun := time.Now()
	filter := s.filter
	filter.Limit = 0
	return s.reading.take(ctx, filter, func(l letter) (bool, error) {
		if !s.plan.Has(l.ID) {
			return true, nil
		}
		err := s.plan.Meet(l.ID, func() error {
			if !s.options.DryRun {
				s.hand[l.ID] = l
			}
			return run.Offer(ctx, l.Letter)
		})
		return s.plan.Len() > 0 && time.Since(begun) < walkTime, err
	}, func() error { return run.Flush(ctx) })
}

// Send implements [deadletter.Sender].
func (s *sender) Send(ctx context.Context, letters []deadletter.Letter) ([]error, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	sending, end := outlast(ctx)
	defer end()
	kept := make([]error, len(letters))
	var out []outgoing
	for i, l := range letters {
		o, err := s.outgoing(s.hand[l.ID])
		if err == nil {
			err = s.home(o)
		}
		if s.reading.session.conn.IsClosed() {
			return nil, fmt.Errorf("%w: the connection is gone", ErrUnavailable)
		}
		if kept[i] = err; err == nil {
			out = append(out, o)
		}
	}
	err := s.queue.publisher.publish(sending, len(out), func(i int) (outgoing, error) { return out[i], nil })
	if err != nil {
		return nil, err
	}
	for i, l := range letters {
		if kept[i] == nil {
			if err := s.hand[l.ID].ack(); err != nil {
				return nil, fmt.Errorf("letter %s was republished, but not removed: %w", l.ID, err)
			}
		}
		delete(s.hand, l.ID)
	}
	return kept, nil
}

// outgoing is the message to publish in place of a letter. The error wraps [ErrTooLarge].
func (s *sender) outgoing(l letter) (outgoing, error) {
	p := publishingOf(l.delivery)
	p.Headers = withoutLetterKeys(p.Headers)
	p.Expiration = cmp.Or(text(l.delivery.Headers, expirationKey), p.Expiration)
	o := outgoing{key: s.queue.home(l.Source), eventType: p.Type}
	if s.options.To == deadletter.ToBus {
		delete(p.Headers, bus.ReplayHandlerKey)
		o.exchange = s.queue.conn.names.exchange
		o.key = cutKey(cmp.Or(l.Type, text(l.delivery.Headers, deadletter.TopicKey)))
	}
	for key, value := range l.ReplayHeaders(s.options.Resume, s.options.To, time.Now()) {
		p.Headers[key] = value
	}
	err := s.queue.prepare(&p)
	if errors.Is(err, ErrTooLarge) { // its own headers leave no room for ours
		delete(p.Headers, deadletter.HistoryKey)
		err = s.queue.prepare(&p)
	}
	o.message = p
	return o, err
}

// home says why the queue that a letter returns to takes nothing.
func (s *sender) home(o outgoing) error {
	if o.exchange != "" {
		return nil
	}
	problem, known := s.homes[o.key]
	if !known {
		problem = s.look(o.key)
		s.homes[o.key] = problem
	}
	if answer, ok := errors.AsType[*amqp091.Error](problem); ok && answer.Code == amqp091.NotFound {
		return &UnroutableError{RoutingKey: o.key, EventType: o.eventType}
	}
	return problem
}

func (s *sender) look(queue string) error {
	channel, err := s.reading.channel()
	if err != nil {
		return err
	}
	defer channel.Close() // closed by the broker, if there is no such queue
	defer s.reading.session.bound()()
	_, err = channel.QueueDeclarePassive(queue, true, false, false, false, nil)
	return err
}

// watch collects the letters that fail again from now on.
func (s *sender) watch() (end func(), err error) {
	channel, err := s.reading.channel()
	if err != nil {
		return nil, err
	}
	defer s.reading.session.bound()()
	if err := channel.QueueBind(s.reading.lock, failedKey, s.queue.conn.names.deadLetterExchange, false, nil); err != nil {
		return nil, fmt.Errorf("bind queue %q: %w", s.reading.lock, err)
	}
	deliveries, err := channel.Consume(s.reading.lock, "", true, true, false, false, nil)
	if err != nil {
		return nil, fmt.Errorf("consume queue %q: %w", s.reading.lock, err)
	}
	var watching sync.WaitGroup
	watching.Go(func() {
		for d := range deliveries {
			if text(d.Headers, deadletter.ReplayIDKey) != s.options.Resume {
				continue
			}
			l := letterOf(d)
			l.ID, l.Body = letterID(d), nil
			s.mu.Lock()
			s.back = append(s.back, l)
			s.mu.Unlock()
		}
	})
	return func() {
		defer s.reading.session.bound()()
		_ = channel.Close() // of no use any more, whatever it says
		watching.Wait()
	}, nil
}

// Outcomes implements [deadletter.Sender].
func (s *sender) Outcomes(ctx context.Context, sent []deadletter.Letter) ([]string, []deadletter.Letter, error) {
	var handled []string
	for page := range slices.Chunk(sent, handledAtOnce) {
		ids := make([]uuid.UUID, len(page))
		for i, l := range page {
			ids[i] = l.Event.ID
		}
		handlings, err := s.options.Inbox.HandledOf(ctx, ids)
		if err != nil {
			return nil, nil, fmt.Errorf("look up what was handled: %w", err)
		}
		for _, l := range page {
			if slices.ContainsFunc(handlings[l.Event.ID], func(h store.Handling) bool { return h.Handler == l.Handler }) {
				handled = append(handled, l.ID)
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	back := s.back
	s.back = nil
	return handled, back, nil
}

// Traceable implements [deadletter.Sender]: of an event's handler the inbox knows.
func (s *sender) Traceable(l deadletter.Letter) bool {
	return s.options.Inbox != nil && l.Handler != "" && l.Event.ID != uuid.Nil
}

package amqp

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/deadletter"
)

const (
	// maxAhead is how many letters the broker sends before it has to be asked for more, the most that it can be asked for.
	// Where letters are acked meanwhile they are fewer, as for each ack the broker looks through all that is not acked;
	// they are more if they would else be too many stretches: a connection has 2047 channels by default.
	maxAhead       = math.MaxUint16
	ackAhead       = 5000
	ackAheadQuorum = 300
	maxStretches   = 1000
	// busyPatience is how long to wait for another who has the letters in hand, and busyInterval between two looks.
	busyPatience = 5 * time.Second
	busyInterval = 100 * time.Millisecond
	// stopPatience is how long what is begun may still take once it is to stop.
	stopPatience = 5 * time.Second
	// returnAtOnce is how many letters return to a quorum queue in order, and returnInterval the time between two looks
	// whether they are back.
	returnAtOnce   = 32
	returnInterval = time.Millisecond
	returnPatience = 30 * time.Second
	// quiet is how long nothing may come, once or twice, before it is given up: letters that were counted may expire.
	quiet = 15 * time.Second
)

// reading is a look at the dead letters. They are consumed and not acked, so that the broker gives back what is left, in
// its old order, when the reading is over, also by death. Nobody else can look meanwhile: he would see what is left over.
type reading struct {
	queue   string
	quorum  bool
	session *session
	// lock is a queue that is the connection's own, by which the others know that the letters are in hand. A replay binds
	// it to what is dead-lettered, so as to hear of what fails again.
	lock string
	// there are as many letters as were there at the beginning and are not acked; -1: nobody has counted yet. A quorum queue
	// counts late what has just come back.
	there int
}

// look does something with the letters, which nobody else looks at meanwhile. The error wraps [deadletter.ErrBusy] when
// another is not over for a while.
func (q *FailedQueue) look(ctx context.Context, do func(*reading) error) error {
	s, err := q.conn.connect(ctx, "dead letters", newWindow())
	if err != nil {
		return err
	}
	defer s.close()
	lasting, end := outlast(ctx)
	defer end()
	defer context.AfterFunc(lasting, s.kill)()
	r := &reading{
		queue: q.conn.names.failedQueue, quorum: q.conn.config.QueueType == QuorumQueues, session: s,
		lock: q.conn.names.failedQueue + ".reader", there: -1,
	}
	if err := r.acquire(ctx); err != nil {
		return err
	}
	return do(r)
}

// outlast returns a context that ends a while after ctx: a letter that is on its way when the user stops is yet to leave the
// queue, or it is there twice.
func outlast(ctx context.Context) (lasting context.Context, end func()) {
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(stopPatience, cancel) })
	return lasting, func() {
		stop()
		cancel()
	}
}

// acquire waits for its turn.
func (r *reading) acquire(ctx context.Context) error {
	deadline := time.NewTimer(busyPatience)
	defer deadline.Stop()
	for {
		free, err := r.tryAcquire()
		if err != nil || free {
			return errorOf(ctx, err)
		}
		select {
		case <-time.After(busyInterval):
		case <-deadline.C:
			return deadletter.ErrBusy
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tryAcquire takes the lock, and tells whether it has it and the one before has given all letters back.
func (r *reading) tryAcquire() (bool, error) {
	channel, err := r.channel()
	if err != nil {
		return false, err
	}
	defer channel.Close() // closed by the broker, if it refuses
	defer r.session.bound()()
	_, err = channel.QueueDeclare(r.lock, false, false, true, false, nil)
	if answer, ok := errors.AsType[*amqp091.Error](err); ok && answer.Code == amqp091.ResourceLocked {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("declare queue %q: %w", r.lock, err)
	}
	queue, err := channel.QueueDeclarePassive(r.queue, true, false, false, false, nil)
	if err != nil {
		return false, fmt.Errorf("count: %w", err)
	}
	return queue.Consumers == 0, nil
}

func (r *reading) channel() (*amqp091.Channel, error) {
	defer r.session.bound()()
	channel, err := r.session.conn.Channel()
	if err != nil {
		return nil, fmt.Errorf("open channel: %w", err)
	}
	return channel, nil
}

// errorOf is err, or why there is no connection any more.
func errorOf(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// letter is a letter in hand.
type letter struct {
	deadletter.Letter

	delivery amqp091.Delivery
	walk     *walk
	stretch  *stretch
}

// ack removes the letter. It is certain once the walk has ended without an error.
func (l letter) ack() error {
	l.walk.there--
	l.stretch.acked[l.delivery.DeliveryTag] = struct{}{}
	if l.walk.quorum && !l.stretch.ended {
		return nil // it is acked then
	}
	return l.delivery.Ack(false)
}

// each goes once over the letters that f chooses, of those that lie there now, oldest first, until visit wants no more.
// visit does not ack any.
func (r *reading) each(ctx context.Context, f deadletter.Filter, visit func(letter) (more bool, err error)) error {
	return r.walk(ctx, maxAhead, f, visit, func() error { return nil })
}

// take is each for a visit that acks letters, at once or when it is called the next time, or last, which is called at the
// end unless visit has failed. What was not acked by then goes back.
func (r *reading) take(
	ctx context.Context, f deadletter.Filter, visit func(letter) (more bool, err error), last func() error,
) error {
	ahead := ackAhead
	if r.quorum {
		ahead = ackAheadQuorum
	}
	return r.walk(ctx, ahead, f, visit, last)
}

func (r *reading) walk(
	ctx context.Context, ahead int, f deadletter.Filter, visit func(letter) (bool, error), last func() error,
) error {
	if err := r.count(); err != nil {
		return errorOf(ctx, err)
	}
	w := &walk{reading: r, left: r.there, ahead: min(max(ahead, r.there/maxStretches), maxAhead), ids: map[string]int{}}
	chosen := 0
	err := w.run(ctx, func(l letter) (bool, error) {
		l.Letter = letterOf(l.delivery)
		l.ID = w.idOf(l.delivery)
		if !f.Match(l.Letter) {
			return true, nil
		}
		chosen++
		more, err := visit(l)
		return more && chosen != f.Limit, err
	}, last)
	return errorOf(ctx, err)
}

// count counts the letters, once.
func (r *reading) count() error {
	if r.there >= 0 {
		return nil
	}
	n, err := r.ready()
	if err == nil {
		r.there = n
	}
	return err
}

// ready is how many letters nobody has in hand.
func (r *reading) ready() (int, error) {
	channel, err := r.channel()
	if err != nil {
		return 0, err
	}
	defer channel.Close() // it has served
	return r.readyOn(channel)
}

func (r *reading) readyOn(channel *amqp091.Channel) (int, error) {
	defer r.session.bound()()
	queue, err := channel.QueueDeclarePassive(r.queue, true, false, false, false, nil)
	if err != nil {
		return 0, fmt.Errorf("count: %w", err)
	}
	return queue.Messages, nil
}

// walk goes over the letters once, in stretches.
type walk struct {
	*reading

	left      int // of those that lay there when it began
	ahead     int // the length of a stretch
	ids       map[string]int
	stretches []*stretch
}

// stretch is what one consumer gets: as many letters as the broker sends without acks. It has a channel of its own, as the
// broker looks through all that is not acked on a channel for each ack.
//
// To an ack the broker answers with one more letter. What a quorum queue sends while a consumer is cancelled is lost from
// sight, so there nothing is acked before the stretch has ended, when nothing is on its way.
type stretch struct {
	channel *amqp091.Channel
	size    int
	last    uint64 // delivery tag
	acked   map[uint64]struct{}
	ended   bool
}

// run visits the letters until visit wants no more, calls last, and gives back what was not acked.
func (w *walk) run(ctx context.Context, visit func(letter) (bool, error), last func() error) error {
	more := true
	var err error
	for w.left > 0 && more && err == nil {
		more, err = w.consume(ctx, visit)
	}
	if err == nil {
		err = last()
	}
	if ctx.Err() != nil {
		return err
	}
	// What returns to a quorum queue goes behind what has returned before, so all has to return anew.
	for w.quorum && w.left > 0 {
		if _, rest := w.consume(ctx, func(letter) (bool, error) { return true, nil }); rest != nil {
			return errors.Join(err, rest)
		}
	}
	return errors.Join(err, w.giveBack(ctx))
}

// giveBack closes the channels. With that the acks are through; and it waits until what was not acked is back, before
// another looks.
func (w *walk) giveBack(ctx context.Context) error {
	channel, err := w.channel()
	if err != nil {
		return err
	}
	defer channel.Close() // it has served
	if w.quorum {
		if err := w.giveBackInOrder(ctx, channel); err != nil {
			return err
		}
	}
	for _, s := range w.stretches {
		release := w.session.bound()
		err := s.channel.Close()
		release()
		if err != nil {
			return fmt.Errorf("close channel: %w", err)
		}
	}
	return w.awaitReturn(ctx, channel, w.there)
}

// giveBackInOrder gives back to a quorum queue what was not acked. What returns to it at once, as by a close, is put back
// in any order unless it is little, and what is given back before that is through counts as at once.
func (w *walk) giveBackInOrder(ctx context.Context, channel *amqp091.Channel) error {
	there, err := w.readyOn(channel)
	if err != nil {
		return err
	}
	for _, s := range w.stretches {
		for tags := range slices.Chunk(s.unacked(), returnAtOnce) {
			if err := s.channel.Nack(tags[len(tags)-1], true, true); err != nil {
				return fmt.Errorf("give back: %w", err)
			}
			there += len(tags)
			if err := w.awaitReturn(ctx, channel, there); err != nil {
				return err
			}
		}
	}
	return nil
}

// unacked are the delivery tags of what was not acked.
func (s *stretch) unacked() []uint64 {
	var tags []uint64
	for tag := uint64(1); tag <= s.last; tag++ {
		if _, acked := s.acked[tag]; !acked {
			tags = append(tags, tag)
		}
	}
	return tags
}

// awaitReturn waits until at least so many letters are ready; not for long, as some may have expired.
func (w *walk) awaitReturn(ctx context.Context, channel *amqp091.Channel, there int) error {
	deadline := time.Now().Add(returnPatience)
	for {
		if n, err := w.readyOn(channel); err != nil || n >= there || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(returnInterval):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// consume visits the letters of the next stretch, until visit wants no more.
func (w *walk) consume(ctx context.Context, visit func(letter) (bool, error)) (more bool, err error) {
	s, deliveries, err := w.begin()
	if err != nil {
		return false, err
	}
	held, stop := w.hold(deliveries)
	defer stop()
	more = true
	looks := time.NewTicker(quiet)
	defer looks.Stop()
	looked := -1
	for n := 0; w.left > 0 && (w.quorum || more && err == nil); {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		if n == s.size && !s.ended {
			if err := w.end(s); err != nil {
				return false, err
			}
		}
		select {
		case d, open := <-held:
			if !open && s.ended {
				return more, err
			}
			if !open || d.Acknowledger == nil {
				return false, fmt.Errorf("%w: the queue or the connection is gone", ErrUnavailable)
			}
			n++
			w.left--
			s.last = d.DeliveryTag
			if more && err == nil {
				more, err = visit(letter{delivery: d, walk: w, stretch: s})
			}
			w.session.window.hold(-len(d.Body))
		case <-looks.C:
			if n != looked {
				looked = n
				continue
			}
			return false, fmt.Errorf("%w: %d letters do not come; they may have expired, or somebody else has taken them", ErrUnavailable, w.left)
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
	if w.quorum && !s.ended {
		err = errors.Join(err, w.end(s))
	}
	return more, err
}

func (w *walk) begin() (*stretch, <-chan amqp091.Delivery, error) {
	channel, err := w.channel()
	if err != nil {
		return nil, nil, err
	}
	s := &stretch{channel: channel, size: w.ahead, acked: map[uint64]struct{}{}}
	if w.quorum {
		s.size = min(w.ahead, w.left)
	}
	w.stretches = append(w.stretches, s)
	defer w.session.bound()()
	if err := channel.Qos(s.size, 0, false); err != nil {
		return nil, nil, fmt.Errorf("set prefetch: %w", err)
	}
	// No program of somebody else shall get some of the letters now. A quorum queue knows no such consumer.
	deliveries, err := channel.Consume(w.queue, consumerTag, false, !w.quorum, false, false, nil)
	if answer, ok := errors.AsType[*amqp091.Error](err); ok && answer.Code == amqp091.AccessRefused {
		return nil, nil, fmt.Errorf("%w: %w", deadletter.ErrBusy, err)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("consume: %w", err)
	}
	return s, deliveries, nil
}

// end ends a stretch.
func (w *walk) end(s *stretch) error {
	defer w.session.bound()()
	if err := s.channel.Cancel(consumerTag, false); err != nil {
		return fmt.Errorf("consume no more: %w", err)
	}
	s.ended = true
	for tag := uint64(1); w.quorum && tag <= s.last; tag++ {
		if _, acked := s.acked[tag]; acked {
			if err := s.channel.Ack(tag, false); err != nil {
				return fmt.Errorf("ack: %w", err)
			}
		}
	}
	return nil
}

// hold counts the bodies of the deliveries as they come, so that no more are read than there is room for.
func (w *walk) hold(deliveries <-chan amqp091.Delivery) (held <-chan amqp091.Delivery, stop func()) {
	out, done := make(chan amqp091.Delivery), make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		defer close(out)
		var queue []amqp091.Delivery
		for deliveries != nil || len(queue) > 0 {
			var send chan<- amqp091.Delivery
			var first amqp091.Delivery
			if len(queue) > 0 {
				send, first = out, queue[0]
			}
			select {
			case d, open := <-deliveries:
				if !open {
					deliveries = nil
					continue
				}
				w.session.window.hold(len(d.Body))
				queue = append(queue, d)
			case send <- first:
				queue[0] = amqp091.Delivery{}
				queue = queue[1:]
			case <-done:
				for _, d := range queue {
					w.session.window.hold(-len(d.Body))
				}
				return
			}
		}
	})
	return out, func() {
		close(done)
		running.Wait()
	}
}

// idOf is the letter's id, made the only one of its kind.
func (w *walk) idOf(d amqp091.Delivery) string {
	id := letterID(d)
	if w.ids[id]++; w.ids[id] > 1 {
		return id + "#" + strconv.Itoa(w.ids[id])
	}
	return id
}

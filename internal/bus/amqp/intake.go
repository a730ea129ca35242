package amqp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/store"
)

// next ingests the next batch, if letters come, and returns the consumer to go on with.
func (t *intake) next(ctx context.Context, c *consumer, quiet *int) (*consumer, error) {
	if err := t.retryRefused(ctx); err != nil {
		return nil, err
	}
	if len(t.refused) >= maxRefused {
		if t.drain {
			return nil, t.refusal()
		}
		pause(ctx, refusedInterval)
		return c, ctx.Err()
	}
	batch, bytes, err := t.collect(ctx, c)
	if err != nil {
		return nil, err
	}
	if *quiet++; len(batch) > 0 || !t.drain {
		*quiet = 0
	} else if n, err := t.ready(c.channel); err != nil || n > 0 {
		*quiet = 0
		return c, err
	}
	// All that the prefetch allows has arrived, so the consumer can be replaced: by one with a larger prefetch, as the
	// letters are small, or because letters that were refused use up its prefetch.
	complete := len(batch)+c.refused == c.prefetch && c.next == nil
	prefetch := c.prefetch
	if 8*bytes <= store.PageBytes && len(batch) > 0 {
		prefetch = min(8*prefetch, maxAhead)
	}
	if !complete || prefetch == c.prefetch && 2*c.refused < c.prefetch {
		return c, t.ingest(ctx, batch)
	}
	if err := t.cancel(c); err != nil {
		return nil, err
	}
	if err := t.ingest(ctx, batch); err != nil {
		return nil, err
	}
	if c.refused == 0 {
		release := t.session.bound()
		_ = c.channel.Close() // it is not used any more
		release()
	}
	return t.consume(prefetch)
}

func (t *intake) cancel(c *consumer) error {
	defer t.session.bound()()
	if err := c.channel.Cancel(consumerTag, false); err != nil {
		return fmt.Errorf("replace the consumer: %w", classify(err))
	}
	return nil
}

// ready is how many letters in the queue are ready. When the answer comes, the broker has the acks sent before on the channel.
func (t *intake) ready(channel *amqp091.Channel) (int, error) {
	defer t.session.bound()()
	queue, err := channel.QueueDeclarePassive(t.conn.names.failedQueue, true, false, false, false, nil)
	if err != nil {
		return 0, fmt.Errorf("count the dead letters: %w", classify(err))
	}
	return queue.Messages, nil
}

// collect waits for a batch. It is empty when nothing has come for a while, or nothing can come.
func (t *intake) collect(ctx context.Context, c *consumer) (batch []inFlight, bytes int, err error) {
	idle := refusedInterval
	if t.drain {
		idle = linger
	}
	timer := time.NewTimer(idle)
	defer timer.Stop()
	room := min(maxBatch, c.prefetch-c.refused)
	for len(batch) < room {
		if c.next == nil {
			select {
			case d, open := <-c.arrived:
				if !open {
					return nil, 0, fmt.Errorf("%w: the consumer is lost", ErrUnavailable)
				}
				c.next = &d
			case <-timer.C:
				return batch, bytes, nil
			case <-ctx.Done():
				return nil, 0, context.Cause(ctx)
			}
		}
		if len(batch) > 0 && bytes+len(c.next.Body) > store.PageBytes {
			break
		}
		if len(batch) == 0 {
			timer.Reset(linger)
		}
		bytes += len(c.next.Body)
		batch = append(batch, arrivalOf(*c.next, c))
		c.next = nil
	}
	return batch, bytes, nil
}

func arrivalOf(d amqp091.Delivery, c *consumer) inFlight {
	_, counted := d.Headers[deliveryCountKey]
	d.Headers = withoutCounts(d.Headers)
	l := inFlight{consumer: c, counted: counted, Arrival: deadletter.Arrival{
		Letter: letterOf(d), Service: serviceOfKey(d.RoutingKey), MessageID: d.MessageId, Redelivered: d.Redelivered,
	}}
	l.ID = text(d.Headers, deadletter.IDKey)
	l.Raw, l.problem = rawOf(d)
	l.delivery = amqp091.Delivery{Acknowledger: d.Acknowledger, DeliveryTag: d.DeliveryTag}
	return l
}

func arrivals(letters []inFlight) []deadletter.Arrival {
	all := make([]deadletter.Arrival, len(letters))
	for i, l := range letters {
		all[i] = l.Arrival
	}
	return all
}

// ingest writes letters to the table and acks them. If one is refused, the others are written one by one.
func (t *intake) ingest(ctx context.Context, letters []inFlight) error {
	if len(letters) == 0 {
		return nil
	}
	var err error
	for _, l := range letters {
		err = errors.Join(err, l.problem)
	}
	if err == nil {
		if err = t.write(ctx, letters, t.table.Ingest); err == nil {
			return t.settle(ctx, letters)
		}
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case isOutage(err):
		return err
	case len(letters) == 1:
		t.refuse(ctx, letters[0], err)
		return nil
	}
	for _, l := range letters {
		if err := t.ingest(ctx, []inFlight{l}); err != nil {
			return err
		}
	}
	return nil
}

// isOutage tells whether the store, and not a letter, causes an error.
func isOutage(err error) bool {
	return slices.ContainsFunc([]error{
		store.ErrUnavailable, store.ErrUnknownOutcome, store.ErrNoSchema, store.ErrNewerSchema,
	}, func(outage error) bool { return errors.Is(err, outage) })
}

// write calls the table, again and again while the store is unavailable. The letters stay in flight, even without a
// connection: a letter that is requeued has one delivery more, and the broker drops a letter that has too many.
func (t *intake) write(
	ctx context.Context, letters []inFlight, call func(context.Context, []deadletter.Arrival) error,
) error {
	var outage observe.Outage
	for waits := newWaits(); ; {
		err := call(ctx, arrivals(letters))
		if err == nil {
			outage.Over(ctx, t.logger, "dead letters are ingested again")
		}
		if !isOutage(err) || t.drain || ctx.Err() != nil {
			return err
		}
		outage.Fails(ctx, t.logger, slog.LevelWarn, "cannot ingest dead letters, will try again", "error", err)
		for i := range letters {
			letters[i].Redelivered = true // the table may have it
		}
		pause(ctx, waits.NextBackOff())
	}
}

// settle acks letters that are in the table.
func (t *intake) settle(ctx context.Context, letters []inFlight) error {
	c, last := letters[0].consumer, letters[len(letters)-1].delivery
	var err error
	if c.refused == 0 { // all that came before is acked
		err = last.Ack(true)
	} else {
		for _, l := range letters {
			err = errors.Join(err, l.delivery.Ack(false))
		}
	}
	if err != nil {
		return fmt.Errorf("%w: ack: %w", ErrUnavailable, err)
	}
	t.taken += len(letters)
	nameless := slices.DeleteFunc(slices.Clone(letters), func(l inFlight) bool { return l.HasIdentity() })
	for _, l := range letters {
		t.held.Add(-int64(len(l.Body)))
	}
	if len(nameless) == 0 {
		return nil
	}
	if _, err := t.ready(c.channel); err != nil {
		return err
	}
	return t.write(ctx, nameless, t.table.Acked)
}

// refuse leaves a letter in the queue that the table does not take. If the broker has counted its return to the queue, which
// is bounded in a quorum queue, a copy replaces it.
func (t *intake) refuse(ctx context.Context, l inFlight, problem error) {
	log := t.logger
	if l.counted {
		err := t.replace(ctx, l)
		if err == nil {
			t.held.Add(-int64(len(l.Body)))
			return
		}
		log = log.With("copy_error", err, "advice", "the queue drops a letter that returns to it more often than its delivery limit")
	}
	log.ErrorContext(ctx, "a dead letter is refused by the table and stays in the queue", "letter_id", l.ID,
		"message_id", l.MessageID, "error", problem)
	l.problem = fmt.Errorf("letter %q, message %q: %w", l.ID, l.MessageID, problem)
	l.consumer.refused++
	t.held.Add(-int64(len(l.Body)))
	kept := len(l.Body)
	for _, other := range t.refused {
		kept += len(other.Body)
	}
	if kept > store.PageBytes {
		l.Letter = deadletter.Letter{}
	}
	t.refused = append(t.refused, l)
}

// replace publishes a copy of a letter to the end of the queue and acks the letter. If that is not confirmed, both may stay:
// they are one letter, unless it has no id at all.
func (t *intake) replace(ctx context.Context, l inFlight) error {
	if err := t.conn.publishing.ready(); errors.Is(err, ErrBlocked) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	d, err := deliveryOf(l.Raw, l.Body)
	if err == nil { // the connection that publishes may be lost, too, and made again later
		err = t.queue.send(ctx, t.conn.names.deadLetterExchange, t.conn.names.failedKey, publishingOf(d))
	}
	if err == nil {
		err = l.delivery.Ack(false)
	}
	return err
}

// refusal is the error of the letters that were refused, if any were.
func (t *intake) refusal() error {
	if len(t.refused) == 0 {
		return nil
	}
	return fmt.Errorf("%d letters were refused and stay in the queue, the first as %w", len(t.refused), t.refused[0].problem)
}

// retryRefused tries the refused letters again from time to time.
func (t *intake) retryRefused(ctx context.Context) error {
	if time.Since(t.retried) < refusedInterval {
		return nil
	}
	t.retried = time.Now()
	var still []inFlight
	for i, l := range t.refused {
		err := l.problem
		if l.Raw != nil {
			err = t.write(ctx, t.refused[i:i+1], t.table.Ingest)
		}
		if err != nil {
			still = append(still, l)
			continue
		}
		t.held.Add(int64(len(l.Body)))
		if err := t.settle(ctx, t.refused[i:i+1]); err != nil {
			return err
		}
		l.consumer.refused--
	}
	t.refused = still
	return nil
}

package amqp

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"maps"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/oklog/ulid/v2"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
)

// Headers of a dead letter besides those of package deadletter. All are strings, so that Watermill's tools read them.
const (
	letterIDKey    = "dead_letter_id"
	sourceQueueKey = "source_queue"
	// expirationKey keeps the message's expiration, by which the letter would vanish from the failed queue.
	expirationKey = "dead_letter_expiration"

	// headersDroppedKey says that the message's own headers were so large that the letter has none of them.
	headersDroppedKey = "dead_letter_headers_dropped"
	// userIDKey keeps a user_id that is not the connection's own: the broker refuses it as a property.
	userIDKey = "original_user_id"
)

// isLetterKey tells whether a header is one that a replay takes away again.
func isLetterKey(key string) bool {
	switch key {
	case deadletter.ReasonKey, deadletter.HandlerKey, deadletter.TopicKey, deadletter.AttemptsKey,
		deadletter.FirstFailedKey, deadletter.LastFailedKey, letterIDKey, sourceQueueKey, expirationKey,
		postponedCountKey, postponedAttemptsKey, postponedFirstFailedKey, postponedDeathsKey:
		return true
	default:
		return false
	}
}

const letterTime = "2006-01-02T15:04:05.000Z"

// FailedQueue is the contract's queue of dead letters. Besides those that [FailedQueue.Put] put there it takes those of
// the broker, rejected, expired or crowded out of a queue, and of any program. It is safe for concurrent use.
//
// List and Replay see the letters that lie there when they begin. While they run the broker shows them to nobody else;
// when they end, also by death, it puts back what is left, in its old order; only a quorum queue does not keep that over
// the death of a process. They use a connection of their own, and
// hold one letter at a time.
type FailedQueue struct {
	conn      *Connection
	publisher *Publisher
}

var (
	_ deadletter.Queue     = (*FailedQueue)(nil)
	_ deadletter.Postponer = (*FailedQueue)(nil)
)

// NewFailedQueue returns the failed queue of a Connection.
func NewFailedQueue(c *Connection) *FailedQueue {
	return &FailedQueue{conn: c, publisher: NewPublisher(c)}
}

// Put publishes m as a dead letter: as it was delivered, with all properties and headers of any type, if it comes from
// a [Subscriber], and with headers that tell the failure. The letter is persistent and does not expire. While the broker
// is away it waits for as long as ctx lives.
func (q *FailedQueue) Put(ctx context.Context, m *message.Message, f deadletter.Failure) error {
	p, source, topic, err := q.original(m)
	if err != nil {
		return fmt.Errorf("put dead letter: %w", err)
	}
	h := historyOf(p.Headers)
	p.Headers = withoutLetterKeys(p.Headers)
	h.tell(&p, &f, &topic)
	set := func(key, value string) {
		if value != "" {
			p.Headers[key] = value
		}
	}
	set(letterIDKey, ulid.Make().String())
	set(sourceQueueKey, source)
	set(expirationKey, p.Expiration)
	set(deadletter.ReasonKey, deadletter.CutReason(f.Reason))
	set(deadletter.HandlerKey, f.Handler)
	set(deadletter.TopicKey, topic)
	set(deadletter.AttemptsKey, strconv.Itoa(f.Attempts))
	set(deadletter.FirstFailedKey, f.FirstFailed.UTC().Format(letterTime))
	set(deadletter.LastFailedKey, f.LastFailed.UTC().Format(letterTime))
	p.Expiration = ""
	err = q.send(ctx, q.conn.names.deadLetterExchange, failedKey, p)
	if errors.Is(err, ErrTooLarge) { // its own headers leave no room for ours: better a letter without them than none
		p.Headers = onlyLetterKeys(p.Headers)
		p.Headers[headersDroppedKey] = "true"
		err = q.send(ctx, q.conn.names.deadLetterExchange, failedKey, p)
	}
	if err != nil {
		return fmt.Errorf("put dead letter: %w", err)
	}
	return nil
}

// original is the message as it first was, the queue that it came from, and its routing key.
func (q *FailedQueue) original(m *message.Message) (p amqp091.Publishing, source, topic string, err error) {
	if o, ok := m.Context().Value(originKey{}).(origin); ok {
		return publishingOf(o.delivery), o.queue, o.delivery.RoutingKey, nil
	}
	p, err = q.conn.routing.Marshaler.Marshal(m)
	return p, q.conn.names.consumerQueue, m.Metadata.Get(bus.EventTypeKey), err
}

// send publishes one message that has been on the broker before, and waits for the confirm.
func (q *FailedQueue) send(ctx context.Context, exchange, key string, p amqp091.Publishing) error {
	p.DeliveryMode = amqp091.Persistent
	if p.UserId != "" && p.UserId != q.conn.uri.Username {
		p.Headers[userIDKey], p.UserId = p.UserId, ""
	}
	if err := checkSize(p); err != nil {
		return err
	}
	return q.publisher.publish(ctx, 1, func(int) (outgoing, error) {
		return outgoing{exchange: exchange, key: key, eventType: p.Type, message: p}, nil
	})
}

// List yields the letters that f chooses, oldest first.
func (q *FailedQueue) List(ctx context.Context, f deadletter.Filter) iter.Seq2[deadletter.Letter, error] {
	return f.Choose(func(yield func(deadletter.Letter, error) bool) {
		err := q.walk(ctx, func(d amqp091.Delivery) (taken, more bool, err error) {
			return false, yield(letterOf(d), nil), nil
		})
		if err != nil {
			yield(deadletter.Letter{}, fmt.Errorf("list dead letters: %w", err))
		}
	})
}

// Replay republishes the letters that f chooses to the queue they come from, or else to the consumer's, oldest first. A
// letter leaves the failed queue after the broker has confirmed its republication, and is then yielded; if the process
// dies in between it is replayed twice. A letter that cannot be republished, as its queue is no more, is yielded with
// its error and stays; the caller may go on to the next.
//
// The message is as it was, body, properties and headers of any type, without the headers of the failure, and with two
// more: how often it was replayed, and the handler that failed ([bus.ReplayHandlerKey]).
func (q *FailedQueue) Replay(
	ctx context.Context, f deadletter.Filter, o deadletter.ReplayOptions,
) iter.Seq2[deadletter.Progress, error] {
	return func(yield func(deadletter.Progress, error) bool) {
		o, err := o.Check()
		p := deadletter.Progress{ReplayID: o.Resume}
		if err != nil {
			yield(p, err)
			return
		}
		stopped := false
		show := func(step deadletter.Step, l deadletter.Letter, problem error) bool {
			p.Step, p.Letter, p.Problem = step, l, problem
			stopped = !yield(p, nil)
			return !stopped
		}
		err = q.walk(ctx, func(d amqp091.Delivery) (taken, more bool, err error) {
			l := letterOf(d)
			if !f.Match(l) {
				return false, true, nil
			}
			err = q.send(ctx, "", q.home(l.Source), replayOf(d, l, o))
			if _, unroutable := errors.AsType[*UnroutableError](err); unroutable {
				p.Kept++
				return false, show(deadletter.Kept, l, err), nil
			}
			if err != nil {
				return false, false, fmt.Errorf("letter %s: %w", l.ID, err)
			}
			if err := d.Ack(false); err != nil {
				return false, false, fmt.Errorf("letter %s was republished, but not removed: %w", l.ID, err)
			}
			p.Sent++
			return true, show(deadletter.Sent, l, nil), nil
		})
		switch {
		case stopped:
		case err != nil:
			yield(p, fmt.Errorf("replay dead letters: %w", err))
		default:
			show(deadletter.Done, deadletter.Letter{}, nil)
		}
	}
}

// Take takes the letters that f chooses out of the queue, once keep has them.
func (q *FailedQueue) Take(
	ctx context.Context, f deadletter.Filter, keep func(context.Context, []deadletter.Letter) error,
) (int, error) {
	n := 0
	err := q.walk(ctx, func(d amqp091.Delivery) (taken, more bool, err error) {
		l := letterOf(d)
		if !f.Match(l) {
			return false, true, nil
		}
		if err := keep(ctx, []deadletter.Letter{l}); err != nil {
			return false, false, err
		}
		if err := d.Ack(false); err != nil {
			return false, false, fmt.Errorf("letter %s is kept elsewhere, but not removed: %w", l.ID, err)
		}
		n++
		return true, n != f.Limit, nil
	})
	if err != nil {
		return n, fmt.Errorf("take dead letters: %w", err)
	}
	return n, nil
}

// Return publishes letters to the queue, as they were when they were listed.
func (q *FailedQueue) Return(ctx context.Context, letters []deadletter.Letter) ([]string, error) {
	list := make([]amqp091.Publishing, len(letters))
	returned := make([]string, len(letters))
	for i, l := range letters {
		if l.Raw == nil {
			return nil, fmt.Errorf("return dead letter %s: %w", l.ID, deadletter.ErrForeign)
		}
		d, err := deliveryOf(l.Raw, l.Body)
		if err != nil {
			return nil, fmt.Errorf("return dead letter %s: %w", l.ID, err)
		}
		list[i], returned[i] = publishingOf(d), letterID(d)
		if history := l.History.Header(); history != "" {
			list[i].Headers[deadletter.HistoryKey] = history
		}
	}
	for i, p := range list {
		if err := q.send(ctx, q.conn.names.deadLetterExchange, failedKey, p); err != nil {
			return nil, fmt.Errorf("return dead letter %s: %w", letters[i].ID, err)
		}
	}
	return returned, nil
}

// home is the queue to which a message of some queue returns. A partition that is no more is not consumed any more.
func (q *FailedQueue) home(source string) string {
	n := q.conn.names
	if i, ok := n.partitionOf(source); source == "" || ok && i >= q.conn.config.Partitions {
		return n.consumerQueue
	}
	return source
}

// Purge destroys all letters and returns how many.
func (q *FailedQueue) Purge(ctx context.Context) (int, error) {
	s, err := q.conn.connect(ctx, "dead letters", nil)
	if err != nil {
		return 0, fmt.Errorf("purge dead letters: %w", err)
	}
	defer s.close()
	defer context.AfterFunc(ctx, s.kill)()
	channel, err := s.conn.Channel()
	if err != nil {
		return 0, fmt.Errorf("purge dead letters: open channel: %w", err)
	}
	n, err := channel.QueuePurge(q.conn.names.failedQueue, false)
	if err != nil {
		return 0, fmt.Errorf("purge dead letters: %w", err)
	}
	return n, nil
}

// walk shows the letters that lie there now, oldest first, until visit is done or fails. Those that visit does not take,
// by an ack, go back.
func (q *FailedQueue) walk(ctx context.Context, visit func(amqp091.Delivery) (taken, more bool, err error)) error {
	s, err := q.conn.connect(ctx, "dead letters", nil)
	if err != nil {
		return err
	}
	defer s.close()
	defer context.AfterFunc(ctx, s.kill)()
	channel, err := s.conn.Channel()
	if err != nil {
		return fmt.Errorf("open channel: %w", err)
	}
	queue, err := channel.QueueDeclarePassive(q.conn.names.failedQueue, true, false, false, false, nil)
	if err != nil {
		return fmt.Errorf("count: %w", err)
	}
	var back []uint64
	for i, more := 0, true; i < queue.Messages && more && err == nil; i++ {
		var d amqp091.Delivery
		if d, more, err = s.get(channel, queue.Name); !more || err != nil {
			break
		}
		var taken bool
		if taken, more, err = visit(d); !taken {
			back = append(back, d.DeliveryTag)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if q.conn.config.QueueType == QuorumQueues { // what is got of such a queue returns at a close in any order
		for _, tag := range back {
			_ = channel.Nack(tag, false, true) // fails only if the channel is lost
		}
	}
	if err != nil {
		return err
	}
	if err := channel.Close(); err != nil { // the acks are through, and the others are back
		return fmt.Errorf("close channel: %w", err)
	}
	return nil
}

func (s *session) get(channel *amqp091.Channel, queue string) (amqp091.Delivery, bool, error) {
	defer s.bound()()
	d, ok, err := channel.Get(queue, false)
	if err != nil {
		return d, ok, fmt.Errorf("get: %w", err)
	}
	return d, ok, nil
}

// letterOf reads a letter, whoever wrote it.
func letterOf(d amqp091.Delivery) deadletter.Letter {
	l := deadletter.Letter{
		ID: letterID(d), Type: d.Type, Source: text(d.Headers, sourceQueueKey), Headers: withoutLetterKeys(d.Headers), Body: d.Body,
	}
	l.Raw, _ = rawOf(d) // what came over the wire is encoded
	l.Failure, l.Source = failureOf(d, l.Source)
	return deadletter.Complete(l)
}

// failureOf reads why a letter failed, and where it comes from: of the worker's headers, or else the broker's.
func failureOf(d amqp091.Delivery, source string) (deadletter.Failure, string) {
	if reason, ok := d.Headers[deadletter.ReasonKey].(string); ok {
		f := deadletter.Failure{
			Reason:      reason,
			Handler:     text(d.Headers, deadletter.HandlerKey),
			FirstFailed: timeOf(d.Headers, deadletter.FirstFailedKey),
			LastFailed:  timeOf(d.Headers, deadletter.LastFailedKey),
		}
		f.Attempts, _ = strconv.Atoi(text(d.Headers, deadletter.AttemptsKey))
		return f, source
	}
	var f deadletter.Failure
	if deaths, ok := d.Headers["x-death"].([]any); ok && len(deaths) > 0 {
		if last, ok := deaths[0].(amqp091.Table); ok {
			source = cmp.Or(source, text(last, "queue"))
			f.Reason = "dead-lettered by the broker: " + text(last, "reason")
			count, _ := last["count"].(int64)
			f.Attempts = int(count)
			if at, ok := last["time"].(time.Time); ok {
				f.FirstFailed, f.LastFailed = at.UTC(), at.UTC()
			}
		}
	}
	return f, source
}

func letterID(d amqp091.Delivery) string {
	if id := cmp.Or(text(d.Headers, letterIDKey), d.MessageId); id != "" {
		return id
	}
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%q %q %d ", d.Exchange, d.RoutingKey, d.Timestamp.Unix()) // a hash never fails
	_, _ = h.Write(d.Body)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// replayOf is the message to publish in place of a letter.
func replayOf(d amqp091.Delivery, l deadletter.Letter, o deadletter.ReplayOptions) amqp091.Publishing {
	p := publishingOf(d)
	p.Headers = withoutLetterKeys(d.Headers)
	p.Expiration = cmp.Or(text(d.Headers, expirationKey), p.Expiration)
	for key, value := range l.ReplayHeaders(o.Resume, o.To, time.Now()) {
		p.Headers[key] = value
	}
	return p
}

func withoutLetterKeys(headers amqp091.Table) amqp091.Table {
	rest := maps.Clone(headers)
	maps.DeleteFunc(rest, func(key string, _ any) bool { return isLetterKey(key) })
	if rest == nil {
		rest = amqp091.Table{}
	}
	return rest
}

func onlyLetterKeys(headers amqp091.Table) amqp091.Table {
	rest := maps.Clone(headers)
	maps.DeleteFunc(rest, func(key string, _ any) bool { return !isLetterKey(key) })
	return rest
}

func text(headers amqp091.Table, key string) string {
	s, _ := headers[key].(string)
	return s
}

func timeOf(headers amqp091.Table, key string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, text(headers, key))
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

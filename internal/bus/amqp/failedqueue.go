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
// List, Replay, Take and Purge see the letters that lie there when they begin, over a connection of their own. While they
// run the broker shows them to nobody else, and another of them waits a while and then fails with [deadletter.ErrBusy].
// When they end, also by death, it puts back what is left, in its old order; only a quorum queue does not keep that over
// the death of a process.
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
	if f.Handler != "" && text(p.Headers, bus.ReplayHandlerKey) == f.Handler {
		delete(p.Headers, bus.ReplayHandlerKey) // a replay sets it again
	}
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
	if err := q.prepare(&p); err != nil {
		return err
	}
	return q.publisher.publish(ctx, 1, func(int) (outgoing, error) {
		return outgoing{exchange: exchange, key: key, eventType: p.Type, message: p}, nil
	})
}

// prepare makes of a message that has been on the broker before one that it takes.
func (q *FailedQueue) prepare(p *amqp091.Publishing) error {
	p.DeliveryMode = amqp091.Persistent
	if p.UserId != "" && p.UserId != q.conn.uri.Username {
		p.Headers[userIDKey], p.UserId = p.UserId, ""
	}
	return checkSize(*p)
}

// List yields the letters that f chooses, oldest first.
func (q *FailedQueue) List(ctx context.Context, f deadletter.Filter) iter.Seq2[deadletter.Letter, error] {
	return func(yield func(deadletter.Letter, error) bool) {
		stopped := false
		err := q.look(ctx, func(r *reading) error {
			return r.each(ctx, f, func(l letter) (bool, error) {
				var err error
				if l.Raw, err = rawOf(l.delivery); err == nil {
					stopped = !yield(l.Letter, nil)
				}
				return !stopped, err
			})
		})
		if err != nil && !stopped {
			yield(deadletter.Letter{}, fmt.Errorf("list dead letters: %w", err))
		}
	}
}

// Bounds of what [FailedQueue.Take] gives away at a time.
const (
	takeLetters = 200
	takeBytes   = 8 << 20
)

// Take takes the letters that f chooses out of the queue, once keep has returned nil for them.
func (q *FailedQueue) Take(
	ctx context.Context, f deadletter.Filter, keep func(context.Context, []deadletter.Letter) error,
) (taken int, err error) {
	var batch []letter
	bytes := 0
	take := func() error {
		if len(batch) == 0 {
			return nil
		}
		letters := make([]deadletter.Letter, len(batch))
		for i, l := range batch {
			letters[i] = l.Letter
		}
		if err := keep(ctx, letters); err != nil {
			return err
		}
		for _, l := range batch {
			if err := l.ack(); err != nil {
				return fmt.Errorf("letter %s is kept elsewhere, but not removed: %w", l.ID, err)
			}
		}
		taken += len(batch)
		batch, bytes = nil, 0
		return nil
	}
	err = q.look(ctx, func(r *reading) error {
		return r.take(ctx, f, func(l letter) (bool, error) {
			var err error
			if l.Raw, err = rawOf(l.delivery); err != nil {
				return false, err
			}
			batch, bytes = append(batch, l), bytes+len(l.Body)
			if len(batch) == takeLetters || bytes >= takeBytes {
				err = take()
			}
			return true, err
		}, take)
	})
	if err != nil {
		return taken, fmt.Errorf("take dead letters: %w", err)
	}
	return taken, nil
}

// Return publishes letters to the queue, as they were when they were listed.
func (q *FailedQueue) Return(ctx context.Context, letters []deadletter.Letter) ([]string, error) {
	list, ids := make([]amqp091.Publishing, len(letters)), make([]string, len(letters))
	for i, l := range letters {
		var err error
		if list[i], ids[i], err = returned(l); err == nil {
			err = q.prepare(&list[i])
		}
		if err != nil {
			return nil, fmt.Errorf("return dead letter %s: %w", l.ID, err)
		}
	}
	err := q.publisher.publish(ctx, len(list), func(i int) (outgoing, error) {
		return outgoing{exchange: q.conn.names.deadLetterExchange, key: failedKey, eventType: list[i].Type, message: list[i]}, nil
	})
	if err != nil {
		return nil, fmt.Errorf("return dead letters: %w", err)
	}
	return ids, nil
}

// returned is the message of a letter that was listed, with its body and history of now.
func returned(l deadletter.Letter) (p amqp091.Publishing, id string, err error) {
	if l.Raw == nil {
		return p, "", deadletter.ErrForeign
	}
	d, err := deliveryOf(l.Raw, l.Body)
	if err != nil {
		return p, "", err
	}
	p = publishingOf(d)
	if history := l.History.Header(); history != "" {
		p.Headers[deadletter.HistoryKey] = history
	}
	return p, letterID(d), nil
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
func (q *FailedQueue) Purge(ctx context.Context) (n int, err error) {
	err = q.look(ctx, func(r *reading) error {
		channel, err := r.channel()
		if err != nil {
			return err
		}
		defer r.session.bound()()
		n, err = channel.QueuePurge(r.queue, false)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("purge dead letters: %w", err)
	}
	return n, nil
}

// letterOf reads a letter, whoever wrote it.
func letterOf(d amqp091.Delivery) deadletter.Letter {
	l := deadletter.Letter{
		Type: d.Type, Source: text(d.Headers, sourceQueueKey), Headers: withoutLetterKeys(d.Headers), Body: d.Body,
	}
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

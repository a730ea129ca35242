package amqp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/oklog/ulid/v2"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
)

// Headers of a dead letter besides those of package deadletter. All are strings, so that Watermill's tools read them.
const (
	// expirationKey keeps the message's expiration: as a property it would make the letter expire.
	expirationKey = "dead_letter_expiration"
	// headersDroppedKey says that the message's own headers were so large that the letter has none of them.
	headersDroppedKey = "dead_letter_headers_dropped"
	// userIDKey keeps a user_id that is not the connection's own: the broker refuses it as a property.
	userIDKey = "original_user_id"
	// originalKey begins the names of the headers that keep those of copyKeys.
	originalKey = "original_"
)

// copyKeys are the headers by which the broker routes copies of a message to further queues. These had theirs when the
// message was published first.
func copyKeys() []string { return []string{"CC", "BCC"} }

const (
	// putTimeout is how long a queue may take for a letter or a postponed message.
	putTimeout = 5 * time.Second
	// refusalTime is how long after a refusal a letter that is taken does not mean that the queue takes them again.
	refusalTime = 10 * time.Second
	// refusalExpiry is how long after the last refusal it is no longer said that the queue takes no letters: with no other
	// letter to try, it may take them again since.
	refusalExpiry = 10 * time.Minute
)

// letterTime is the format of the times in the headers.
const letterTime = "2006-01-02T15:04:05.000Z"

// isLetterKey tells whether a header is one that a replay removes.
func isLetterKey(key string) bool {
	switch key {
	case deadletter.ReasonKey, deadletter.HandlerKey, deadletter.TopicKey, deadletter.AttemptsKey,
		deadletter.FirstFailedKey, deadletter.LastFailedKey, deadletter.IDKey, deadletter.SourceKey, expirationKey,
		postponedCountKey, bus.EarlierAttemptsKey, postponedFirstFailedKey, postponedDeathsKey:
		return true
	default:
		return false
	}
}

// FailedQueue is the contract's queue of dead letters as a sink. Besides what [FailedQueue.Put] publishes, it holds the
// messages that the broker dead-letters and those of other programs. An [Ingester] consumes it. It is safe for concurrent
// use.
type FailedQueue struct {
	// Table takes the letters that the queue does not take. If it is nil, [FailedQueue.Put] fails then. It and
	// [FailedQueue.Postpone] then wait for a broker that is unavailable.
	Table LetterTable

	conn      *Connection
	publisher *Publisher
	refusal   refusal
}

var _ deadletter.Postponer = (*FailedQueue)(nil)

// NewFailedQueue returns the failed queue of a Connection.
func NewFailedQueue(c *Connection) *FailedQueue {
	return &FailedQueue{conn: c, publisher: NewPublisher(c)}
}

// Put publishes m as a dead letter: as it was delivered, with all properties and headers, if it comes from a [Subscriber],
// and with headers that describe the failure. The letter is persistent and does not expire. What the queue does not take
// soon is written to [FailedQueue.Table]: full, missing or unavailable, it must not keep m in flight for long.
func (q *FailedQueue) Put(ctx context.Context, m *message.Message, f deadletter.Failure) error {
	p, source, topic, err := q.original(m)
	if err != nil {
		return fmt.Errorf("put dead letter: %w", err)
	}
	h := historyOf(p.Headers)
	p.Headers = withoutLetterKeys(p.Headers)
	h.restore(&p, &f, &topic)
	if f.Handler != "" && text(p.Headers, bus.ReplayHandlerKey) == f.Handler {
		delete(p.Headers, bus.ReplayHandlerKey) // a replay sets it again
	}
	set := func(key, value string) {
		if value != "" {
			p.Headers[key] = value
		}
	}
	set(deadletter.IDKey, ulid.Make().String())
	set(deadletter.SourceKey, source)
	set(expirationKey, p.Expiration)
	set(deadletter.ReasonKey, deadletter.CutReason(f.Reason))
	set(deadletter.HandlerKey, f.Handler)
	set(deadletter.TopicKey, topic)
	set(deadletter.AttemptsKey, strconv.Itoa(f.Attempts))
	set(deadletter.FirstFailedKey, f.FirstFailed.UTC().Format(letterTime))
	set(deadletter.LastFailedKey, f.LastFailed.UTC().Format(letterTime))
	p.Expiration = ""
	if err = q.put(ctx, p); err != nil && q.Table != nil && ctx.Err() == nil {
		return q.keep(ctx, p, err)
	}
	if err != nil {
		return fmt.Errorf("put dead letter: %w", err)
	}
	q.refusal.taken(q.conn.config.Logger)
	return nil
}

// bounded bounds a publish with putTimeout, if there is a table to write to otherwise. The error is that of the connection.
func (q *FailedQueue) bounded(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if q.Table == nil {
		return ctx, func() {}, nil
	}
	if err := q.conn.publishing.ready(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	return ctx, cancel, nil
}

// put publishes a letter.
func (q *FailedQueue) put(ctx context.Context, p amqp091.Publishing) error {
	ctx, cancel, err := q.bounded(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	err = q.send(ctx, q.conn.names.deadLetterExchange, q.conn.names.failedKey, p)
	if errors.Is(err, ErrTooLarge) && q.Table == nil { // its own headers leave no room for ours
		maps.DeleteFunc(p.Headers, func(key string, _ any) bool { return !isLetterKey(key) })
		p.Headers[headersDroppedKey] = "true"
		err = q.send(ctx, q.conn.names.deadLetterExchange, q.conn.names.failedKey, p)
	}
	return err
}

// keep writes a letter to the table, as the one that the queue might have all the same: it is the same row then.
func (q *FailedQueue) keep(ctx context.Context, p amqp091.Publishing, refusal error) error {
	_ = q.prepare(&p) // the table takes any size
	l := arrivalOf(deliveredAs(p, q.conn.names.deadLetterExchange, q.conn.names.failedKey), nil)
	err := l.problem
	if err == nil {
		err = q.Table.Ingest(ctx, []deadletter.Arrival{l.Arrival})
	}
	if err != nil {
		return fmt.Errorf("put dead letter: %w; and into the table: %w", refusal, err)
	}
	if q.isOfQueue(refusal) {
		q.refusal.begin(refusal, q.conn.config.Logger)
	}
	return nil
}

// isOfQueue tells whether the failed queue is at fault: not one letter's size, nor the broker, of which the connection tells.
func (q *FailedQueue) isOfQueue(refusal error) bool {
	return (isDeclined(refusal) || errors.Is(refusal, context.DeadlineExceeded)) && !errors.Is(refusal, ErrTooLarge) &&
		q.conn.publishing.ready() == nil
}

// Degraded says since when, and why, dead letters are written to the table instead of the queue; nil if they are not.
func (q *FailedQueue) Degraded() error { return q.refusal.state(q.conn.config.Logger) }

// refusal is the time in which the failed queue takes no letters. It ends with a letter that the queue takes a while after
// the last refusal, as a full queue takes one now and then, or expires. The zero value is that it takes them.
type refusal struct {
	mu           sync.Mutex
	reason       error // of the last one; nil while there is none
	began, again time.Time
}

func (r *refusal) begin(reason error, logger *slog.Logger) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire(logger)
	r.again = time.Now()
	if r.reason == nil {
		r.began = r.again
		logger.Error("the failed queue takes no dead letters: they are written to the table", "error", reason)
	}
	r.reason = reason
}

// taken ends it with a letter that the queue has taken.
func (r *refusal) taken(logger *slog.Logger) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reason != nil && time.Since(r.again) > refusalTime {
		r.reason = nil
		logger.Info("the failed queue takes dead letters again")
	}
}

func (r *refusal) expire(logger *slog.Logger) {
	if r.reason != nil && time.Since(r.again) > refusalExpiry {
		r.reason = nil
		logger.Info("the failed queue has refused no dead letter for a while", "last", r.again.UTC())
	}
}

func (r *refusal) state(logger *slog.Logger) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire(logger)
	if r.reason == nil {
		return nil
	}
	return fmt.Errorf("the failed queue takes no dead letters, which are written to the table; refused first at %s, last at %s: %w",
		r.began.UTC().Format(time.RFC3339), r.again.UTC().Format(time.RFC3339), r.reason)
}

// original is the message as it was delivered, the queue that it came from, and its routing key.
func (q *FailedQueue) original(m *message.Message) (p amqp091.Publishing, source, topic string, err error) {
	if o, ok := m.Context().Value(originKey{}).(origin); ok {
		return publishingOf(o.delivery), o.queue, o.delivery.RoutingKey, nil
	}
	p, err = Marshal(m)
	return p, q.conn.names.consumerQueue, m.Metadata.Get(bus.EventTypeKey), err
}

// send publishes one message that was delivered before, and waits for the confirm.
func (q *FailedQueue) send(ctx context.Context, exchange, key string, p amqp091.Publishing) error {
	if err := q.prepare(&p); err != nil {
		return err
	}
	_, err := q.publisher.publish(ctx, []outgoing{{exchange: exchange, key: key, eventType: p.Type, message: p}})
	return err
}

// prepare makes a message that was delivered before one that the broker accepts.
func (q *FailedQueue) prepare(p *amqp091.Publishing) error {
	p.DeliveryMode = amqp091.Persistent
	for _, key := range copyKeys() {
		if value, ok := p.Headers[key]; ok {
			p.Headers[originalKey+strings.ToLower(key)] = value
			delete(p.Headers, key)
		}
	}
	if p.UserId != "" && p.UserId != q.conn.uri.Username {
		p.Headers[userIDKey], p.UserId = p.UserId, ""
	}
	return checkSize(*p)
}

// returnQueue is the queue to which a message of some queue returns: not to a partition that is no longer consumed.
func (q *FailedQueue) returnQueue(source string) string {
	n := q.conn.names
	if i, ok := n.partitionOf(source); source == "" || ok && i >= q.conn.config.Partitions {
		return n.consumerQueue
	}
	return source
}

// letterOf is the letter in a delivery, of whatever program.
func letterOf(d amqp091.Delivery) deadletter.Letter {
	l := deadletter.Letter{
		Type: d.Type, Source: text(d.Headers, deadletter.SourceKey), Headers: withoutLetterKeys(d.Headers), Body: d.Body,
	}
	l.Failure, l.Source = failureOf(d, l.Source)
	return deadletter.Complete(l)
}

// failureOf reads why a letter failed, and where it comes from, from the worker's headers or else the broker's.
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

func withoutLetterKeys(headers amqp091.Table) amqp091.Table {
	rest := maps.Clone(headers)
	maps.DeleteFunc(rest, func(key string, _ any) bool { return isLetterKey(key) })
	if rest == nil {
		rest = amqp091.Table{}
	}
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

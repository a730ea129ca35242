package amqp

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
)

// Headers of a postponed message, besides [bus.EarlierAttemptsKey], [deadletter.TopicKey] and [expirationKey]. A dead letter has none of them.
const (
	postponedCountKey       = "postponed_count"
	postponedFirstFailedKey = "postponed_first_failed_at"
	// postponedDeathsKey keeps the headers in which the broker has noted that it dead-lettered the message. With them it
	// might consider its way back a cycle, and drop it.
	postponedDeathsKey = "postponed_deaths"
)

// isDeathKey tells whether a header is one in which the broker notes that it dead-lettered a message.
func isDeathKey(key string) bool {
	return key == "x-death" || strings.HasPrefix(key, "x-first-death-") || strings.HasPrefix(key, "x-last-death-")
}

// Postpone has the handler that failed handle m again later: m waits in a queue of the broker, which dead-letters it to
// the queue that it came from. It returns the delay, or 0 if the failure is permanent or all steps of [Config.RetryLater]
// are used up, or the broker does not take m, soon if there is a [FailedQueue.Table]; then m is to be [FailedQueue.Put].
// Without an error the message is safe.
func (q *FailedQueue) Postpone(ctx context.Context, m *message.Message, f deadletter.Failure) (time.Duration, error) {
	p, source, topic, err := q.original(m)
	if err != nil {
		return 0, fmt.Errorf("postpone: %w", err)
	}
	h := historyOf(p.Headers)
	if !f.MayPass || h.count >= len(q.conn.config.RetryLater) {
		return 0, nil
	}
	wait := q.conn.config.RetryLater[h.count]
	if h.count == 0 {
		h = history{firstFailed: f.FirstFailed, topic: topic, expiration: p.Expiration, deaths: deathsOf(p.Headers)}
	}
	h.count++
	h.attempts += f.Attempts
	p.Headers = h.addTo(p.Headers)
	if f.Handler != "" {
		p.Headers[bus.ReplayHandlerKey] = f.Handler
	}
	p.Expiration = ""
	err = q.wait(ctx, wait, q.returnQueue(source), p)
	// An event that cannot wait there must not keep its place in flight either.
	if isDeclined(err) || err != nil && q.Table != nil && ctx.Err() == nil {
		q.conn.config.Logger.WarnContext(ctx, "cannot postpone a message: it becomes a dead letter", "error", err)
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("postpone: %w", err)
	}
	return wait, nil
}

// wait publishes a message to the queue in which it waits, and declares that again if it is missing.
func (q *FailedQueue) wait(ctx context.Context, wait time.Duration, returnQueue string, p amqp091.Publishing) error {
	ctx, cancel, err := q.bounded(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	err = q.send(ctx, q.conn.names.retryQueue(wait), returnQueue, p)
	if isMissing(err) { // and has been declared again
		err = q.send(ctx, q.conn.names.retryQueue(wait), returnQueue, p)
	}
	return err
}

// history is what the headers of a postponed message say about its failures, and about it before the first one.
type history struct {
	count, attempts   int
	firstFailed       time.Time
	topic, expiration string
	deaths            amqp091.Table
}

// historyOf is zero for a message that was never postponed.
func historyOf(headers amqp091.Table) history {
	var h history
	if h.count, _ = strconv.Atoi(text(headers, postponedCountKey)); h.count < 1 {
		return history{}
	}
	h.attempts, _ = strconv.Atoi(text(headers, bus.EarlierAttemptsKey))
	h.firstFailed = timeOf(headers, postponedFirstFailedKey)
	h.topic, h.expiration = text(headers, deadletter.TopicKey), text(headers, expirationKey)
	h.deaths, _ = headers[postponedDeathsKey].(amqp091.Table)
	return h
}

func deathsOf(headers amqp091.Table) amqp091.Table {
	deaths := maps.Clone(headers)
	maps.DeleteFunc(deaths, func(key string, _ any) bool { return !isDeathKey(key) })
	return deaths
}

// addTo returns the headers with the history.
func (h history) addTo(headers amqp091.Table) amqp091.Table {
	headers = withoutLetterKeys(headers)
	maps.DeleteFunc(headers, func(key string, _ any) bool { return isDeathKey(key) })
	for key, value := range map[string]string{
		postponedCountKey: strconv.Itoa(h.count), bus.EarlierAttemptsKey: strconv.Itoa(h.attempts),
		postponedFirstFailedKey: h.firstFailed.UTC().Format(letterTime),
		deadletter.TopicKey:     h.topic, expirationKey: h.expiration,
	} {
		if value != "" {
			headers[key] = value
		}
	}
	if len(h.deaths) > 0 {
		headers[postponedDeathsKey] = h.deaths
	}
	return headers
}

// restore makes p the message that it was before it was first postponed, and adds its earlier failures to f.
func (h history) restore(p *amqp091.Publishing, f *deadletter.Failure, topic *string) {
	if h.count == 0 {
		return
	}
	maps.DeleteFunc(p.Headers, func(key string, _ any) bool { return isDeathKey(key) })
	maps.Copy(p.Headers, h.deaths)
	p.Expiration = cmp.Or(h.expiration, p.Expiration)
	f.Attempts += h.attempts
	if !h.firstFailed.IsZero() {
		f.FirstFailed = h.firstFailed
	}
	*topic = cmp.Or(h.topic, *topic)
}

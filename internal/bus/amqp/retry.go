package amqp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
)

// Headers of a postponed message, besides [deadletter.TopicKey] and [expirationKey], which a dead letter takes away again.
const (
	postponedCountKey       = "postponed_count"
	postponedAttemptsKey    = "postponed_attempts"
	postponedFirstFailedKey = "postponed_first_failed_at"
	// postponedDeathsKey keeps the headers in which the broker has noted earlier deaths of the message. With them it
	// might take its way back for a cycle, and drop it.
	postponedDeathsKey = "postponed_deaths"
)

// deathKeys are the headers in which the broker notes that it dead-lettered a message.
func deathKeys() []string {
	return []string{"x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason"}
}

// Postpone has the handler that failed handle m again later: the message waits in a queue of the broker, from which it
// returns to the one it came from. It returns how long that takes, or 0 if the failure will not pass or all steps of
// [Config.RetryLater] are taken; then m is to be [FailedQueue.Put]. When it returns no error the message is safe. While
// the broker is away it waits for as long as ctx lives.
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
	err = q.send(ctx, q.conn.names.retryQueue(wait), q.returnQueue(source), p)
	if errors.Is(err, ErrTooLarge) { // its own headers leave no room for ours
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("postpone: %w", err)
	}
	return wait, nil
}

// history is what a postponed message tells of itself.
type history struct {
	count, attempts   int
	firstFailed       time.Time
	topic, expiration string
	deaths            amqp091.Table
}

// historyOf reads the history of a message, whose zero value is that of one that was never postponed.
func historyOf(headers amqp091.Table) history {
	var h history
	if h.count, _ = strconv.Atoi(text(headers, postponedCountKey)); h.count < 1 {
		return history{}
	}
	h.attempts, _ = strconv.Atoi(text(headers, postponedAttemptsKey))
	h.firstFailed = timeOf(headers, postponedFirstFailedKey)
	h.topic, h.expiration = text(headers, deadletter.TopicKey), text(headers, expirationKey)
	h.deaths, _ = headers[postponedDeathsKey].(amqp091.Table)
	return h
}

func deathsOf(headers amqp091.Table) amqp091.Table {
	deaths := amqp091.Table{}
	for _, key := range deathKeys() {
		if value, ok := headers[key]; ok {
			deaths[key] = value
		}
	}
	return deaths
}

// addTo returns the headers with the history.
func (h history) addTo(headers amqp091.Table) amqp091.Table {
	headers = withoutLetterKeys(headers)
	for _, key := range deathKeys() {
		delete(headers, key)
	}
	for key, value := range map[string]string{
		postponedCountKey: strconv.Itoa(h.count), postponedAttemptsKey: strconv.Itoa(h.attempts),
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

// tell makes p the message that it was before it was first postponed, and f the whole story of its failures.
func (h history) tell(p *amqp091.Publishing, f *deadletter.Failure, topic *string) {
	if h.count == 0 {
		return
	}
	for _, key := range deathKeys() {
		delete(p.Headers, key)
	}
	maps.Copy(p.Headers, h.deaths)
	p.Expiration = cmp.Or(h.expiration, p.Expiration)
	f.Attempts += h.attempts
	if !h.firstFailed.IsZero() {
		f.FirstFailed = h.firstFailed
	}
	*topic = cmp.Or(h.topic, *topic)
}

// Package bus carries events as Watermill messages. Its sub-packages are the two buses: amqp, on RabbitMQ, and
// inprocess, for the embedded default. Both deliver at least once and keep the order of each aggregate's events.
package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/rawjson"
)

// Metadata keys of a message that carries an event. On AMQP they are headers, and properties where AMQP has one.
const (
	EventTypeKey     = "event_type"
	AggregateIDKey   = "aggregate_id"
	CorrelationIDKey = "correlation_id" // the key that Watermill's own correlation middleware uses
	CreatedAtKey     = "created_at"

	// TraceparentKey is the span that published the message, as in W3C's Trace Context; without it, the field of this
	// name in the event's metadata.
	TraceparentKey = "traceparent"

	// ContentEncodingKey is AMQP's property of this name, of a message of another program: this worker sets none.
	ContentEncodingKey = "content_encoding"

	// ReplayHandlerKey names the one handler that a replayed message is for; the others had succeeded.
	ReplayHandlerKey = "replay_handler"

	// EarlierAttemptsKey is how many attempts the handler that a message is for has had in earlier rounds of --retry-later.
	EarlierAttemptsKey = "postponed_attempts"
)

// BatchPublisher publishes messages, of any event types, in order.
type BatchPublisher interface {
	// PublishBatch returns nil once the bus has taken all messages. It acks each as soon as it cannot get lost: on a broker
	// before PublishBatch returns; in process once it was handled, or nacks it if that will not be. After an error some may have
	// been published, and the caller publishes again those that are not acked. A message that the bus can never accept, such as
	// for its size, is a *[RefusedError].
	PublishBatch(ctx context.Context, batch []*message.Message) error
}

// ErrGivenBack says that a bus has taken a message, and will not deliver it.
var ErrGivenBack = errors.New("given back by the bus")

// Deliver publishes messages, and waits until all are acked. The error is that of PublishBatch or of ctx, or [ErrGivenBack].
func Deliver(ctx context.Context, p BatchPublisher, batch []*message.Message) error {
	if err := p.PublishBatch(ctx, batch); err != nil {
		return err
	}
	for _, m := range batch {
		select {
		case <-m.Acked():
		case <-m.Nacked():
			return ErrGivenBack
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// RefusedError says that the bus will never accept a message of a batch.
type RefusedError struct {
	Index int // of the message in the batch
	Err   error
}

func (e *RefusedError) Error() string { return fmt.Sprintf("refused by the bus: %s", e.Err) }
func (e *RefusedError) Unwrap() error { return e.Err }

// Bus publishes events. It is safe for concurrent use if its publisher is.
type Bus struct{ publisher BatchPublisher }

// New returns a Bus over a publisher.
func New(publisher BatchPublisher) *Bus { return &Bus{publisher: publisher} }

// Publish publishes one event under its type.
func (b *Bus) Publish(ctx context.Context, e events.Event) error {
	return b.PublishMany(ctx, []events.Event{e})
}

// PublishMany publishes events in order. An invalid one is an *[events.InvalidError], and none is published. For
// other errors see [BatchPublisher].
func (b *Bus) PublishMany(ctx context.Context, batch []events.Event) error {
	messages := make([]*message.Message, len(batch))
	for i, e := range batch {
		if err := e.Validate(); err != nil {
			return fmt.Errorf("publish event %d of %d: %w", i+1, len(batch), err)
		}
		body, err := e.MarshalJSON()
		if err != nil {
			return fmt.Errorf("publish event %d of %d: %w", i+1, len(batch), err)
		}
		messages[i] = NewMessage(body)
	}
	return Deliver(ctx, b.publisher, messages)
}

// NewMessage wraps the JSON of an event in a message. It reads just what routing needs and does not validate: what
// another program has inserted into the store is published for the consumer to judge.
func NewMessage(body []byte) *message.Message {
	m := message.NewMessage("", body)
	Complete(m)
	return m
}

// Complete sets the UUID and the metadata that m lacks from the event in its body, as far as they can be read there. The
// body is not read if m lacks nothing.
func Complete(m *message.Message) {
	keys := [...]string{EventTypeKey, AggregateIDKey, CorrelationIDKey, CreatedAtKey} // the names of the fields, too
	complete := m.UUID != ""
	for _, key := range keys {
		complete = complete && m.Metadata.Get(key) != ""
	}
	if complete {
		return
	}
	for name, value := range rawjson.Members(m.Payload) {
		switch {
		case string(name) == "event_id" && m.UUID == "":
			m.UUID = textOf(value)
		case string(name) == "metadata" && m.Metadata.Get(TraceparentKey) == "":
			add(m, TraceparentKey, member(value, TraceparentKey))
		default:
			for _, key := range keys {
				if string(name) == key && m.Metadata.Get(key) == "" {
					add(m, key, value)
				}
			}
		}
	}
}

// add sets metadata to a value that is a string, and not an empty one.
func add(m *message.Message, key string, value []byte) {
	if text := textOf(value); text != "" {
		m.Metadata.Set(key, text)
	}
}

// textOf is the text of a JSON string, "" of anything else.
func textOf(value []byte) string {
	text, plain := rawjson.Text(value)
	if !plain {
		_ = json.Unmarshal(value, &text) // it stays empty if it is no string
	}
	return text
}

// member is a member of a JSON object, nil if there is none.
func member(object []byte, name string) []byte {
	for n, value := range rawjson.Members(object) {
		if string(n) == name {
			return value
		}
	}
	return nil
}

// Traceparent is the traceparent in the metadata of the event in body, "" if there is none that can be read.
func Traceparent(body []byte) string {
	return textOf(member(member(body, "metadata"), TraceparentKey))
}

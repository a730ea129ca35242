package amqp

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
)

// AMQP's limits, and the broker's at their defaults.
const (
	maxShortString = 255
	maxBodyBytes   = 128 << 20
	defaultFrame   = 128 << 10
	// maxHeaderBytes keeps a content header, which cannot be split, within a frame: the properties have at most 4 KiB.
	maxHeaderBytes = defaultFrame - 4<<10
)

// uuidKey is the header in which watermill-amqp has a message's UUID.
const uuidKey = "_watermill_message_uuid"

// Marshal makes a persistent JSON message. The metadata become properties where AMQP has one for them, and else headers.
// The error wraps [ErrTooLarge].
func Marshal(m *message.Message) (amqp091.Publishing, error) {
	p := amqp091.Publishing{
		ContentType:   "application/json",
		DeliveryMode:  amqp091.Persistent,
		MessageId:     shortString(m.UUID),
		Type:          shortString(m.Metadata.Get(bus.EventTypeKey)),
		CorrelationId: shortString(m.Metadata.Get(bus.CorrelationIDKey)),
		Body:          m.Payload,
	}
	if t, err := time.Parse(time.RFC3339Nano, m.Metadata.Get(bus.CreatedAtKey)); err == nil {
		p.Timestamp = t
	}
	p.Headers = make(amqp091.Table, len(m.Metadata))
	for key, value := range m.Metadata {
		switch {
		case key == bus.EventTypeKey && p.Type != "":
		case key == bus.CorrelationIDKey && p.CorrelationId != "":
		case key == bus.CreatedAtKey && !p.Timestamp.IsZero(): // to the second; the body has the rest
		default:
			p.Headers[key] = value
		}
	}
	if p.MessageId == "" {
		p.Headers[uuidKey] = m.UUID
	}
	return p, checkSize(p)
}

// unmarshal accepts the messages of any producer. Headers that are strings become metadata; the others stay in the
// delivery, which a message from a [Subscriber] carries in its context. What the headers lack is read from the event in
// the body, unless that is larger than maxBytes, and then from the message's properties, to which other programs may
// give a meaning of their own.
func unmarshal(d amqp091.Delivery, maxBytes int) *message.Message {
	id, _ := d.Headers[uuidKey].(string)
	if id == "" {
		id = d.MessageId
	}
	m := message.NewMessage(id, d.Body)
	for key, value := range d.Headers {
		if text, ok := value.(string); ok && key != uuidKey {
			m.Metadata[key] = text
		}
	}
	if len(d.Body) <= maxBytes {
		bus.Complete(m)
	}
	setMissing(m, bus.ContentEncodingKey, d.ContentEncoding)
	setMissing(m, bus.EventTypeKey, d.Type)
	setMissing(m, bus.CorrelationIDKey, d.CorrelationId)
	if !d.Timestamp.IsZero() {
		setMissing(m, bus.CreatedAtKey, d.Timestamp.UTC().Format(time.RFC3339))
	}
	if m.UUID == "" {
		m.UUID = uuid.NewString()
	}
	return m
}

func setMissing(m *message.Message, key, value string) {
	if value != "" && m.Metadata[key] == "" {
		m.Metadata[key] = value
	}
}

// shortString is s as a property; "" if it is too long for one.
func shortString(s string) string {
	if len(s) > maxShortString {
		return ""
	}
	return s
}

// checkSize refuses what the broker would close the connection for.
func checkSize(p amqp091.Publishing) error {
	if len(p.Body) > maxBodyBytes {
		return fmt.Errorf("%w: body of %d bytes, over %d", ErrTooLarge, len(p.Body), maxBodyBytes)
	}
	if n := sizeOf(p.Headers); n > maxHeaderBytes {
		return fmt.Errorf("%w: headers of %d bytes, over %d", ErrTooLarge, n, maxHeaderBytes)
	}
	for key := range p.Headers {
		if len(key) > maxShortString {
			return fmt.Errorf("%w: header name of %d bytes, over %d", ErrTooLarge, len(key), maxShortString)
		}
	}
	return nil
}

// sizeOf is at least the length of a header's value on the wire.
func sizeOf(value any) int {
	const overhead = 9 // the longest fixed-size value with its type
	switch v := value.(type) {
	case string:
		return overhead + len(v)
	case []byte:
		return overhead + len(v)
	case []any:
		n := overhead
		for _, item := range v {
			n += sizeOf(item)
		}
		return n
	case amqp091.Table:
		n := overhead
		for key, item := range v {
			n += 1 + len(key) + sizeOf(item)
		}
		return n
	default:
		return overhead
	}
}

// origin is the delivery that a message was made of, and the queue it came from.
type origin struct {
	delivery amqp091.Delivery // without its Acknowledger: the message is acked, not the delivery
	queue    string
}

type originKey struct{}

func withOrigin(ctx context.Context, d amqp091.Delivery, queue string) context.Context {
	d.Acknowledger = nil
	return context.WithValue(ctx, originKey{}, origin{delivery: d, queue: queue})
}

// Route is the exchange and the routing key with which the message of ctx was delivered.
func Route(ctx context.Context) (exchange, routingKey string) {
	o, _ := ctx.Value(originKey{}).(origin)
	return o.delivery.Exchange, o.delivery.RoutingKey
}

// publishingOf is the message as it was delivered, to be published again. The headers are a copy.
func publishingOf(d amqp091.Delivery) amqp091.Publishing {
	headers := maps.Clone(d.Headers)
	if headers == nil {
		headers = amqp091.Table{}
	}
	return amqp091.Publishing{
		Headers: headers, ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, DeliveryMode: d.DeliveryMode,
		Priority: d.Priority, CorrelationId: d.CorrelationId, ReplyTo: d.ReplyTo, Expiration: d.Expiration,
		MessageId: d.MessageId, Timestamp: d.Timestamp, Type: d.Type, UserId: d.UserId, AppId: d.AppId, Body: d.Body,
	}
}

// deliveredAs is the reverse of publishingOf.
func deliveredAs(p amqp091.Publishing, exchange, key string) amqp091.Delivery {
	return amqp091.Delivery{
		Exchange: exchange, RoutingKey: key, Headers: p.Headers, ContentType: p.ContentType, ContentEncoding: p.ContentEncoding,
		DeliveryMode: p.DeliveryMode, Priority: p.Priority, CorrelationId: p.CorrelationId, ReplyTo: p.ReplyTo,
		Expiration: p.Expiration, MessageId: p.MessageId, Timestamp: p.Timestamp, Type: p.Type, UserId: p.UserId, AppId: p.AppId,
		Body: p.Body,
	}
}

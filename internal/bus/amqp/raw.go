package amqp

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
	"unicode/utf8"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

// rawMessage is all of a message but its body, as JSON without loss: each header keeps its AMQP type. Timestamp is in
// seconds, as in AMQP.
type rawMessage struct {
	Exchange        rawText  `json:"exchange,omitempty"`
	RoutingKey      rawText  `json:"routing_key,omitempty"`
	Headers         rawTable `json:"headers,omitempty"`
	ContentType     rawText  `json:"content_type,omitempty"`
	ContentEncoding rawText  `json:"content_encoding,omitempty"`
	DeliveryMode    uint8    `json:"delivery_mode,omitempty"`
	Priority        uint8    `json:"priority,omitempty"`
	CorrelationID   rawText  `json:"correlation_id,omitempty"`
	ReplyTo         rawText  `json:"reply_to,omitempty"`
	Expiration      rawText  `json:"expiration,omitempty"`
	MessageID       rawText  `json:"message_id,omitempty"`
	Timestamp       *int64   `json:"timestamp,omitempty"`
	Type            rawText  `json:"type,omitempty"`
	UserID          rawText  `json:"user_id,omitempty"`
	AppID           rawText  `json:"app_id,omitempty"`
}

// rawOf encodes a delivery.
func rawOf(d amqp091.Delivery) (json.RawMessage, error) {
	r := rawMessage{
		Exchange: rawText(d.Exchange), RoutingKey: rawText(d.RoutingKey), Headers: rawTable(d.Headers),
		ContentType: rawText(d.ContentType), ContentEncoding: rawText(d.ContentEncoding),
		DeliveryMode: d.DeliveryMode, Priority: d.Priority, CorrelationID: rawText(d.CorrelationId),
		ReplyTo: rawText(d.ReplyTo), Expiration: rawText(d.Expiration), MessageID: rawText(d.MessageId),
		Type: rawText(d.Type), UserID: rawText(d.UserId), AppID: rawText(d.AppId),
	}
	if !d.Timestamp.IsZero() {
		seconds := d.Timestamp.Unix()
		r.Timestamp = &seconds
	}
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode a message: %w", err)
	}
	return b, nil
}

// identity is that of a message whose copies have the same content.
type identity [sha256.Size]byte

func identityOf(d amqp091.Delivery) (identity, error) {
	d.Headers = withoutCounts(d.Headers)
	raw, err := rawOf(d)
	if err != nil {
		return identity{}, err
	}
	return sha256.Sum256(append(raw, d.Body...)), nil
}

// deliveryCountKey is the header in which a quorum queue counts how often a message was returned to it.
const deliveryCountKey = "x-delivery-count"

// withoutCounts leaves out what quorum queues add when a message is delivered again.
func withoutCounts(headers amqp091.Table) amqp091.Table {
	headers = maps.Clone(headers)
	delete(headers, deliveryCountKey)
	delete(headers, "x-acquired-count")
	return headers
}

// errRaw quotes nothing of the message.
var errRaw = errors.New("this is no message of RabbitMQ as a dead letter has it")

// deliveryOf decodes what rawOf encoded, and gives it a body.
func deliveryOf(raw json.RawMessage, body []byte) (amqp091.Delivery, error) {
	var r rawMessage
	if json.Unmarshal(raw, &r) != nil {
		return amqp091.Delivery{}, errRaw
	}
	d := amqp091.Delivery{
		Exchange: string(r.Exchange), RoutingKey: string(r.RoutingKey), Headers: amqp091.Table(r.Headers),
		ContentType: string(r.ContentType), ContentEncoding: string(r.ContentEncoding),
		DeliveryMode: r.DeliveryMode, Priority: r.Priority, CorrelationId: string(r.CorrelationID),
		ReplyTo: string(r.ReplyTo), Expiration: string(r.Expiration), MessageId: string(r.MessageID),
		Type: string(r.Type), UserId: string(r.UserID), AppId: string(r.AppID), Body: body,
	}
	if r.Timestamp != nil {
		d.Timestamp = time.Unix(*r.Timestamp, 0)
	}
	return d, nil
}

// rawText is a string. If it is not valid UTF-8, it is an object in JSON.
type rawText string

type rawBytes struct {
	Bytes []byte `json:"text"`
}

func (t rawText) MarshalJSON() ([]byte, error) {
	if !utf8.ValidString(string(t)) {
		return json.Marshal(rawBytes{[]byte(t)})
	}
	return json.Marshal(string(t))
}

func (t *rawText) UnmarshalJSON(b []byte) error {
	if b[0] != '{' {
		return json.Unmarshal(b, (*string)(t))
	}
	var raw rawBytes
	err := json.Unmarshal(b, &raw)
	*t = rawText(raw.Bytes)
	return err
}

// rawTable is a table of headers. As JSON it is an array of its keys, each followed by its value.
type rawTable amqp091.Table

func (t rawTable) MarshalJSON() ([]byte, error) {
	flat := make([]any, 0, 2*len(t))
	for _, key := range slices.Sorted(maps.Keys(t)) {
		flat = append(flat, rawText(key), rawValue{t[key]})
	}
	return json.Marshal(flat)
}

func (t *rawTable) UnmarshalJSON(b []byte) error {
	var flat []json.RawMessage
	if err := json.Unmarshal(b, &flat); err != nil || len(flat)%2 != 0 {
		return errRaw
	}
	*t = make(rawTable, len(flat)/2)
	for pair := range slices.Chunk(flat, 2) {
		var key rawText
		var value rawValue
		if err := errors.Join(json.Unmarshal(pair[0], &key), json.Unmarshal(pair[1], &value)); err != nil {
			return err
		}
		(*t)[string(key)] = value.any
	}
	return nil
}

// rawValue is the value of a header. As JSON it is itself if it is text, a boolean or null, and else an object of one
// field, which names its type; floating-point numbers are their bits.
type rawValue struct{ any }

func (v rawValue) MarshalJSON() ([]byte, error) {
	typed := func(kind string, value any) ([]byte, error) { return json.Marshal(map[string]any{kind: value}) }
	switch value := v.any.(type) {
	case nil, bool:
		return json.Marshal(value)
	case string:
		return json.Marshal(rawText(value))
	case byte, int8, int16, uint16, int32, uint32, int64:
		return typed(fmt.Sprintf("%T", value), value)
	case int: // as the library writes it
		return typed("int32", int32(value))
	case float32:
		return typed("float32", math.Float32bits(value))
	case float64:
		return typed("float64", math.Float64bits(value))
	case amqp091.Decimal:
		return typed("decimal", value)
	case []byte:
		return typed("bytes", value)
	case time.Time:
		return typed("time", value.Unix())
	case []any:
		items := make([]rawValue, len(value))
		for i, item := range value {
			items[i] = rawValue{item}
		}
		return typed("array", items)
	case amqp091.Table:
		return typed("table", rawTable(value))
	default:
		return nil, fmt.Errorf("a header has a value of type %T", value)
	}
}

func (v *rawValue) UnmarshalJSON(b []byte) error {
	if b[0] != '{' {
		return json.Unmarshal(b, &v.any)
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(b, &fields) != nil || len(fields) != 1 {
		return errRaw
	}
	var err error
	for kind, raw := range fields {
		v.any, err = valueOf(kind, raw)
	}
	return err
}

func valueOf(kind string, raw json.RawMessage) (any, error) {
	switch kind {
	case "text":
		s, err := decode[[]byte](raw)
		return string(s), err
	case "uint8":
		return decode[byte](raw)
	case "int8":
		return decode[int8](raw)
	case "int16":
		return decode[int16](raw)
	case "uint16":
		return decode[uint16](raw)
	case "int32":
		return decode[int32](raw)
	case "uint32":
		return decode[uint32](raw)
	case "int64":
		return decode[int64](raw)
	case "float32":
		bits, err := decode[uint32](raw)
		return math.Float32frombits(bits), err
	case "float64":
		bits, err := decode[uint64](raw)
		return math.Float64frombits(bits), err
	case "decimal":
		return decode[amqp091.Decimal](raw)
	case "bytes":
		return decode[[]byte](raw)
	case "time":
		seconds, err := decode[int64](raw)
		return time.Unix(seconds, 0), err
	case "array":
		values, err := decode[[]rawValue](raw)
		items := make([]any, len(values))
		for i, value := range values {
			items[i] = value.any
		}
		return items, err
	case "table":
		table, err := decode[rawTable](raw)
		return amqp091.Table(table), err
	default:
		return nil, errRaw
	}
}

func decode[T any](raw json.RawMessage) (value T, err error) {
	err = json.Unmarshal(raw, &value)
	return value, err
}

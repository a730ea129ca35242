package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Event is something that happened to an aggregate: the facts (Data) in an envelope that says to which
// aggregate, for which tenant, why and when. Its JSON form is the one that all services on the bus share.
type Event struct {
	// ID is unique over all events; it is time-ordered (UUIDv7) when made by this package.
	ID uuid.UUID
	// Type names what happened, at most 100 characters. It is the routing key on the bus.
	Type string
	// AggregateType and AggregateID name the stream that the event belongs to.
	AggregateType string
	AggregateID   uuid.UUID
	// AggregateVersion is the place of the event in its stream; the first is 1.
	AggregateVersion int
	// TenantID never changes along a chain of causes.
	TenantID uuid.UUID
	// ClinicID is the clinic concerned, if it is one.
	ClinicID uuid.NullUUID
	// CorrelationID is the same along a whole chain of causes.
	CorrelationID uuid.UUID
	// CausationID is the id of the event, or command, that directly caused this one.
	CausationID uuid.NullUUID
	// UserID is the person who acted, if it was one.
	UserID uuid.NullUUID
	// CreatedAt is when it happened. The store keeps microseconds, the wire milliseconds.
	CreatedAt time.Time
	// Data is any JSON value, kept as it was written: digits and unknown fields survive. Of an event that was parsed it is a
	// part of the body, and must not be changed.
	Data json.RawMessage
	// Metadata is a JSON object, or nil.
	Metadata json.RawMessage
}

// Data is implemented by the types that users write for the data of their events.
type Data interface {
	// EventType is the Type of the events that carry this data.
	EventType() string
}

// Opening is the data of an event that opens a stream of its own: the first event of a new aggregate.
type Opening interface {
	Data
	// AggregateType is the type of the aggregate that the event opens.
	AggregateType() string
}

// New makes the event of the given version of an aggregate. Most callers want [Raise] or [Follow], which
// know the version. The error is of type *[InvalidError], or says why data cannot be encoded.
func New(origin Origin, aggregateType string, aggregateID uuid.UUID, version int, data Data) (Event, error) {
	raw, err := json.Marshal(data)
	if err != nil {
		return Event{}, fmt.Errorf("encode data of %s: %w", data.EventType(), err)
	}
	origin = origin.withCorrelation()
	e := Event{
		ID:               uuid.Must(uuid.NewV7()),
		Type:             data.EventType(),
		AggregateType:    aggregateType,
		AggregateID:      aggregateID,
		AggregateVersion: version,
		TenantID:         origin.TenantID,
		ClinicID:         origin.ClinicID,
		CorrelationID:    origin.CorrelationID,
		CausationID:      origin.CausationID,
		UserID:           origin.UserID,
		CreatedAt:        time.Now().UTC().Truncate(time.Millisecond),
		Data:             raw,
	}
	return e, e.Validate()
}

// Follow makes the events that follow from cause, each of them the first of a new aggregate. Tenant,
// clinic, user and correlation are those of cause, and cause is the causation.
//
// The aggregate's id is [DerivedID] of cause and the aggregate's type, so that handling the same event
// twice yields the same aggregates. Two openings of one aggregate type are therefore an error, and a
// conflict if two handlers make them; give them ids of your own with [New] and [CausedBy].
func Follow(cause Event, openings ...Opening) ([]Event, error) {
	origin := CausedBy(cause)
	follow := make([]Event, 0, len(openings))
	opened := make(map[string]bool, len(openings))
	for _, o := range openings {
		if opened[o.AggregateType()] {
			return nil, fmt.Errorf("follow %s %s: two events open an aggregate of type %q and would share its id",
				cause.Type, cause.ID, o.AggregateType())
		}
		opened[o.AggregateType()] = true
		e, err := New(origin, o.AggregateType(), DerivedID(cause.ID, o.AggregateType()), 1, o)
		if err != nil {
			return nil, fmt.Errorf("follow %s %s: %w", cause.Type, cause.ID, err)
		}
		follow = append(follow, e)
	}
	return follow, nil
}

// DerivedID is the id (UUIDv5) of the thing called name that the event with the given id brings about.
// It is the same however often it is asked for.
func DerivedID(eventID uuid.UUID, name string) uuid.UUID {
	return uuid.NewSHA1(eventID, []byte(name))
}

// DataOf decodes the data of e into a T. Numbers that T leaves open (fields of type any) become
// [json.Number], so that no digit is lost; unknown fields are ignored. The error never quotes the data.
func DataOf[T any](e Event) (T, error) {
	var data T
	if err := decode(e.Data, &data); err != nil {
		return data, fmt.Errorf("decode event_data of %s %s into %T: %w", e.Type, e.ID, data, err)
	}
	return data, nil
}

// DecodeMetadata decodes the metadata of e into target; absent metadata leaves target as it is.
func (e Event) DecodeMetadata(target any) error {
	if len(e.Metadata) == 0 {
		return nil
	}
	if err := decode(e.Metadata, target); err != nil {
		return fmt.Errorf("decode metadata of %s %s: %w", e.Type, e.ID, err)
	}
	return nil
}

// decode is json.Unmarshal without the loss of digits.
func decode(raw []byte, target any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(target); err != nil {
		return withoutValues(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

// withoutValues keeps what a JSON error says of types and places, and leaves out what it quotes of the
// input, which may be about a patient. So it does not wrap err.
func withoutValues(err error) error {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		kind, _, _ := strings.Cut(e.Value, " ")
		if e.Field == "" {
			return fmt.Errorf("a JSON %s does not fit into %s", kind, e.Type)
		}
		return fmt.Errorf("field %s: a JSON %s does not fit into %s", e.Field, kind, e.Type)
	}
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		if strings.HasSuffix(e.Error(), "exceeded max depth") {
			return errors.New("nested too deep")
		}
		return fmt.Errorf("not valid JSON at byte %d", e.Offset)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return errors.New("not valid JSON: it ends too early")
	}
	return fmt.Errorf("a value is refused by its type (%T)", err) // such a type's error may quote the value
}

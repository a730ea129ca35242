package worker

import (
	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

// Event is something that happened to an aggregate: the facts (Data, JSON) in an envelope that says to which aggregate, for
// which tenant, why and when. Its JSON form is the one that all services on the bus share.
//
// An event is made by [Raise], [Follow] or [NewEvent], which fill the envelope, so that no tenant and no correlation can be
// forgotten. It may be copied and shared, but its Data and Metadata must not be changed. Its fields are
//
//   - ID (unique over all events), Type (what happened, at most 100 characters) and CreatedAt (to the microsecond);
//   - AggregateType, AggregateID and AggregateVersion: the stream that it belongs to and its place there, from 1 on;
//   - TenantID, which never changes along a chain of causes, ClinicID and UserID, which may be null;
//   - CorrelationID, the same along a whole chain, and CausationID, the event or command that is the direct cause;
//   - Data, any JSON value, and Metadata, a JSON object or nil, kept as they were written.
//
// Validate checks them, with an *[InvalidError] that names every bad field. DecodeMetadata decodes the metadata into a value, which
// absent metadata leaves as it is; [DataOf] decodes the data. Fingerprint is a hash of what the event says, equal for the copy that
// comes from the store or the bus.
type Event = events.Event

// Data is implemented by the types that users write for the data of their events: EventType is the [Event]'s Type, at most 100
// characters, and the routing key on the bus. It goes through encoding/json.
type Data = events.Data

// Opening is [Data] (EventType) of an event that is the first of a new aggregate. AggregateType is the type of that, at most 50
// characters. See [Follow].
type Opening = events.Opening

// Origin is what an event inherits from whatever brought it about: for whom (TenantID, which is required, and ClinicID), by
// whom (UserID), and in which chain of causes (CorrelationID, CausationID). A zero CorrelationID begins a new chain.
type Origin = events.Origin

// NewEvent makes the event of the given version of an aggregate. Most callers want [Raise] or [Follow], which know the version.
// The error is an *[InvalidError], or says why data cannot be encoded.
func NewEvent(origin Origin, aggregateType string, aggregateID uuid.UUID, version int, data Data) (Event, error) {
	return events.New(origin, aggregateType, aggregateID, version, data)
}

// Follow makes the events that follow from cause, each of them the first of a new aggregate. Tenant, clinic, user and
// correlation are those of cause, and cause is the causation.
//
// The aggregate's id is [DerivedID] of cause and the aggregate's type, so that handling the same event twice yields the same
// aggregates. Two openings of one aggregate type are therefore an error, and a conflict if two handlers make them, of whatever
// service; give them ids of your own with [NewEvent] and [CausedBy].
func Follow(cause Event, openings ...Opening) ([]Event, error) {
	return events.Follow(cause, openings...)
}

// CausedBy is the origin of the events that e brings about.
func CausedBy(e Event) Origin { return events.CausedBy(e) }

// DerivedID is the id (UUIDv5) of the thing called name that the event with the given id brings about. It is the same however
// often it is asked for.
func DerivedID(eventID uuid.UUID, name string) uuid.UUID { return events.DerivedID(eventID, name) }

// DataOf decodes the data of e into a T. Numbers that T leaves open (fields of type any) become json.Number, so that no digit
// is lost; unknown fields are ignored. The error never quotes the data.
func DataOf[T any](e Event) (T, error) { return events.DataOf[T](e) }

// CorrelationIDOrNew propagates a correlation id that came from outside, as in a header of HTTP, or begins a new chain where
// there is none (""). It reads "<uuid>" and "<prefix>-<uuid>". Any other text is mapped to a UUIDv5, always the same for the
// same text.
func CorrelationIDOrNew(s string) uuid.UUID { return events.CorrelationIDOrNew(s) }

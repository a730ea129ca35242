package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/rawjson"
)

// wireTime is how JavaScript's Date.toJSON writes a time, which is how created_at stands on the wire.
const wireTime = "2006-01-02T15:04:05.000Z"

// Parse reads an event from the wire. It accepts any RFC 3339 time, null for the optional fields, a prefixed
// correlation id ([ParseCorrelationID]) and unknown fields, which it ignores. The error is of type
// *[InvalidError], names every bad field, and quotes nothing of event_data.
func Parse(body []byte) (Event, error) {
	e, invalid := parse(body)
	if len(invalid.Fields) > 0 && invalid.Fields[0].Field == "" {
		return Event{}, invalid
	}
	e.validate(invalid)
	return e, invalid.orNil()
}

// ParseDraft reads an event of which some fields may still be missing, as a person writes it by hand. Fields
// that are there must be well-formed; those that are not stay zero, for the caller to fill in and to
// [Event.Validate]. A field that no event has is an error, as it is one misspelt; so is a key that is there twice.
func ParseDraft(body []byte) (Event, error) {
	e, invalid := parse(body)
	if len(invalid.Fields) == 0 || invalid.Fields[0].Field != "" {
		refuseUnknown(body, invalid)
		refuseTwice(body, invalid)
	}
	return e, invalid.orNil()
}

// refuseUnknown adds the fields that no event has.
func refuseUnknown(body []byte, invalid *InvalidError) {
	var fields map[string]json.RawMessage
	if json.Unmarshal(body, &fields) != nil {
		return // parse has said so
	}
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		switch field {
		case "event_id", "event_type", "aggregate_type", "aggregate_id", "aggregate_version", "tenant_id", "clinic_id",
			"correlation_id", "causation_id", "user_id", "created_at", "event_data", "metadata":
		default:
			invalid.add(strconv.Quote(field), "is no field of an event")
		}
	}
}

// refuseTwice adds the keys that an object has twice. In event_data and metadata they are errors too: Postgres keeps the last
// value of such a key and SQLite all, and a handler sees the last. They are not named, as they may be patient data.
func refuseTwice(body []byte, invalid *InvalidError) {
	seen := make(map[string]bool, wireFields)
	for raw, value := range rawjson.Members(body) {
		field := unescaped(raw)
		if seen[field] {
			invalid.add(strconv.Quote(field), "is there twice")
		}
		seen[field] = true
		if hasKeyTwice(value) {
			invalid.add(strconv.Quote(field), "contains an object with the same key twice")
		}
	}
}

// hasKeyTwice returns whether an object within valid JSON has a key twice.
func hasKeyTwice(value []byte) bool {
	type level struct {
		keys  map[string]bool // nil in an array
		isKey bool            // the next token is a key
	}
	var levels []level
	tokens := json.NewDecoder(bytes.NewReader(value))
	tokens.UseNumber()
	for {
		token, err := tokens.Token()
		if err != nil {
			return false // the end
		}
		delimiter, _ := token.(json.Delim)
		if delimiter == '}' || delimiter == ']' {
			levels = levels[:len(levels)-1]
		}
		if len(levels) > 0 {
			top := &levels[len(levels)-1]
			key, isText := token.(string)
			if top.isKey && isText {
				if top.keys[key] {
					return true
				}
				top.keys[key], top.isKey = true, false
				continue
			}
			top.isKey = top.keys != nil // after the value
		}
		switch delimiter {
		case '{':
			levels = append(levels, level{keys: map[string]bool{}, isKey: true})
		case '[':
			levels = append(levels, level{})
		}
	}
}

// ParsePartial reads what can be read of an event in a body that need not be one. Unknown fields are ignored, and bad
// ones stay zero.
func ParsePartial(body []byte) Event {
	e, _ := parse(body)
	return e
}

// parse reads the fields that are there. What it reports with an empty field name concerns the whole.
func parse(body []byte) (Event, *InvalidError) {
	invalid := &InvalidError{}
	switch trimmed := bytes.TrimLeft(body, " \t\r\n"); {
	case len(trimmed) == 0:
		invalid.add("", "the body is empty")
	case bytes.HasPrefix(body, []byte("\xef\xbb\xbf")):
		invalid.add("", "the body begins with a byte order mark (BOM), which JSON does not allow")
	case bytes.HasPrefix(body, []byte("\xff\xfe")), bytes.HasPrefix(body, []byte("\xfe\xff")):
		invalid.add("", "the body begins with a byte order mark (BOM) of UTF-16, but must be UTF-8 without one")
	case !utf8.Valid(body):
		invalid.add("", "the body is not valid UTF-8")
	case !json.Valid(body):
		invalid.add("", "the body is %s", withoutValues(json.Unmarshal(body, new(json.RawMessage))))
	case trimmed[0] != '{':
		invalid.add("", "the body is a JSON %s, not an object", kindOf(trimmed[0]))
	}
	if len(invalid.Fields) > 0 {
		return Event{}, invalid
	}
	fields := fieldsOf(body)

	r := fieldReader{fields: fields, invalid: invalid}
	e := Event{
		ID:               r.id("event_id"),
		Type:             r.text("event_type"),
		AggregateType:    r.text("aggregate_type"),
		AggregateID:      r.id("aggregate_id"),
		AggregateVersion: r.version("aggregate_version"),
		TenantID:         r.id("tenant_id"),
		ClinicID:         r.optionalID("clinic_id"),
		CorrelationID:    r.correlation("correlation_id"),
		CausationID:      r.optionalID("causation_id"),
		UserID:           r.optionalID("user_id"),
		CreatedAt:        r.time("created_at"),
		Data:             fields["event_data"],
		Metadata:         r.present("metadata"),
	}
	return e, invalid
}

// fieldsOf are the members of a valid JSON object; of several of one name the last.
func fieldsOf(body []byte) map[string]json.RawMessage {
	fields := make(map[string]json.RawMessage, wireFields)
	for name, value := range rawjson.Members(body) {
		fields[unescaped(name)] = value
	}
	return fields
}

// unescaped is the name of a member, which is without its quotes.
func unescaped(name []byte) string {
	key := string(name)
	if bytes.IndexByte(name, '\\') >= 0 {
		_ = json.Unmarshal(slices.Concat([]byte{'"'}, name, []byte{'"'}), &key) // it is valid
	}
	return key
}

// wireFields is how many fields an event has on the wire.
const wireFields = 13

func kindOf(first byte) string {
	switch first {
	case '{':
		return "object"
	case '[':
		return "array"
	case '"':
		return "string"
	case 't', 'f':
		return "boolean"
	case 'n':
		return "null"
	default:
		return "number"
	}
}

// fieldReader reads the envelope field by field, so that one bad field does not hide the next.
type fieldReader struct {
	fields  map[string]json.RawMessage
	invalid *InvalidError
}

// present is the field's JSON, or nil when it is absent or null.
func (r fieldReader) present(field string) json.RawMessage {
	if raw := r.fields[field]; string(raw) != "null" {
		return raw
	}
	return nil
}

func (r fieldReader) text(field string) string {
	raw := r.present(field)
	if raw == nil {
		return ""
	}
	if s, plain := rawjson.Text(raw); plain {
		return s
	}
	var s string
	if raw[0] != '"' {
		r.invalid.add(field, "is a JSON %s, not a string", kindOf(raw[0]))
	} else if err := checkEscapes(raw); err != nil {
		r.invalid.add(field, "%s", err)
	} else if err := json.Unmarshal(raw, &s); err != nil {
		r.invalid.add(field, "is not a JSON string")
	}
	return s
}

func (r fieldReader) id(field string) uuid.UUID {
	return r.uuid(field, parseUUID)
}

func (r fieldReader) correlation(field string) uuid.UUID {
	return r.uuid(field, ParseCorrelationID)
}

func (r fieldReader) uuid(field string, parse func(string) (uuid.UUID, error)) uuid.UUID {
	s := r.text(field)
	if s == "" {
		if r.present(field) != nil && !r.invalid.has(field) {
			r.invalid.add(field, "is empty")
		}
		return uuid.Nil
	}
	id, err := parse(s)
	if err != nil {
		r.invalid.add(field, "is %s", err)
	}
	return id
}

func (r fieldReader) optionalID(field string) uuid.NullUUID {
	id := r.id(field)
	return uuid.NullUUID{UUID: id, Valid: id != uuid.Nil}
}

func (r fieldReader) version(field string) int {
	raw := r.present(field)
	if raw == nil {
		return 0
	}
	v, err := strconv.ParseInt(string(raw), 10, 64)
	switch {
	case err != nil && errors.Is(err, strconv.ErrRange):
		r.invalid.add(field, "must be from 1 to %d", MaxVersion)
	case err != nil:
		r.invalid.add(field, "is not an integer")
	case v < 1 || v > MaxVersion:
		r.invalid.add(field, "must be from 1 to %d, not %d", MaxVersion, v)
	default:
		return int(v)
	}
	return 0
}

func (r fieldReader) time(field string) time.Time {
	s := r.text(field)
	if s == "" {
		if r.present(field) != nil && !r.invalid.has(field) {
			r.invalid.add(field, "is empty")
		}
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, strings.ToUpper(s)) // RFC 3339 allows t and z
	if err != nil {
		r.invalid.add(field, "is not an RFC 3339 time")
		return time.Time{}
	}
	return t.UTC()
}

// FormatTime formats a time of UTC. Another program may have written any that Postgres has; the infinities are the first
// and the last time of int64 microseconds.
func FormatTime(t time.Time, layout string) string {
	switch {
	case t.Equal(time.UnixMicro(math.MaxInt64)):
		return "infinity"
	case t.Equal(time.UnixMicro(math.MinInt64)):
		return "-infinity"
	}
	return t.UTC().Format(layout)
}

// MarshalJSON writes the event as it goes over the wire. It fails on Data or Metadata that is not JSON.
func (e Event) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, 512+len(e.Data)+len(e.Metadata))
	text := func(key, value string) {
		b = append(b, ',', '"')
		b = append(b, key...)
		b = append(b, '"', ':')
		b = appendString(b, value)
	}
	optional := func(key string, id uuid.NullUUID) {
		if id.Valid {
			text(key, id.UUID.String())
		}
	}
	text("event_id", e.ID.String())
	text("event_type", e.Type)
	text("aggregate_type", e.AggregateType)
	text("aggregate_id", e.AggregateID.String())
	b = append(b, `,"aggregate_version":`...)
	b = strconv.AppendInt(b, int64(e.AggregateVersion), 10)
	text("tenant_id", e.TenantID.String())
	optional("clinic_id", e.ClinicID)
	text("correlation_id", e.CorrelationID.String())
	optional("causation_id", e.CausationID)
	optional("user_id", e.UserID)
	text("created_at", FormatTime(e.CreatedAt, wireTime))
	var err error
	if b, err = appendRaw(b, "event_data", e.Data); err != nil {
		return nil, err
	}
	if len(e.Metadata) > 0 {
		if b, err = appendRaw(b, "metadata", e.Metadata); err != nil {
			return nil, err
		}
	}
	b[0] = '{'
	return append(b, '}'), nil
}

// UnmarshalJSON is [Parse].
func (e *Event) UnmarshalJSON(body []byte) error {
	parsed, err := Parse(body)
	if err != nil {
		return err
	}
	*e = parsed
	return nil
}

func appendRaw(b []byte, key string, raw json.RawMessage) ([]byte, error) {
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	buf := bytes.NewBuffer(b)
	if err := json.Compact(buf, raw); err != nil {
		return nil, fmt.Errorf("%s is %w", key, withoutValues(err))
	}
	return buf.Bytes(), nil
}

func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			quoted, _ := json.Marshal(s) // a string is always encoded
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

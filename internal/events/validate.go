package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Limits of the envelope; lengths are in characters, as the columns' are.
const (
	MaxTypeLength          = 100
	MaxAggregateTypeLength = 50
	MaxVersion             = math.MaxInt32

	// maxRoutingKeyBytes is AMQP's limit for a short string.
	maxRoutingKeyBytes = 255
)

// InvalidError says all that is wrong with an event. Its text names fields and reasons, and no values of
// event_data or metadata.
type InvalidError struct {
	// Fields are the bad fields by their JSON name, in the envelope's order.
	Fields []FieldError
}

// FieldError says what is wrong with one field of the envelope.
type FieldError struct {
	// Field is the JSON name, or "" when the whole is at fault.
	Field string
	// Problem completes the sentence "the field …".
	Problem string
}

// Error names every bad field.
func (e *InvalidError) Error() string {
	texts := make([]string, len(e.Fields))
	for i, f := range e.Fields {
		texts[i] = strings.TrimPrefix(f.Field+" "+f.Problem, " ")
	}
	return "invalid event: " + strings.Join(texts, "; ")
}

func (e *InvalidError) add(field, format string, args ...any) {
	e.Fields = append(e.Fields, FieldError{Field: field, Problem: fmt.Sprintf(format, args...)})
}

// has tells whether the field is known to be bad, so that it is not named twice.
func (e *InvalidError) has(field string) bool {
	for _, f := range e.Fields {
		if f.Field == field {
			return true
		}
	}
	return false
}

func (e *InvalidError) orNil() error {
	if len(e.Fields) == 0 {
		return nil
	}
	return e
}

// Validate checks the envelope against the contract and the data against what a jsonb column takes. The
// error is of type *[InvalidError] and names every bad field.
func (e Event) Validate() error {
	invalid := &InvalidError{}
	e.validate(invalid)
	return invalid.orNil()
}

// validate adds the fields that are bad and not yet named.
func (e Event) validate(invalid *InvalidError) {
	check := func(field string, err error) {
		if err != nil && !invalid.has(field) {
			invalid.add(field, "%s", err)
		}
	}
	check("event_id", checkID(e.ID))
	check("event_type", checkType(e.Type))
	check("aggregate_type", checkName(e.AggregateType, MaxAggregateTypeLength))
	check("aggregate_id", checkID(e.AggregateID))
	check("aggregate_version", checkVersion(e.AggregateVersion))
	check("tenant_id", checkID(e.TenantID))
	check("correlation_id", checkID(e.CorrelationID))
	if y := e.CreatedAt.UTC().Year(); e.CreatedAt.IsZero() {
		check("created_at", errors.New("is missing"))
	} else if y < 1 || y > 9999 {
		check("created_at", errors.New("has a year outside 1 to 9999"))
	}
	check("event_data", checkJSON(e.Data))
	if len(e.Metadata) > 0 {
		check("metadata", checkObject(e.Metadata))
	}
}

func checkID(id uuid.UUID) error {
	if id == uuid.Nil {
		return errors.New("is missing")
	}
	return nil
}

func checkVersion(v int) error {
	if v < 1 || v > MaxVersion {
		return fmt.Errorf("must be from 1 to %d, not %d", MaxVersion, v)
	}
	return nil
}

func checkType(s string) error {
	if err := checkName(s, MaxTypeLength); err != nil {
		return err
	}
	if strings.ContainsAny(s, "#*") {
		return errors.New("contains # or *, which are wildcards on the bus")
	}
	if len(s) > maxRoutingKeyBytes {
		return fmt.Errorf("has %d bytes, over the %d of a routing key", len(s), maxRoutingKeyBytes)
	}
	return nil
}

func checkName(s string, most int) error {
	switch n := utf8.RuneCountInString(s); {
	case s == "":
		return errors.New("is missing")
	case !utf8.ValidString(s):
		return errors.New("is not valid UTF-8")
	case n > most:
		return fmt.Errorf("has %d characters, over the %d allowed", n, most)
	case strings.ContainsFunc(s, unicode.IsControl):
		return errors.New("contains a control character")
	}
	return nil
}

func checkObject(raw json.RawMessage) error {
	if err := checkJSON(raw); err != nil {
		return err
	}
	if bytes.TrimLeft(raw, " \t\r\n")[0] != '{' {
		return errors.New("is not a JSON object")
	}
	return nil
}

func checkJSON(raw json.RawMessage) error {
	switch {
	case len(raw) == 0:
		return errors.New("is missing")
	case !utf8.Valid(raw):
		return errors.New("is not valid UTF-8")
	case !json.Valid(raw):
		return errors.New("is not valid JSON")
	}
	return checkEscapes(raw)
}

// checkEscapes refuses the escapes that are valid JSON and that a jsonb column still cannot hold: the
// NUL character and halves of a surrogate pair. A backslash in valid JSON begins an escape in a string.
func checkEscapes(raw []byte) error {
	for i := bytes.IndexByte(raw, '\\'); i >= 0 && i < len(raw); {
		if raw[i] != '\\' {
			next := bytes.IndexByte(raw[i:], '\\')
			if next < 0 {
				return nil
			}
			i += next
		}
		if raw[i+1] != 'u' {
			i += 2
			continue
		}
		r := escapedRune(raw[i:])
		i += 6
		switch {
		case r == 0:
			return errors.New(`contains \u0000, which the store cannot hold`)
		case r >= 0xDC00 && r <= 0xDFFF:
			return errors.New("contains the second half of a surrogate pair alone")
		case r >= 0xD800 && r <= 0xDBFF:
			if low := escapedRune(raw[i:]); low < 0xDC00 || low > 0xDFFF {
				return errors.New("contains the first half of a surrogate pair alone")
			}
			i += 6
		}
	}
	return nil
}

// escapedRune is the code unit of a \uXXXX at the beginning of raw, or -1.
func escapedRune(raw []byte) rune {
	if len(raw) < 6 || raw[0] != '\\' || raw[1] != 'u' {
		return -1
	}
	var r rune
	for _, c := range raw[2:6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
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
	// maxDepth is one less than what encoding/json reads, as event_data stands inside the envelope.
	maxDepth = 9_999
	// maxDigits limits the digits of a number when it is written out; a numeric of Postgres's takes more.
	maxDigits = 1_000
)

// InvalidError says all that is wrong with an event. Its text names fields and reasons, and no values of
// event_data or metadata.
type InvalidError struct {
	// Fields are the bad fields, each of them once.
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
	check("event_type", CheckType(e.Type))
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
	if v == 0 {
		return errors.New("is missing")
	}
	if v < 1 || v > MaxVersion {
		return fmt.Errorf("must be from 1 to %d, not %d", MaxVersion, v)
	}
	return nil
}

// CheckType checks an event type.
func CheckType(s string) error {
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
	}
	return CheckVisible(s)
}

// CheckVisible checks that a person can tell a name from all others by sight: it has no invisible characters, such as
// those that set the direction of text, no spaces but U+0020, and does not consist of these.
func CheckVisible(s string) error {
	for _, r := range s {
		if unicode.IsControl(r) {
			return errors.New("contains a control character")
		}
		if !unicode.IsPrint(r) || unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r) {
			return fmt.Errorf("contains the invisible character %U", r)
		}
	}
	if strings.Trim(s, " ") == "" {
		return errors.New("is blank")
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
	return checkStorable(raw)
}

// checkStorable refuses valid JSON that a jsonb column cannot hold, or a reader of the event on the wire.
func checkStorable(raw []byte) error {
	depth := 0
	for i := 0; i < len(raw); {
		length := 1
		switch c := raw[i]; {
		case c == '"':
			length = stringLength(raw[i:])
			if err := checkEscapes(raw[i : i+length]); err != nil {
				return err
			}
		case c == '-' || c >= '0' && c <= '9':
			length = numberLength(raw[i:])
			if err := checkNumber(raw[i : i+length]); err != nil {
				return err
			}
		case c == '[' || c == '{':
			if depth++; depth > maxDepth {
				return fmt.Errorf("is nested more than %d levels deep", maxDepth)
			}
		case c == ']' || c == '}':
			depth--
		}
		i += length
	}
	return nil
}

// stringLength is the length of the JSON string at the beginning of raw, quotes included.
func stringLength(raw []byte) int {
	for i := 1; ; i++ {
		switch raw[i] {
		case '"':
			return i + 1
		case '\\':
			i++
		}
	}
}

// numberLength is the length of the JSON number at the beginning of raw.
func numberLength(raw []byte) int {
	for i, c := range raw {
		if (c < '0' || c > '9') && strings.IndexByte("+-.eE", c) < 0 {
			return i
		}
	}
	return len(raw)
}

// checkNumber refuses numbers that a numeric column refuses, or that grow in it beyond measure: it writes them out, so
// that 1e100000 is a text of 100 001 characters when it is read back. What is accepted is accepted again then.
func checkNumber(number []byte) error {
	var exponent int64
	if e := bytes.IndexAny(number, "eE"); e >= 0 {
		exponent, _ = strconv.ParseInt(string(number[e+1:]), 10, 32) // the nearest there is, when it is out of range
		number = number[:e]
	}
	digits := len(number) - bytes.Count(number, []byte("-")) - bytes.Count(number, []byte("."))
	if int64(digits)+max(exponent, -exponent) > maxDigits {
		return fmt.Errorf("contains a number of more than %d digits when written out", maxDigits)
	}
	return nil
}

// checkEscapes refuses, in a JSON string, the escapes that a jsonb column cannot hold: the NUL character and halves of
// a surrogate pair.
func checkEscapes(text []byte) error {
	for {
		i := bytes.IndexByte(text, '\\')
		if i < 0 {
			return nil
		}
		text = text[i:]
		if text[1] != 'u' {
			text = text[2:]
			continue
		}
		r := escapedRune(text)
		text = text[6:]
		switch {
		case r == 0:
			return errors.New(`contains \u0000, which the store cannot hold`)
		case r >= 0xDC00 && r <= 0xDFFF:
			return errors.New("contains the second half of a surrogate pair alone")
		case r >= 0xD800 && r <= 0xDBFF:
			if low := escapedRune(text); low < 0xDC00 || low > 0xDFFF {
				return errors.New("contains the first half of a surrogate pair alone")
			}
			text = text[6:]
		}
	}
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

package handlers

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/healz/worker/internal/events"
)

// minSecretLength is from how many characters on a value of an event is taken out of an error's text. Shorter ones would
// turn up in any text by chance.
const minSecretLength = 3

// redactedError has the text of an error without what it quotes of the event, which is about a patient. What it wraps
// is still there for errors.Is and errors.As.
type redactedError struct {
	text string
	err  error
}

func (e *redactedError) Error() string { return e.text }
func (e *redactedError) Unwrap() error { return e.err }

// redact makes the error of a handler fit for logs, headers and the eyes of operators: values of event_data and metadata
// that it quotes are replaced by the names of their fields.
func redact(err error, e events.Event) error {
	return &redactedError{text: withoutValues(err.Error(), e), err: err}
}

// withoutValues replaces what text quotes of e's data and metadata by the name of its field: ‹name›. It finds whole values
// and single words of them, in upper or lower case, quoted or not. It cannot find what a handler has put into other words:
// an author keeps people out of errors all the same.
func withoutValues(text string, e events.Event) string {
	var secrets []secret
	for _, raw := range []json.RawMessage{e.Data, e.Metadata} {
		secrets = collect(secrets, "event_data", decode(raw))
	}
	// The longest first, so that no value hides the rest of a longer one.
	slices.SortFunc(secrets, func(a, b secret) int {
		return cmp.Or(cmp.Compare(len(b.value), len(a.value)), cmp.Compare(a.value, b.value), cmp.Compare(a.field, b.field))
	})
	for _, s := range slices.CompactFunc(secrets, func(a, b secret) bool { return a.value == b.value }) {
		found := regexp.MustCompile(`(?i)` + regexp.QuoteMeta(s.value))
		text = found.ReplaceAllLiteralString(text, "‹"+s.field+"›")
	}
	return text
}

type secret struct{ field, value string }

func decode(raw json.RawMessage) any {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return nil
	}
	return v
}

// collect adds the values in v, which the field holds.
func collect(secrets []secret, field string, v any) []secret {
	switch v := v.(type) {
	case map[string]any:
		for key, item := range v {
			secrets = collect(secrets, key, item)
		}
	case []any:
		for _, item := range v {
			secrets = collect(secrets, field, item)
		}
	case string:
		quoted, ascii := strconv.Quote(v), strconv.QuoteToASCII(v)
		secrets = addSecret(secrets, field, strings.TrimSpace(v), quoted[1:len(quoted)-1], ascii[1:len(ascii)-1])
		secrets = addSecret(secrets, field, strings.FieldsFunc(v, func(r rune) bool {
			return !unicode.IsLetter(r) && !unicode.IsDigit(r)
		})...)
	case json.Number:
		secrets = addSecret(secrets, field, v.String())
		if f, err := v.Float64(); err == nil {
			secrets = addSecret(secrets, field, fmt.Sprint(f), strconv.FormatFloat(f, 'f', -1, 64),
				strconv.FormatFloat(math.Trunc(f), 'f', -1, 64))
		}
	}
	return secrets
}

func addSecret(secrets []secret, field string, values ...string) []secret {
	for _, value := range values {
		if utf8.RuneCountInString(value) >= minSecretLength {
			secrets = append(secrets, secret{field: field, value: value})
		}
	}
	return secrets
}

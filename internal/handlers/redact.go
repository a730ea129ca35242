package handlers

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	wmiddleware "github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/healz/worker/internal/events"
)

// minSecretLength is the length from which on a value of an event is taken out of an error's text. Shorter ones would
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

// redact is the middleware that makes the errors of a handler fit for logs, headers and the eyes of operators: values of
// event_data and metadata that a handler's error quotes are replaced by the names of their fields. The stack of a panic
// goes to the log and not into the error.
func redact(logger *slog.Logger, next message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		ctx := m.Context()
		produced, err := next(m)
		if err == nil {
			return produced, nil
		}
		e, _ := events.FromContext(ctx)
		text := err.Error()
		if panicked, ok := errors.AsType[wmiddleware.RecoveredPanicError](err); ok {
			text = fmt.Sprintf("panic: %v", panicked.V)
			logger.ErrorContext(ctx, "handler panicked", "event_id", e.ID, "stack", panicked.Stacktrace)
		} else if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
			text = "timed out: " + text
		}
		return nil, &redactedError{text: withoutValues(text, e), err: err}
	}
}

// withoutValues replaces what text quotes of e's data and metadata by the name of its field: ‹name›.
func withoutValues(text string, e events.Event) string {
	var secrets []secret
	for _, raw := range []json.RawMessage{e.Data, e.Metadata} {
		secrets = collect(secrets, "", decode(raw))
	}
	// The longest first, so that no value hides the rest of a longer one.
	slices.SortFunc(secrets, func(a, b secret) int { return cmp.Compare(len(b.value), len(a.value)) })
	for _, s := range secrets {
		for _, form := range forms(s.value) {
			text = strings.ReplaceAll(text, form, "‹"+s.field+"›")
		}
	}
	return text
}

// forms are a value as texts have it: as it stands, or within quotes; a number also as a float, or without its decimals.
func forms(value string) []string {
	forms := []string{value}
	for _, quoted := range []string{strconv.Quote(value), strconv.QuoteToASCII(value)} {
		forms = append(forms, quoted[1:len(quoted)-1])
	}
	if f, err := strconv.ParseFloat(value, 64); err == nil {
		forms = append(forms, fmt.Sprintf("%f", f), fmt.Sprint(f), fmt.Sprintf("%.0f", math.Trunc(f)))
	}
	return slices.DeleteFunc(forms, func(form string) bool { return len(form) < minSecretLength })
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

func collect(secrets []secret, field string, v any) []secret {
	var value string
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
		value = v
	case json.Number:
		value = v.String()
	}
	if len(value) >= minSecretLength {
		secrets = append(secrets, secret{field: cmp.Or(field, "event_data"), value: value})
	}
	return secrets
}

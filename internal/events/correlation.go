package events

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// uuidLength is the length of a UUID's canonical text, the only one that is read.
const uuidLength = 36

// NewCorrelationID begins a chain of causes.
func NewCorrelationID() uuid.UUID {
	return uuid.Must(uuid.NewV7())
}

// PrefixedCorrelationID begins a chain of causes whose id tells people where it began, as in
// "import-0198c9…". [ParseCorrelationID] finds the UUID in it, which is what the store and the wire carry.
func PrefixedCorrelationID(prefix string) string {
	if prefix == "" {
		return NewCorrelationID().String()
	}
	return prefix + "-" + NewCorrelationID().String()
}

// ParseCorrelationID reads a correlation id that may have a prefix: "<uuid>" or "<prefix>-<uuid>".
func ParseCorrelationID(s string) (uuid.UUID, error) {
	text := s
	if cut := len(s) - uuidLength; cut > 1 && s[cut-1] == '-' {
		text = s[cut:]
	}
	return parseUUID(text)
}

// CorrelationIDOrNew propagates the correlation id that came from outside, or begins a new chain where
// there is none. A text that has no UUID in it is mapped to one (UUIDv5), always the same for the same
// text, so that a caller's own numbering still ties a chain together.
func CorrelationIDOrNew(s string) uuid.UUID {
	if s == "" {
		return NewCorrelationID()
	}
	if id, err := ParseCorrelationID(s); err == nil {
		return id
	}
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte(s))
}

type contextKey struct{}

// NewContext returns a context that carries e, the event that is handled.
func NewContext(ctx context.Context, e Event) context.Context {
	return context.WithValue(ctx, contextKey{}, e)
}

// FromContext is the event that is handled, if there is one.
func FromContext(ctx context.Context) (Event, bool) {
	e, ok := ctx.Value(contextKey{}).(Event)
	return e, ok
}

// parseUUID reads the canonical form only. The error never tells the text.
func parseUUID(s string) (uuid.UUID, error) {
	if len(s) != uuidLength {
		return uuid.Nil, errors.New("not a UUID")
	}
	id, err := uuid.Parse(s)
	if err != nil {
		return uuid.Nil, errors.New("not a UUID")
	}
	if id == uuid.Nil {
		return uuid.Nil, fmt.Errorf("the nil UUID")
	}
	return id, nil
}

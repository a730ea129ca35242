package deadletter

import (
	"regexp"
	"time"

	"github.com/google/uuid"
)

// Filter chooses letters: those that every field that is set chooses. The zero value chooses all that wait.
type Filter struct {
	// States are those of the letters; none means [Waiting].
	States []State
	// IDs match a letter's ID or its event's id; several choose all that have one of them.
	IDs []string
	// Group matches [Letter.Group].
	Group string
	// Type matches [Letter.Type].
	Type string
	// Handler matches the handler that failed.
	Handler string
	// Tenant, Aggregate and Correlation match the event's ids.
	Tenant, Aggregate, Correlation uuid.UUID
	// Since and Until bound the last failure: Since <= LastFailed < Until.
	Since, Until time.Time
	// Contains is a part of the reason, as it stands.
	Contains string
	// Reason is found somewhere in the reason.
	Reason *regexp.Regexp
	// Limit is the most letters that are chosen, the oldest of all; 0: no limit.
	Limit int
}

// IsZero tells whether f chooses all letters of its states.
func (f Filter) IsZero() bool {
	return len(f.IDs) == 0 && f.Group == "" && f.Type == "" && f.Handler == "" && f.Tenant == uuid.Nil && f.Aggregate == uuid.Nil &&
		f.Correlation == uuid.Nil && f.Since.IsZero() && f.Until.IsZero() && f.Contains == "" && f.Reason == nil && f.Limit == 0
}

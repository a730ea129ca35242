package deadletter

import (
	"iter"
	"regexp"
	"slices"
	"time"

	"github.com/google/uuid"
)

// Filter chooses letters: those that every field that is set chooses. The zero value chooses all.
type Filter struct {
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
	// Since and Until bound the last failure: Since <= LastFailed < Until. A letter that does not tell when it failed is
	// chosen by neither.
	Since, Until time.Time
	// Reason is found somewhere in the reason.
	Reason *regexp.Regexp
	// Limit is the most letters that are chosen, the oldest of all; 0: no limit. Match does not know of it.
	Limit int
}

// IsZero tells whether f chooses all letters.
func (f Filter) IsZero() bool {
	return len(f.IDs) == 0 && f.Group == "" && f.Type == "" && f.Handler == "" && f.Tenant == uuid.Nil && f.Aggregate == uuid.Nil &&
		f.Correlation == uuid.Nil && f.Since.IsZero() && f.Until.IsZero() && f.Reason == nil && f.Limit == 0
}

// Match tells whether f chooses the letter.
func (f Filter) Match(l Letter) bool {
	switch {
	case len(f.IDs) > 0 && !slices.Contains(f.IDs, l.ID) && (l.Event.ID == uuid.Nil || !slices.Contains(f.IDs, l.Event.ID.String())):
	case f.Group != "" && f.Group != l.Group:
	case f.Type != "" && f.Type != l.Type:
	case f.Handler != "" && f.Handler != l.Handler:
	case f.Tenant != uuid.Nil && f.Tenant != l.Event.TenantID:
	case f.Aggregate != uuid.Nil && f.Aggregate != l.Event.AggregateID:
	case f.Correlation != uuid.Nil && f.Correlation != l.Event.CorrelationID:
	case !f.Since.IsZero() && (l.LastFailed.IsZero() || l.LastFailed.Before(f.Since)):
	case !f.Until.IsZero() && (l.LastFailed.IsZero() || !l.LastFailed.Before(f.Until)):
	case f.Reason != nil && !f.Reason.MatchString(l.Reason):
	default:
		return true
	}
	return false
}

// Choose yields those of the letters that f chooses, up to its limit.
func (f Filter) Choose(letters iter.Seq2[Letter, error]) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		n := 0
		for l, err := range letters {
			if err == nil && !f.Match(l) {
				continue
			}
			n++
			if !yield(l, err) || err != nil || n == f.Limit {
				return
			}
		}
	}
}

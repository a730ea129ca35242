package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

// SearchReach is how many events one page of a search looks at, at the most.
const SearchReach = 2 * MaxLimit

// Search chooses events: all that is set must hold. The zero value chooses every event.
type Search struct {
	CausationID, AggregateID, CorrelationID, TenantID uuid.UUID
	// Type is the type of the event.
	Type string
	// From and Until bound created_at: not before From, and before Until.
	From, Until time.Time
}

// Walk is an order in which a search looks at events: newest first along the index of one of its conditions.
type Walk string

// The walks. The first two come to few events, whatever the table holds.
const (
	WalkCausation   Walk = "causation"
	WalkAggregate   Walk = "aggregate"
	WalkCorrelation Walk = "correlation"
	WalkTenant      Walk = "tenant"
	WalkType        Walk = "type"
	WalkTime        Walk = "time"
)

// walks are those that find what s chooses, the best one first. Where there are two, which of them passes over fewer
// events depends on the events.
func (s Search) walks() []Walk {
	switch {
	case s.CausationID != uuid.Nil:
		return []Walk{WalkCausation}
	case s.AggregateID != uuid.Nil:
		return []Walk{WalkAggregate}
	case s.CorrelationID != uuid.Nil:
		return []Walk{WalkCorrelation}
	case s.TenantID != uuid.Nil && s.Type != "":
		return []Walk{WalkTenant, WalkType}
	case s.TenantID != uuid.Nil:
		return []Walk{WalkTenant}
	case s.Type != "":
		return []Walk{WalkType}
	default:
		return []Walk{WalkTime}
	}
}

// read names the search for its cursors.
func (s Search) read() string {
	return fmt.Sprintf("search %s %s %s %s %d %d %s", s.CausationID, s.AggregateID, s.CorrelationID, s.TenantID,
		s.From.UnixMicro(), s.Until.UnixMicro(), s.Type)
}

// Place is a place in the order of (created_at, id).
type Place struct {
	CreatedAt time.Time
	ID        int64
}

func (p Place) before(other Place) bool {
	return p.CreatedAt.Before(other.CreatedAt) || p.CreatedAt.Equal(other.CreatedAt) && p.ID < other.ID
}

func (p Place) cursor(read string) Cursor { return NewCursor(read, p.CreatedAt.UnixMicro(), p.ID) }

// Walked is what a walk has come by.
type Walked struct {
	// Found are the first of the events that the search chooses.
	Found []Recorded
	// End is the last event that was looked at, if there may be more behind it.
	End *Place
}

// RunSearch searches with a store's walk, which looks at up to [SearchReach] events behind a place (nil: from the newest)
// and finds up to limit of them. The errors about q are as of all reads.
func RunSearch(
	ctx context.Context, s Search, q Query, walk func(ctx context.Context, w Walk, behind *Place, limit int) (Walked, error),
) (Page, error) {
	q, err := q.Check()
	if err == nil && q.Offset != 0 {
		err = &QueryError{Field: "offset", Problem: "must be 0 in a search, which is continued by its cursor"}
	}
	if err != nil {
		return Page{}, err
	}
	read := s.read()
	var behind *Place
	if q.After != "" {
		micros, id, err := q.After.Place(read)
		if err != nil {
			return Page{}, err
		}
		behind = &Place{CreatedAt: time.UnixMicro(micros).UTC(), ID: id}
	}
	var furthest Walked
	for _, w := range s.walks() {
		walked, err := walk(ctx, w, behind, q.Limit+1)
		switch {
		case err != nil:
			return Page{}, err
		case len(walked.Found) > q.Limit:
			last := walked.Found[q.Limit-1]
			next := Place{CreatedAt: last.CreatedAt, ID: last.Position.ID}
			return Page{Events: eventsOf(walked.Found[:q.Limit]), Next: next.cursor(read)}, nil
		case walked.End == nil:
			return Page{Events: eventsOf(walked.Found)}, nil
		case furthest.End == nil || walked.End.before(*furthest.End):
			furthest = walked
		}
	}
	return Page{Events: eventsOf(furthest.Found), Next: furthest.End.cursor(read)}, nil
}

func eventsOf(list []Recorded) []events.Event {
	found := make([]events.Event, len(list))
	for i, r := range list {
		found[i] = r.Event
	}
	return found
}

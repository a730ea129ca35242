package store

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"
)

// SearchReach is how many events one page of a search examines at most; its limit, where that is more.
const SearchReach = 5_000

// Search chooses events: all conditions that are set must hold. The zero value chooses every event.
type Search struct {
	CausationID, AggregateID, CorrelationID, TenantID uuid.UUID
	// Type is the type of the event.
	Type string
	// From and Until bound created_at: not before From, and before Until.
	From, Until time.Time
}

// Index is the index that a search scans, newest event first: that of one of its conditions.
type Index string

// The indexes. On the first two there are few events of a key, whatever the table holds.
const (
	IndexCausation   Index = "causation"
	IndexAggregate   Index = "aggregate"
	IndexCorrelation Index = "correlation"
	IndexTenant      Index = "tenant"
	IndexType        Index = "type"
	IndexTime        Index = "time"
)

// indexes are those by which s can be searched, the best one first. Where there are two, it depends on the events which
// of them has to examine fewer.
func (s Search) indexes() []Index {
	switch {
	case s.CausationID != uuid.Nil:
		return []Index{IndexCausation}
	case s.AggregateID != uuid.Nil:
		return []Index{IndexAggregate}
	case s.CorrelationID != uuid.Nil:
		return []Index{IndexCorrelation}
	case s.TenantID != uuid.Nil && s.Type != "":
		return []Index{IndexTenant, IndexType}
	case s.TenantID != uuid.Nil:
		return []Index{IndexTenant}
	case s.Type != "":
		return []Index{IndexType}
	default:
		return []Index{IndexTime}
	}
}

// Scan examines up to Reach events along an index, and finds up to Limit of them.
type Scan struct {
	Index  Index
	Search Search
	// From is the first created_at in microseconds, and Before the key of the events before which the scan begins. They are
	// the ends of int64 where the search sets no bound.
	From         int64
	Before       SortKey
	Limit, Reach int
	// WithoutData is as in [Query].
	WithoutData bool
}

// Scan is the scan along an index that finds up to limit events.
func (s Search) Scan(index Index, limit int) Scan {
	scan := Scan{
		Index: index, Search: s, Limit: limit, Reach: max(SearchReach, limit),
		From: math.MinInt64, Before: SortKey{math.MaxInt64, math.MaxInt64},
	}
	if !s.From.IsZero() {
		scan.From = s.From.UnixMicro()
	}
	if !s.Until.IsZero() {
		scan.Before = SortKey{s.Until.UnixMicro(), math.MinInt64}
	}
	return scan
}

// Search reads a page of the events that s chooses; see [Store].
func (r Reads) Search(ctx context.Context, s Search, q Query) (Page, error) {
	q, err := q.Check()
	if err == nil && q.Offset != 0 {
		err = &QueryError{Field: "offset", Problem: "must be 0 in a search, which is continued by its cursor"}
	}
	if err == nil && q.MaxBytes != 0 {
		err = &QueryError{Field: "max_bytes", Problem: "must be 0 in a search: read it without data, or with a small limit"}
	}
	if err != nil {
		return Page{}, err
	}
	name := fmt.Sprintf("search %s %s %s %s %d %d %s", s.CausationID, s.AggregateID, s.CorrelationID, s.TenantID,
		s.From.UnixMicro(), s.Until.UnixMicro(), s.Type)
	var before *SortKey
	if q.After != "" {
		key, err := q.After.Key(name)
		if err != nil {
			return Page{}, err
		}
		before = &key
	}
	var furthest Page
	var end *SortKey // of the scan that has come furthest
	for _, index := range s.indexes() {
		scan := s.Scan(index, q.Limit+1)
		scan.WithoutData = q.WithoutData
		if before != nil {
			scan.Before = *before
		}
		found, ended, err := r.source.Scan(ctx, scan)
		if err != nil {
			return Page{}, err
		}
		page := Page{Events: eventsOf(found[:min(len(found), q.Limit)])}
		if len(found) > q.Limit {
			page.Next = NewCursor(name, ReadTenant.key(found[q.Limit-1]))
		}
		if page.Next != "" || ended == nil {
			return page, nil
		}
		if end == nil || ended.Value < end.Value || ended.Value == end.Value && ended.ID < end.ID {
			page.Next = NewCursor(name, *ended)
			furthest, end = page, ended
		}
	}
	return furthest, nil
}

package store

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"iter"
	"math"
	"strings"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

// Read names one of the reads, each of which has an order of its own.
type Read string

// The reads. In brackets their keys.
const (
	ReadAggregate   Read = "aggregate"   // by version (type and id)
	ReadCorrelation Read = "correlation" // oldest first (id)
	ReadType        Read = "type"        // newest first (type)
	ReadTenant      Read = "tenant"      // newest first (id)
	ReadAll         Read = "all"         // by position
)

// SortKey is where an event stands in the order of a read. The value is its version, its transaction or the microseconds
// of its created_at; the id breaks ties.
type SortKey struct{ Value, ID int64 }

// start is the key before the first event of a paged read. Rows of other programs may have versions below 1.
func (r Read) start() SortKey {
	switch r {
	case ReadAggregate, ReadCorrelation:
		return SortKey{math.MinInt64, math.MinInt64}
	default:
		return SortKey{math.MaxInt64, math.MaxInt64}
	}
}

// key is the key of an event.
func (r Read) key(e Recorded) SortKey {
	switch r {
	case ReadAggregate:
		return versionKey(e.AggregateVersion)
	case ReadAll:
		return e.Position.key()
	default:
		return SortKey{e.CreatedAt.UnixMicro(), e.Position.ID}
	}
}

// versionKey is the key after all events of a version.
func versionKey(version int) SortKey { return SortKey{int64(version), math.MaxInt64} }

func (p Position) key() SortKey { return SortKey{int64(p.Transaction), p.ID} }

// Selection selects events in the order of a read.
type Selection struct {
	Read Read
	Key  []string
	// After is the key after which the selection begins.
	After         SortKey
	Limit, Offset int
	// MaxBytes and WithoutData are as in [Query].
	MaxBytes    int
	WithoutData bool
}

// Source is what [Reads] needs of a database.
type Source interface {
	// Select returns the selected events. There are more of them if it has returned as many as the limit, or if it has
	// returned fewer because of their size.
	Select(ctx context.Context, s Selection) (found []Recorded, more bool, err error)
	// Scan returns the events that a scan finds, and the key of the last event that it has examined if there may be more
	// behind it.
	Scan(ctx context.Context, s Scan) (found []Recorded, end *SortKey, err error)
}

// Reads are the reads that both stores have in common.
type Reads struct{ source Source }

// NewReads returns the reads of a source.
func NewReads(s Source) Reads { return Reads{source: s} }

// ByAggregate reads a page of an aggregate's events; see [Store].
func (r Reads) ByAggregate(ctx context.Context, aggregateType string, aggregateID uuid.UUID, q Query) (Page, error) {
	return r.page(ctx, q, ReadAggregate, aggregateType, aggregateID.String())
}

// ByCorrelation reads a page of a chain of causes; see [Store].
func (r Reads) ByCorrelation(ctx context.Context, correlationID uuid.UUID, q Query) (Page, error) {
	return r.page(ctx, q, ReadCorrelation, correlationID.String())
}

// ByType reads a page of the events of a type; see [Store].
func (r Reads) ByType(ctx context.Context, eventType string, q Query) (Page, error) {
	return r.page(ctx, q, ReadType, eventType)
}

// ByTenant reads a page of a tenant's events; see [Store].
func (r Reads) ByTenant(ctx context.Context, tenantID uuid.UUID, q Query) (Page, error) {
	return r.page(ctx, q, ReadTenant, tenantID.String())
}

// page reads one event more than the page has, to learn whether there is a next page.
func (r Reads) page(ctx context.Context, q Query, read Read, key ...string) (Page, error) {
	q, err := q.Check()
	if err != nil {
		return Page{}, err
	}
	name := string(read) + " " + strings.Join(key, " ")
	after := read.start()
	if q.After != "" {
		if after, err = q.After.Key(name); err != nil {
			return Page{}, err
		}
	}
	found, more, err := r.selected(ctx, Selection{
		Read: read, Key: key, After: after, Limit: q.Limit + 1, Offset: q.Offset, MaxBytes: q.MaxBytes, WithoutData: q.WithoutData,
	})
	if err != nil {
		return Page{}, err
	}
	found = found[:min(len(found), q.Limit)]
	p := Page{Events: eventsOf(found)}
	if more {
		p.Next = NewCursor(name, read.key(found[len(found)-1]))
	}
	return p, nil
}

// selected is the Select of the source, which it calls with smaller limits if there is a bound of bytes: Postgres sends all
// rows of a statement, also those behind the bound.
func (r Reads) selected(ctx context.Context, s Selection) (found []Recorded, more bool, err error) {
	if s.MaxBytes == 0 || s.WithoutData {
		return r.source.Select(ctx, s)
	}
	limit, size := s.Limit, 0
	s.Limit = min(limit, firstOfPage)
	for e, err := range each(ctx, r.source.Select, s) {
		if err != nil {
			return nil, false, err
		}
		if size += e.Size(); size > s.MaxBytes && len(found) > 0 {
			return found, true, nil
		}
		if found = append(found, e); len(found) == limit {
			return found, true, nil
		}
	}
	return found, false, nil
}

func eventsOf(found []Recorded) []events.Event {
	list := make([]events.Event, len(found))
	for i, r := range found {
		list[i] = r.Event
	}
	return list
}

// Stream yields the events of an aggregate; see [Store].
func (r Reads) Stream(
	ctx context.Context, aggregateType string, aggregateID uuid.UUID, afterVersion int,
) iter.Seq2[events.Event, error] {
	return stream(ctx, r.source.Select, aggregateType, aggregateID, afterVersion)
}

// All yields events in commit order; see [Store].
func (r Reads) All(ctx context.Context, after Position) iter.Seq2[Recorded, error] {
	return each(ctx, r.source.Select, Selection{Read: ReadAll, After: after.key(), Limit: firstOfStream, MaxBytes: PageBytes})
}

// selectFunc is the Select of a [Source].
type selectFunc func(ctx context.Context, s Selection) (found []Recorded, more bool, err error)

func stream(
	ctx context.Context, selected selectFunc, aggregateType string, aggregateID uuid.UUID, afterVersion int,
) iter.Seq2[events.Event, error] {
	after := ReadAggregate.start()
	if afterVersion > 0 {
		after = versionKey(afterVersion)
	}
	all := each(ctx, selected, Selection{
		Read: ReadAggregate, Key: []string{aggregateType, aggregateID.String()}, After: after,
		Limit: firstOfStream, MaxBytes: PageBytes,
	})
	return func(yield func(events.Event, error) bool) {
		for r, err := range all {
			if !yield(r.Event, err) {
				return
			}
		}
	}
}

// Limits of the statements of each: the first one, and the greatest.
const (
	firstOfPage   = 4
	firstOfStream = 64
	maxOfEach     = 1024
)

// each yields all that a selection has, by statements of at most MaxBytes. The limit is that of the first statement; it
// grows while the events are small. No read is open while it yields: a slow caller must hold neither a connection nor
// SQLite's log.
func each(ctx context.Context, selected selectFunc, s Selection) iter.Seq2[Recorded, error] {
	return func(yield func(Recorded, error) bool) {
		s, more := s, true
		for more {
			var page []Recorded
			var err error
			if page, more, err = selected(ctx, s); err != nil {
				yield(Recorded{}, err)
				return
			}
			for _, r := range page {
				if !yield(r, nil) {
					return
				}
				s.After = s.Read.key(r)
			}
			s.Offset = 0
			if len(page) < s.Limit { // as the events are large
				s.Limit = len(page) + 1
			} else {
				s.Limit = min(4*s.Limit, maxOfEach)
			}
		}
	}
}

// NewCursor is the cursor after the event that has a key. The read is named with its own key, as in "tenant 0198c9…".
func NewCursor(read string, k SortKey) Cursor {
	return Cursor(base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%s %d %d", readHash(read), k.Value, k.ID)))
}

// Key is the key that [NewCursor] was given. It is a *[QueryError] when c is no cursor, or one of another read.
func (c Cursor) Key(read string) (SortKey, error) {
	var k SortKey
	text, err := base64.RawURLEncoding.DecodeString(string(c))
	if err == nil {
		var hash string
		if _, err = fmt.Sscanf(string(text), "%s %d %d", &hash, &k.Value, &k.ID); err == nil && hash != readHash(read) {
			return SortKey{}, &QueryError{Field: "after", Problem: "is a cursor of another read"}
		}
	}
	if err != nil || NewCursor(read, k) != c {
		return SortKey{}, &QueryError{Field: "after", Problem: "is not a cursor"}
	}
	return k, nil
}

// readHash ties a cursor to its read in a few characters.
func readHash(read string) string {
	sum := sha256.Sum256([]byte(read))
	return hex.EncodeToString(sum[:6])
}

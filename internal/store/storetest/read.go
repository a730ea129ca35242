package storetest

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// read is one of the four paged reads.
type read struct {
	// page reads what belongs to the stream.
	page func(ctx context.Context, s store.Store, of *Stream, q store.Query) (store.Page, error)
	// order brings events that were appended in the order of their created_at into the read's order.
	order func([]events.Event) []events.Event
}

// other reads the same of something else.
func (r read) other(ctx context.Context, s store.Store, q store.Query) (store.Page, error) {
	of := NewStream()
	of.EventType = "PatientForgotten"
	return r.page(ctx, s, of, q)
}

func reads() map[string]read {
	oldestFirst := func(list []events.Event) []events.Event { return list }
	return map[string]read{
		"ByAggregate": {func(ctx context.Context, s store.Store, of *Stream, q store.Query) (store.Page, error) {
			return s.ByAggregate(ctx, of.AggregateType, of.AggregateID, q)
		}, oldestFirst},
		"ByCorrelation": {func(ctx context.Context, s store.Store, of *Stream, q store.Query) (store.Page, error) {
			return s.ByCorrelation(ctx, of.CorrelationID, q)
		}, oldestFirst},
		"ByType": {func(ctx context.Context, s store.Store, of *Stream, q store.Query) (store.Page, error) {
			return s.ByType(ctx, of.EventType, q)
		}, reversed},
		"ByTenant": {func(ctx context.Context, s store.Store, of *Stream, q store.Query) (store.Page, error) {
			return s.ByTenant(ctx, of.TenantID, q)
		}, reversed},
	}
}

func readTests() map[string]func(*testing.T, store.Store) {
	tests := map[string]func(*testing.T, store.Store){
		"a cursor belongs to its read":                cursorsOfOtherReads,
		"by created_at, not by order of appending":    sortsByCreatedAt,
		"an aggregate by version, whatever its clock": sortsByVersion,
		"Version": versions,
		"Ping":    func(t *testing.T, s store.Store) { t.Helper(); require.NoError(t, s.Ping(t.Context())) },
	}
	for name, r := range reads() {
		for what, test := range map[string]func(*testing.T, store.Store, read){
			"pages neither repeat nor skip":  pages,
			"offset":                         offsets,
			"limit 0 is the default":         defaultLimit,
			"what does not belong stays out": staysOut,
			"bad queries":                    badQueries,
			"an unknown id is an empty page": unknownID,
			"a canceled context":             canceledRead,
		} {
			tests[name+"/"+what] = func(t *testing.T, s store.Store) { t.Helper(); test(t, s, r) }
		}
	}
	return tests
}

func unknownID(t *testing.T, s store.Store, r read) {
	t.Helper()
	page, err := r.other(t.Context(), s, store.Query{})
	require.NoError(t, err)
	require.Empty(t, page.Events)
	require.Empty(t, page.Next)
}

func canceledRead(t *testing.T, s store.Store, r read) {
	t.Helper()
	_, err := r.page(canceled(t), s, NewStream(), store.Query{})
	require.ErrorIs(t, err, context.Canceled)
}

// withEqualTimes appends events of which many share their created_at.
func withEqualTimes(t *testing.T, s store.Store, stream *Stream, count int) []events.Event {
	t.Helper()
	began := time.Now().UTC().Truncate(time.Millisecond).Add(-time.Hour)
	batch := stream.Take(count)
	for i := range batch {
		batch[i].CreatedAt = began.Add(time.Duration(i/5) * time.Microsecond)
	}
	appendAll(t, s, batch)
	return batch
}

func pages(t *testing.T, s store.Store, r read) {
	t.Helper()
	stream := NewStream()
	appended := withEqualTimes(t, s, stream, 24)
	want := r.order(appended)
	for _, limit := range []int{1, 3, 7, 8, 23, 24, 25} {
		var got []events.Event
		q := store.Query{Limit: limit}
		for {
			page, err := r.page(t.Context(), s, stream, q)
			require.NoError(t, err)
			require.LessOrEqual(t, len(page.Events), limit)
			got = append(got, page.Events...)
			if q.After = page.Next; q.After == "" {
				break
			}
			require.Len(t, page.Events, limit)
			require.LessOrEqual(t, len(got), len(want))
		}
		requireSame(t, want, got)
	}

	first, err := r.page(t.Context(), s, stream, store.Query{Limit: 10})
	require.NoError(t, err)
	appended = append(appended, stream.Next())
	appendAll(t, s, appended[24:])
	rest, err := r.page(t.Context(), s, stream, store.Query{After: first.Next})
	require.NoError(t, err)
	if r.order(appended)[0].ID == appended[0].ID {
		want = append(want, appended[24])
	}
	requireSame(t, want, slices.Concat(first.Events, rest.Events))
}

func offsets(t *testing.T, s store.Store, r read) {
	t.Helper()
	stream := NewStream()
	want := r.order(withEqualTimes(t, s, stream, 12))
	for _, test := range []struct{ offset, limit, from, to int }{
		{0, 5, 0, 5},
		{5, 5, 5, 10},
		{10, 5, 10, 12},
		{12, 5, 12, 12},
		{1_000_000, 5, 12, 12},
	} {
		page, err := r.page(t.Context(), s, stream, store.Query{Offset: test.offset, Limit: test.limit})
		require.NoError(t, err)
		requireSame(t, want[test.from:test.to], page.Events)
		require.Equal(t, test.to < len(want), page.Next != "", "offset %d", test.offset)
	}

	first, err := r.page(t.Context(), s, stream, store.Query{Limit: 2})
	require.NoError(t, err)
	page, err := r.page(t.Context(), s, stream, store.Query{After: first.Next, Offset: 3, Limit: 2})
	require.NoError(t, err)
	requireSame(t, want[5:7], page.Events)
}

func defaultLimit(t *testing.T, s store.Store, r read) {
	t.Helper()
	stream := NewStream()
	want := r.order(withEqualTimes(t, s, stream, store.DefaultLimit+1))

	page, err := r.page(t.Context(), s, stream, store.Query{})
	require.NoError(t, err)
	require.Equal(t, ids(want[:store.DefaultLimit]), ids(page.Events))
	page, err = r.page(t.Context(), s, stream, store.Query{After: page.Next})
	require.NoError(t, err)
	require.Equal(t, ids(want[store.DefaultLimit:]), ids(page.Events))
	require.Empty(t, page.Next)
}

func staysOut(t *testing.T, s store.Store, r read) {
	t.Helper()
	stream, other := NewStream(), NewStream()
	foreign := other.Take(3)
	for i := range foreign {
		foreign[i].Type = "PatientMoved"
	}
	appendAll(t, s, foreign)
	want := stream.Take(3)
	appendAll(t, s, want)

	page, err := r.page(t.Context(), s, stream, store.Query{})

	require.NoError(t, err)
	require.ElementsMatch(t, ids(want), ids(page.Events))
}

func badQueries(t *testing.T, s store.Store, r read) {
	t.Helper()
	stream := NewStream()
	for name, q := range map[string]store.Query{
		"a negative limit":  {Limit: -1},
		"a huge limit":      {Limit: store.MaxLimit + 1},
		"a negative offset": {Offset: -1},
		"no cursor":         {After: "!"},
		"another no cursor": {After: "abcd"},
	} {
		_, err := r.page(t.Context(), s, stream, q)
		var bad *store.QueryError
		require.ErrorAs(t, err, &bad, name)
	}
	_, err := r.page(t.Context(), s, stream, store.Query{Limit: store.MaxLimit})
	require.NoError(t, err)
}

func cursorsOfOtherReads(t *testing.T, s store.Store) {
	t.Helper()
	stream := NewStream()
	appendAll(t, s, stream.Take(3))
	for name, r := range reads() {
		page, err := r.page(t.Context(), s, stream, store.Query{Limit: 1})
		require.NoError(t, err)
		require.NotEmpty(t, page.Next)

		var bad *store.QueryError
		_, err = r.other(t.Context(), s, store.Query{After: page.Next})
		require.ErrorAs(t, err, &bad, "%s of another key", name)
		for otherName, otherRead := range reads() {
			if otherName != name {
				_, err = otherRead.page(t.Context(), s, stream, store.Query{After: page.Next})
				require.ErrorAs(t, err, &bad, "a cursor of %s in %s", name, otherName)
			}
		}
	}
}

func sortsByCreatedAt(t *testing.T, s store.Store) {
	t.Helper()
	early, late := NewStream(), NewStream()
	late.TenantID, late.CorrelationID = early.TenantID, early.CorrelationID
	old, recent := early.Next(), late.Next()
	old.CreatedAt = recent.CreatedAt.Add(-time.Hour)
	appendAll(t, s, []events.Event{recent})
	appendAll(t, s, []events.Event{old})

	for name, r := range reads() {
		if name == "ByAggregate" {
			continue
		}
		page, err := r.page(t.Context(), s, early, store.Query{})
		require.NoError(t, err)
		requireSame(t, r.order([]events.Event{old, recent}), page.Events)
	}
}

func sortsByVersion(t *testing.T, s store.Store) {
	t.Helper()
	stream := NewStream()
	want := stream.Take(3)
	want[2].CreatedAt = want[0].CreatedAt.Add(-time.Hour)
	appendAll(t, s, want)

	page, err := s.ByAggregate(t.Context(), stream.AggregateType, stream.AggregateID, store.Query{})

	require.NoError(t, err)
	requireSame(t, want, page.Events)
}

func versions(t *testing.T, s store.Store) {
	t.Helper()
	stream := NewStream()
	for want := range 3 {
		got, err := s.Version(t.Context(), stream.AggregateType, stream.AggregateID)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.NoError(t, s.Append(t.Context(), stream.Next()))
	}
	got, err := s.Version(t.Context(), "Clinic", stream.AggregateID)
	require.NoError(t, err)
	require.Zero(t, got)
	_, err = s.Version(canceled(t), stream.AggregateType, stream.AggregateID)
	require.ErrorIs(t, err, context.Canceled)
}

func streamTests() map[string]func(*testing.T, store.Store) {
	return map[string]func(*testing.T, store.Store){
		"of any length, from any version": streams,
		"an unknown aggregate yields nothing": func(t *testing.T, s store.Store) {
			t.Helper()
			require.Empty(t, stored(t, s, NewStream()))
		},
		"of large events":         streamsLarge,
		"appending while it runs": appendsWhileStreaming,
		"a canceled context":      cancelsStream,
	}
}

// history is longer than a page of any store.
const history = 2500

func streams(t *testing.T, s store.Store) {
	t.Helper()
	stream := NewStream()
	want := stream.Take(history)
	appendAll(t, s, want)
	for _, after := range []int{0, 1, 499, 500, 501, history - 1, history, history + 1, events.MaxVersion} {
		got := collect(t, s.Stream(t.Context(), stream.AggregateType, stream.AggregateID, after))
		requireSame(t, want[min(after, history):], got)
	}
	require.Empty(t, collect(t, s.Stream(t.Context(), "Clinic", stream.AggregateID, 0)))

	for i := range 20 { // leaving early must not keep a connection
		for e, err := range s.Stream(t.Context(), stream.AggregateType, stream.AggregateID, i) {
			require.NoError(t, err)
			require.Equal(t, i+1, e.AggregateVersion)
			break
		}
	}
}

// streamsLarge streams more data than a store holds in memory.
func streamsLarge(t *testing.T, s store.Store) {
	t.Helper()
	stream := NewStream()
	want := stream.Take(6)
	for i := range want {
		if i != 2 {
			want[i].Data = json.RawMessage(`"` + strings.Repeat("x", 3<<20) + `"`)
		}
		require.NoError(t, s.Append(t.Context(), want[i]))
	}
	requireSame(t, want, stored(t, s, stream))
}

func appendsWhileStreaming(t *testing.T, s store.Store) {
	t.Helper()
	stream := NewStream()
	appendAll(t, s, stream.Take(history))
	read := 0
	for e, err := range s.Stream(t.Context(), stream.AggregateType, stream.AggregateID, 0) {
		require.NoError(t, err)
		read++
		require.Equal(t, read, e.AggregateVersion)
		if read == 1 {
			require.NoError(t, s.Append(t.Context(), stream.Next()))
		}
	}
	require.GreaterOrEqual(t, read, history)
}

func cancelsStream(t *testing.T, s store.Store) {
	t.Helper()
	stream := NewStream()
	appendAll(t, s, stream.Take(history))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	read := 0
	for _, err := range s.Stream(ctx, stream.AggregateType, stream.AggregateID, 0) {
		if last = err; err == nil {
			read++
		}
		cancel()
	}
	require.ErrorIs(t, last, context.Canceled)
	require.Less(t, read, history)
}

func allTests() map[string]func(*testing.T, store.Store) {
	return map[string]func(*testing.T, store.Store){
		"in commit order, from any position": all,
		"an empty store yields nothing": func(t *testing.T, s store.Store) {
			t.Helper()
			require.Empty(t, collect(t, s.All(t.Context(), store.Position{})))
		},
		"a canceled context": func(t *testing.T, s store.Store) {
			t.Helper()
			var last error
			for _, err := range s.All(canceled(t), store.Position{}) {
				last = err
			}
			require.ErrorIs(t, last, context.Canceled)
		},
	}
}

func all(t *testing.T, s store.Store) {
	t.Helper()
	one, other := NewStream(), NewStream()
	var want []events.Event
	for range 3 {
		batch := append(other.Take(1), one.Take(400)...)
		appendAll(t, s, batch)
		want = append(want, batch...)
	}
	var recorded []store.Recorded
	require.Eventually(t, func() bool {
		recorded = collect(t, s.All(t.Context(), store.Position{}))
		return len(recorded) == len(want)
	}, patience, 10*time.Millisecond)
	requireSame(t, want, withoutPositions(recorded))

	for _, i := range []int{0, 399, 400, 401, 700, len(want) - 1} {
		rest := collect(t, s.All(t.Context(), recorded[i].Position))
		require.Equal(t, recorded[i+1:], append([]store.Recorded{}, rest...))
	}
	for r, err := range s.All(t.Context(), store.Position{}) {
		require.NoError(t, err)
		require.Equal(t, want[0].ID, r.ID)
		break
	}
}

func withoutPositions(recorded []store.Recorded) []events.Event {
	list := make([]events.Event, len(recorded))
	for i, r := range recorded {
		list[i] = r.Event
	}
	return list
}

package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

func searchTests() map[string]func(*testing.T, store.Store) {
	return map[string]func(*testing.T, store.Store){
		"by any condition and by several":  searches,
		"pages neither repeat nor skip":    searchPages,
		"beyond its reach it is continued": searchesFar,
		"bad queries":                      badSearches,
		"a canceled context": func(t *testing.T, s store.Store) {
			t.Helper()
			_, err := s.Search(canceled(t), store.Search{}, store.Query{})
			require.ErrorIs(t, err, context.Canceled)
		},
	}
}

func searches(t *testing.T, s store.Store) {
	t.Helper()
	require.Empty(t, search(t, s, store.Search{}, store.DefaultLimit))
	// Two tenants with two aggregates of three events each; the last of an aggregate is a move, caused by the first.
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var appended []events.Event
	one, other := NewStream(), NewStream()
	for i, stream := range []*Stream{one, other, NewStream(), NewStream()} {
		if i >= 2 {
			stream.TenantID = appended[3*(i-2)].TenantID
		}
		batch := stream.Take(3)
		batch[2].Type, batch[2].CausationID = "PatientMoved", uuid.NullUUID{UUID: batch[0].ID, Valid: true}
		for k := range batch {
			batch[k].CreatedAt = noon.Add(time.Duration(3*i+k) * time.Minute)
		}
		appendAll(t, s, batch)
		appended = append(appended, batch...)
	}
	for name, test := range map[string]struct {
		search store.Search
		want   []int
	}{
		"nothing set":            {store.Search{}, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
		"effects":                {store.Search{CausationID: appended[3].ID}, []int{5}},
		"effects of another":     {store.Search{CausationID: appended[3].ID, Type: "PatientRegistered"}, nil},
		"aggregate":              {store.Search{AggregateID: one.AggregateID}, []int{0, 1, 2}},
		"aggregate and type":     {store.Search{AggregateID: one.AggregateID, Type: "PatientMoved"}, []int{2}},
		"correlation":            {store.Search{CorrelationID: other.CorrelationID}, []int{3, 4, 5}},
		"correlation, from":      {store.Search{CorrelationID: other.CorrelationID, From: noon.Add(4 * time.Minute)}, []int{4, 5}},
		"tenant":                 {store.Search{TenantID: one.TenantID}, []int{0, 1, 2, 6, 7, 8}},
		"tenant and type":        {store.Search{TenantID: one.TenantID, Type: "PatientMoved"}, []int{2, 8}},
		"tenant, type and time":  {store.Search{TenantID: one.TenantID, Type: "PatientMoved", From: noon.Add(3 * time.Minute)}, []int{8}},
		"tenant, until":          {store.Search{TenantID: one.TenantID, Until: noon.Add(2 * time.Minute)}, []int{0, 1}},
		"type":                   {store.Search{Type: "PatientMoved"}, []int{2, 5, 8, 11}},
		"type, window":           {store.Search{Type: "PatientMoved", From: noon.Add(5 * time.Minute), Until: noon.Add(11 * time.Minute)}, []int{5, 8}},
		"window":                 {store.Search{From: noon.Add(5 * time.Minute), Until: noon.Add(7 * time.Minute)}, []int{5, 6}},
		"an empty window":        {store.Search{From: noon.Add(5 * time.Minute), Until: noon.Add(5 * time.Minute)}, nil},
		"unknown type":           {store.Search{Type: "PatientForgotten"}, nil},
		"unknown tenant":         {store.Search{TenantID: uuid.New()}, nil},
		"correlation and tenant": {store.Search{CorrelationID: other.CorrelationID, TenantID: one.TenantID}, nil},
		"all":                    {searchFor(appended[5]), []int{5}},
	} {
		want := make([]events.Event, len(test.want))
		for i, index := range test.want {
			want[i] = appended[index]
		}
		for _, limit := range []int{1, 2, 3, 100} {
			t.Logf("%s, pages of %d", name, limit)
			requireSame(t, reversed(want), search(t, s, test.search, limit))
		}
	}
}

// searchFor has all the conditions of which e is the only one.
func searchFor(e events.Event) store.Search {
	return store.Search{
		CausationID: e.CausationID.UUID, AggregateID: e.AggregateID, CorrelationID: e.CorrelationID,
		TenantID: e.TenantID, Type: e.Type, From: e.CreatedAt, Until: e.CreatedAt.Add(time.Microsecond),
	}
}

// search reads all pages.
func search(t *testing.T, s store.Store, chosen store.Search, limit int) []events.Event {
	t.Helper()
	var got []events.Event
	for q := (store.Query{Limit: limit}); ; {
		page, err := s.Search(t.Context(), chosen, q)
		require.NoError(t, err)
		require.LessOrEqual(t, len(page.Events), limit)
		got = append(got, page.Events...)
		if q.After = page.Next; q.After == "" {
			return got
		}
	}
}

func searchPages(t *testing.T, s store.Store) {
	t.Helper()
	stream := NewStream()
	want := reversed(withEqualTimes(t, s, stream, 24))
	first := want[0]
	for name, chosen := range map[string]store.Search{
		"all":             {},
		"aggregate":       {AggregateID: first.AggregateID},
		"correlation":     {CorrelationID: first.CorrelationID},
		"tenant":          {TenantID: first.TenantID},
		"type":            {Type: first.Type},
		"tenant and type": {TenantID: first.TenantID, Type: first.Type},
		"window":          {From: want[23].CreatedAt, Until: first.CreatedAt.Add(time.Microsecond)},
	} {
		for _, limit := range []int{1, 3, 23, 24, 25} {
			t.Logf("%s, pages of %d", name, limit)
			requireSame(t, want, search(t, s, chosen, limit))
		}
		page, err := s.Search(t.Context(), chosen, store.Query{Limit: 10})
		require.NoError(t, err)
		requireSame(t, want[:10], page.Events)
		rest, err := s.Search(t.Context(), chosen, store.Query{After: page.Next})
		require.NoError(t, err)
		requireSame(t, want[10:], rest.Events)
		require.Empty(t, rest.Next)
	}
}

// searchesFar looks for the oldest of more events than one page looks at.
func searchesFar(t *testing.T, s store.Store) {
	t.Helper()
	stream := NewStream()
	oldest := stream.Next()
	oldest.Type = "PatientMoved"
	appendAll(t, s, []events.Event{oldest})
	for range 5 {
		batch := stream.Take(store.SearchReach / 5)
		for i := range batch {
			batch[i].CreatedAt = oldest.CreatedAt.Add(time.Minute)
		}
		appendAll(t, s, batch)
	}
	elsewhere := stream.Next()
	elsewhere.TenantID, elsewhere.AggregateID, elsewhere.AggregateVersion = uuid.New(), uuid.New(), 1
	elsewhere.Type, elsewhere.CreatedAt = "PatientMoved", oldest.CreatedAt.Add(time.Hour)
	appendAll(t, s, []events.Event{elsewhere})

	// In one walk it is out of reach at first, in the other the second.
	chain := store.Search{CorrelationID: stream.CorrelationID, TenantID: stream.TenantID, Type: "PatientMoved"}
	page, err := s.Search(t.Context(), chain, store.Query{})
	require.NoError(t, err)
	require.Empty(t, page.Events)
	require.NotEmpty(t, page.Next)
	requireSame(t, []events.Event{oldest}, search(t, s, chain, 10))

	page, err = s.Search(t.Context(), store.Search{TenantID: stream.TenantID, Type: "PatientMoved"}, store.Query{})
	require.NoError(t, err)
	requireSame(t, []events.Event{oldest}, page.Events)
	require.Empty(t, page.Next)
}

func badSearches(t *testing.T, s store.Store) {
	t.Helper()
	stream := NewStream()
	appendAll(t, s, stream.Take(3))
	chosen := store.Search{TenantID: stream.TenantID}
	page, err := s.Search(t.Context(), chosen, store.Query{Limit: 1})
	require.NoError(t, err)
	for name, test := range map[string]struct {
		search store.Search
		query  store.Query
	}{
		"a negative limit":           {chosen, store.Query{Limit: -1}},
		"a huge limit":               {chosen, store.Query{Limit: store.MaxLimit + 1}},
		"an offset":                  {chosen, store.Query{Offset: 1}},
		"no cursor":                  {chosen, store.Query{After: "!"}},
		"a cursor of another search": {store.Search{TenantID: uuid.New()}, store.Query{After: page.Next}},
		"a cursor without a filter":  {store.Search{}, store.Query{After: page.Next}},
	} {
		_, err := s.Search(t.Context(), test.search, test.query)
		var bad *store.QueryError
		require.ErrorAs(t, err, &bad, name)
	}
}

package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

func appendTests() map[string]func(*testing.T, store.Store) {
	return map[string]func(*testing.T, store.Store){
		"keeps every field":         keepsEveryField,
		"keeps the meaning of data": keepsData,
		"refuses":                   refuses,
		"no events": func(t *testing.T, s store.Store) {
			t.Helper()
			require.NoError(t, s.AppendMany(t.Context(), nil))
		},
		"two aggregates in one batch":  appendsToTwoAggregates,
		"10 000 events at once":        appendsMany,
		"one writer wins each version": oneWriterWins,
		"writers of many aggregates":   writersOfManyAggregates,
		"a canceled context appends nothing": func(t *testing.T, s store.Store) {
			t.Helper()
			stream := NewStream()
			require.ErrorIs(t, s.Append(canceled(t), stream.Next()), context.Canceled)
			require.Empty(t, stored(t, s, stream))
		},
	}
}

func keepsEveryField(t *testing.T, s store.Store) {
	t.Helper()
	stream := NewStream()
	bare, full := stream.Next(), stream.Next()
	full.Type = strings.Repeat("ü", events.MaxTypeLength)
	full.CreatedAt = time.Date(2024, 2, 29, 23, 59, 59, 123_456_789, time.FixedZone("", 3600))
	full.ClinicID = uuid.NullUUID{UUID: uuid.New(), Valid: true}
	full.CausationID = uuid.NullUUID{UUID: bare.ID, Valid: true}
	full.UserID = uuid.NullUUID{UUID: uuid.New(), Valid: true}
	full.Metadata = json.RawMessage(`{"source":"import","attempt":1}`)
	ancient := stream.Next()
	ancient.CreatedAt = time.Date(1, 1, 1, 0, 0, 0, 1000, time.UTC)
	future := stream.Next()
	future.CreatedAt = time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC)
	want := []events.Event{bare, full, ancient, future}

	require.NoError(t, s.Append(t.Context(), bare))
	appendAll(t, s, want[1:])

	requireSame(t, want, stored(t, s, stream))
	version, err := s.Version(t.Context(), stream.AggregateType, stream.AggregateID)
	require.NoError(t, err)
	require.Equal(t, 4, version)
}

func keepsData(t *testing.T, s store.Store) {
	t.Helper()
	stream := NewStream()
	var want []events.Event
	for _, data := range []string{
		`null`, `true`, `0`, `-0.0`, `""`, `[]`, `{}`, `"text"`,
		`9007199254740993`, `-9223372036854775809`, `123456789012345678901234567890.123456789`,
		`1.10`, `0.30000000000000004`, `1e400`, `1E-30`,
		`{"b":1,"a":{"unknown":[1,"2",null]}}`,
		`"\u00e9\ud83d\ude00\"\\\/\b\f\n\r\t"`, `"é😀` + "\u2028" + `"`, `{"\u0061":1,"":2}`,
		` { "spaces" : [ 1 , 2 ] } `,
		strings.Repeat("[", 500) + strings.Repeat("]", 500),
		`"` + strings.Repeat("x", 1<<20) + `"`,
	} {
		e := stream.Next()
		e.Data = json.RawMessage(data)
		want = append(want, e)
	}

	appendAll(t, s, want)

	requireSame(t, want, stored(t, s, stream))
}

// refuses checks that each bad append is told by its type, and leaves nothing behind.
func refuses(t *testing.T, s store.Store) {
	t.Helper()
	const found = 3
	next := func(change func(*events.Event)) func(*Stream, []events.Event) []events.Event {
		return func(s *Stream, _ []events.Event) []events.Event {
			e := s.At(found + 1)
			change(&e)
			return []events.Event{e}
		}
	}
	// A single event and a batch may be written by statements of their own.
	behindAnother := func(batch func(*Stream, []events.Event) []events.Event) func(*Stream, []events.Event) []events.Event {
		return func(s *Stream, has []events.Event) []events.Event {
			return append([]events.Event{NewStream().Next()}, batch(s, has)...)
		}
	}
	beyond := events.MaxVersion
	beyond++ // on 32 bits it is the lowest number
	for name, test := range map[string]refused{
		"a gap": {
			func(s *Stream, _ []events.Event) []events.Event { return []events.Event{s.At(found + 2)} },
			isGap(found+2, found),
		},
		"a gap behind a good event of another aggregate": {
			func(s *Stream, _ []events.Event) []events.Event {
				return []events.Event{NewStream().Next(), s.At(found + 2)}
			},
			isGap(found+2, found),
		},
		"a gap within the batch": {
			func(s *Stream, _ []events.Event) []events.Event {
				return []events.Event{s.At(found + 1), s.At(found + 3)}
			},
			isGap(found+3, found+1),
		},
		"versions that descend": {
			func(s *Stream, _ []events.Event) []events.Event { return []events.Event{s.At(found + 1), s.At(found)} },
			isGap(found, found+1),
		},
		"a version twice in the batch": {
			func(s *Stream, _ []events.Event) []events.Event {
				return []events.Event{s.At(found + 1), s.At(found + 1)}
			},
			isGap(found+1, found+1),
		},
		"a new aggregate that begins at version 2": {
			func(*Stream, []events.Event) []events.Event { return []events.Event{NewStream().At(2)} },
			isGap(2, 0),
		},
		"a taken version": {
			func(s *Stream, _ []events.Event) []events.Event { return []events.Event{s.At(found)} },
			isConflict(found, found),
		},
		"a version taken long ago": {
			func(s *Stream, _ []events.Event) []events.Event { return []events.Event{s.At(1)} },
			isConflict(1, found),
		},
		"a batch that begins at a taken version": {
			func(s *Stream, _ []events.Event) []events.Event { return []events.Event{s.At(found), s.At(found + 1)} },
			isConflict(found, found),
		},
		"a taken version behind a good event of another aggregate": {
			func(s *Stream, _ []events.Event) []events.Event { return []events.Event{NewStream().Next(), s.At(2)} },
			isConflict(2, found),
		},
		"the same event again": {
			func(_ *Stream, has []events.Event) []events.Event { return has[found-1:] },
			isDuplicate,
		},
		"the same events again": {
			func(_ *Stream, has []events.Event) []events.Event { return has },
			isDuplicate,
		},
		"an event_id that another event has": {
			func(s *Stream, has []events.Event) []events.Event {
				e := s.At(found + 1)
				e.ID = has[0].ID
				return []events.Event{e}
			},
			isDuplicate,
		},
		"an event_id that an event of another aggregate has": {
			func(_ *Stream, has []events.Event) []events.Event {
				e := NewStream().Next()
				e.ID = has[0].ID
				return []events.Event{e}
			},
			isDuplicate,
		},
		"an event_id twice in the batch": {
			func(s *Stream, _ []events.Event) []events.Event {
				first, second := s.At(found+1), s.At(found+2)
				second.ID = first.ID
				return []events.Event{first, second}
			},
			isDuplicate,
		},
		"an event of another tenant": {
			next(func(e *events.Event) { e.TenantID = uuid.New() }),
			isOtherTenant,
		},
		"an event of another tenant behind a good event of another aggregate": {
			behindAnother(next(func(e *events.Event) { e.TenantID = uuid.New() })),
			isOtherTenant,
		},
		"two tenants in the batch": {
			func(*Stream, []events.Event) []events.Event {
				batch := NewStream().Take(2)
				batch[1].TenantID = uuid.New()
				return batch
			},
			isOtherTenant,
		},
		"an event of another aggregate type": {
			next(func(e *events.Event) { e.AggregateType = "Clinic" }),
			isInvalid("aggregate_type", "event 1 of 1"),
		},
		"an event of another aggregate type behind a good event of another aggregate": {
			behindAnother(next(func(e *events.Event) { e.AggregateType = "Clinic" })),
			isInvalid("aggregate_type", "event 2 of 2"),
		},
		"a bad event between good ones": {
			func(s *Stream, _ []events.Event) []events.Event {
				batch := []events.Event{s.At(found + 1), s.At(found + 2), s.At(found + 3)}
				batch[1].TenantID = uuid.Nil
				return batch
			},
			isInvalid("tenant_id", "event 2 of 3"),
		},
		"version 0": {
			func(*Stream, []events.Event) []events.Event { return []events.Event{NewStream().At(0)} },
			isInvalid("aggregate_version", "event 1 of 1"),
		},
		"a version beyond the column's": {
			func(s *Stream, _ []events.Event) []events.Event { return []events.Event{s.At(beyond)} },
			isInvalid("aggregate_version", "event 1 of 1"),
		},
		"no data":              withData("", "event_data"),
		"data that is no JSON": withData(`{"name":`, "event_data"),
		"NUL in the data":      withData(`"\u0000"`, "event_data"),
		"half a character":     withData(`"\ud800"`, "event_data"),
		"invalid UTF-8":        withData("\"\xff\"", "event_data"),
		"metadata that is no object": {
			next(func(e *events.Event) { e.Metadata = json.RawMessage(`[]`) }),
			isInvalid("metadata", "event 1 of 1"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stream := NewStream()
			has := stream.Take(found)
			appendAll(t, s, has)
			batch := test.batch(stream, has)

			test.check(t, s.AppendMany(t.Context(), batch), batch)

			requireSame(t, has, stored(t, s, stream))
			for _, e := range batch {
				if e.AggregateID != stream.AggregateID {
					require.Empty(t, collect(t, s.Stream(t.Context(), e.AggregateType, e.AggregateID, 0)))
				}
			}
			require.NoError(t, s.Append(t.Context(), stream.Next()), "the store still serves")
		})
	}
}

// refused is an append that must fail.
type refused struct {
	// batch is appended to the stream, of which the store has some events.
	batch func(stream *Stream, has []events.Event) []events.Event
	check func(t *testing.T, err error, batch []events.Event)
}

func withData(data, field string) refused {
	return refused{
		func(*Stream, []events.Event) []events.Event {
			e := NewStream().Next()
			e.Data = json.RawMessage(data)
			return []events.Event{e}
		},
		isInvalid(field, "event 1 of 1"),
	}
}

// blamed is the event of the batch that err is about.
func blamed(t *testing.T, err error, batch []events.Event) events.Event {
	t.Helper()
	var about *store.EventError
	require.ErrorAs(t, err, &about)
	require.Equal(t, len(batch), about.Of)
	return batch[about.Index]
}

func isGap(wanted, found int) func(*testing.T, error, []events.Event) {
	return func(t *testing.T, err error, batch []events.Event) {
		t.Helper()
		var gap *store.GapError
		require.ErrorAs(t, err, &gap)
		require.Equal(t, wanted, blamed(t, err, batch).AggregateVersion)
		last := batch[len(batch)-1]
		require.Equal(t, store.GapError{
			AggregateType: last.AggregateType, AggregateID: last.AggregateID, Wanted: wanted, Found: found,
		}, *gap)
	}
}

func isConflict(wanted, found int) func(*testing.T, error, []events.Event) {
	return func(t *testing.T, err error, batch []events.Event) {
		t.Helper()
		require.ErrorIs(t, err, events.ErrConflict)
		var conflict *store.ConflictError
		require.ErrorAs(t, err, &conflict)
		require.Equal(t, wanted, blamed(t, err, batch).AggregateVersion)
		last := batch[len(batch)-1]
		require.Equal(t, store.ConflictError{
			AggregateType: last.AggregateType, AggregateID: last.AggregateID, Wanted: wanted, Found: found,
		}, *conflict)
	}
}

func isDuplicate(t *testing.T, err error, batch []events.Event) {
	t.Helper()
	var duplicate *store.DuplicateError
	require.ErrorAs(t, err, &duplicate)
	require.Equal(t, batch[0].ID, duplicate.EventID)
	require.Equal(t, duplicate.EventID, blamed(t, err, batch).ID)
	require.NotErrorIs(t, err, events.ErrConflict)
}

func isOtherTenant(t *testing.T, err error, batch []events.Event) {
	t.Helper()
	require.ErrorIs(t, err, events.ErrOtherTenant)
	require.Equal(t, batch[len(batch)-1], blamed(t, err, batch))
}

func isInvalid(field, where string) func(*testing.T, error, []events.Event) {
	return func(t *testing.T, err error, batch []events.Event) {
		t.Helper()
		blamed(t, err, batch)
		var invalid *events.InvalidError
		require.ErrorAs(t, err, &invalid)
		require.Len(t, invalid.Fields, 1)
		require.Equal(t, field, invalid.Fields[0].Field)
		require.ErrorContains(t, err, where)
		require.NotContains(t, err.Error(), "Ana")
	}
}

func appendsToTwoAggregates(t *testing.T, s store.Store) {
	t.Helper()
	one, other := NewStream(), NewStream()
	appendAll(t, s, []events.Event{one.Next()})
	batch := []events.Event{one.Next(), other.Next(), one.Next(), other.Next(), other.Next()}

	appendAll(t, s, batch)

	requireSame(t, []events.Event{batch[0], batch[2]}, stored(t, s, one)[1:])
	requireSame(t, []events.Event{batch[1], batch[3], batch[4]}, stored(t, s, other))
}

func appendsMany(t *testing.T, s store.Store) {
	t.Helper()
	const count = 10_000
	streams := []*Stream{NewStream(), NewStream(), NewStream()}
	batch := make([]events.Event, count)
	for i := range batch {
		batch[i] = streams[i%len(streams)].Next()
	}

	appendAll(t, s, batch)

	for i, stream := range streams {
		var want []events.Event
		for j := i; j < count; j += len(streams) {
			want = append(want, batch[j])
		}
		require.Equal(t, ids(want), ids(stored(t, s, stream)))
	}
}

func oneWriterWins(t *testing.T, s store.Store) {
	t.Helper()
	const writers, versions = 8, 10
	stream := NewStream()
	for version := 1; version <= versions; version++ {
		results := make([]error, writers)
		var done sync.WaitGroup
		for i := range writers {
			done.Go(func() { results[i] = s.Append(t.Context(), stream.At(version)) })
		}
		done.Wait()

		won := 0
		for _, err := range results {
			if err == nil {
				won++
				continue
			}
			var conflict *store.ConflictError
			require.ErrorAs(t, err, &conflict)
			require.Equal(t, version, conflict.Wanted)
			require.Equal(t, version, conflict.Found)
		}
		require.Equal(t, 1, won)
	}
	require.Len(t, stored(t, s, stream), versions)
}

func writersOfManyAggregates(t *testing.T, s store.Store) {
	t.Helper()
	const writers, versions = 8, 20
	streams := make([]*Stream, writers)
	results := make([]error, writers)
	var done sync.WaitGroup
	for i := range writers {
		streams[i] = NewStream()
		done.Go(func() {
			for range versions {
				results[i] = errors.Join(results[i], s.Append(t.Context(), streams[i].Next()))
			}
		})
	}
	done.Wait()

	require.NoError(t, errors.Join(results...))
	for _, stream := range streams {
		require.Len(t, stored(t, s, stream), versions)
	}
}

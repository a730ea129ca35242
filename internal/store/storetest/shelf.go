package storetest

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
)

// RunShelf holds stores to [deadletter.Shelf]. Each call of open returns a store on a new, migrated, empty database,
// and sees to its end.
func RunShelf(t *testing.T, open func(t *testing.T) deadletter.Shelf) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, deadletter.Shelf){
		"keeps a letter":              keepsLetter,
		"keeps a letter of no event":  keepsUnreadable,
		"pages through letters":       pagesLetters,
		"takes letters up for replay": requestsReplay,
		"an id that no letter has":    unknownLetters,
		"purges":                      purgesLetters,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

func letter(t *testing.T) deadletter.Letter {
	t.Helper()
	e := NewStream().Next()
	body, err := e.MarshalJSON()
	require.NoError(t, err)
	return deadletter.Letter{
		Event: e,
		Failure: deadletter.Failure{
			Reason:      "no such patient: ü\n",
			Handler:     "welcome-patient",
			Attempts:    5,
			FirstFailed: time.Date(2025, 1, 2, 3, 4, 5, 678_000_000, time.UTC),
			LastFailed:  time.Date(2025, 1, 2, 3, 5, 0, 0, time.UTC),
		},
		Source:  "PatientRegistered",
		Headers: map[string]any{"event_type": e.Type, "retries": json.Number("9007199254740993")},
		Body:    body,
	}
}

// requireSameLetters compares all but the ids, which the shelf gives.
func requireSameLetters(t *testing.T, want, got []deadletter.Letter) {
	t.Helper()
	require.Len(t, got, len(want))
	for i := range want {
		require.NotEmpty(t, got[i].ID)
		g := got[i]
		require.Equal(t, want[i].Event.ID, g.Event.ID)
		require.Equal(t, want[i].Event.Type, g.Event.Type)
		require.Equal(t, want[i].Body, g.Body)
		require.Equal(t, want[i].Failure, g.Failure)
		require.Equal(t, want[i].Source, g.Source)
		require.Equal(t, fmt.Sprint(want[i].Headers), fmt.Sprint(g.Headers))
	}
}

// shelve adds n letters and returns them as the shelf has them.
func shelve(t *testing.T, s deadletter.Shelf, n int) []deadletter.Letter {
	t.Helper()
	want := make([]deadletter.Letter, n)
	for i := range want {
		want[i] = letter(t)
		_, err := s.AddLetter(t.Context(), want[i])
		require.NoError(t, err)
	}
	got, err := s.Letters(t.Context(), "", n+1)
	require.NoError(t, err)
	requireSameLetters(t, want, got)
	return got
}

func keepsLetter(t *testing.T, s deadletter.Shelf) {
	t.Helper()
	shelve(t, s, 1)
}

func keepsUnreadable(t *testing.T, s deadletter.Shelf) {
	t.Helper()
	var want []deadletter.Letter
	const half = `{"event_id":7,"event_type":"PatientRegistered","aggregate_version":0,"unknown":1}`
	for _, body := range []string{"", "no JSON", "\xff\x00", `"\u0000"`, half, "[]"} {
		l := deadletter.Letter{Body: []byte(body), Headers: map[string]any{}}
		l.FirstFailed = time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)
		l.LastFailed = l.FirstFailed
		if body == half {
			l.Event.Type = "PatientRegistered"
		}
		_, err := s.AddLetter(t.Context(), l)
		require.NoError(t, err)
		want = append(want, l)
	}

	got, err := s.Letters(t.Context(), "", 10)

	require.NoError(t, err)
	requireSameLetters(t, want, got)
}

func pagesLetters(t *testing.T, s deadletter.Shelf) {
	t.Helper()
	want := shelve(t, s, 7)
	var got []deadletter.Letter
	after := ""
	for {
		page, err := s.Letters(t.Context(), after, 3)
		require.NoError(t, err)
		if len(page) == 0 {
			break
		}
		require.LessOrEqual(t, len(page), 3)
		got = append(got, page...)
		after = page[len(page)-1].ID
	}
	require.Equal(t, want, got)

	require.NoError(t, s.RemoveLetter(t.Context(), want[2].ID))
	page, err := s.Letters(t.Context(), want[2].ID, 1)
	require.NoError(t, err)
	require.Equal(t, want[3:4], page, "an id still marks its place when its letter is gone")
}

func requestsReplay(t *testing.T, s deadletter.Shelf) {
	t.Helper()
	letters := shelve(t, s, 4)
	for _, i := range []int{2, 0, 0} {
		found, err := s.RequestReplay(t.Context(), letters[i].ID)
		require.NoError(t, err)
		require.True(t, found)
	}

	requested, err := s.ReplayRequested(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, []deadletter.Letter{letters[0], letters[2]}, requested)
	requested, err = s.ReplayRequested(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, letters[:1], requested)
	all, err := s.Letters(t.Context(), "", 10)
	require.NoError(t, err)
	require.Equal(t, letters, all, "a request leaves the letter on the shelf")

	require.NoError(t, s.RemoveLetter(t.Context(), letters[0].ID))
	requested, err = s.ReplayRequested(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, letters[2:3], requested)
}

func unknownLetters(t *testing.T, s deadletter.Shelf) {
	t.Helper()
	gone := shelve(t, s, 1)[0].ID
	require.NoError(t, s.RemoveLetter(t.Context(), gone))
	for _, id := range []string{gone, "no id", "-1", "9223372036854775808", ""} {
		found, err := s.RequestReplay(t.Context(), id)
		require.NoError(t, err, "id %q", id)
		require.False(t, found, "id %q", id)
		require.NoError(t, s.RemoveLetter(t.Context(), id), "id %q", id)
	}
	added := shelve(t, s, 1)
	require.NotEqual(t, gone, added[0].ID, "ids are not used twice")
}

func purgesLetters(t *testing.T, s deadletter.Shelf) {
	t.Helper()
	shelve(t, s, 5)
	for _, want := range []int{5, 0} {
		count, err := s.PurgeLetters(t.Context())
		require.NoError(t, err)
		require.Equal(t, want, count)
	}
	rest, err := s.Letters(t.Context(), "", 10)
	require.NoError(t, err)
	require.Empty(t, rest)
}

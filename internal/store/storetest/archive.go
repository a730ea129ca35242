package storetest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store"
)

// Archived is a store with a table of archived letters.
type Archived interface {
	store.Store
	deadletter.ArchiveTable
	MigrateDown(ctx context.Context) error
}

// RunArchive holds stores to [deadletter.ArchiveTable]. Each call of open returns a store on a new, migrated, empty
// database, and sees to its end.
func RunArchive(t *testing.T, open func(t *testing.T) Archived) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, Archived){
		"keeps letters in order":               keepsArchived,
		"adds a letter once":                   archivesOnce,
		"tells what is restored":               restoresArchived,
		"lets nothing wait for discarded ones": unparksDiscarded,
		"is not taken back":                    keepsArchive,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

func archived(t *testing.T, id string) deadletter.ArchivedLetter {
	t.Helper()
	l := letter(t)
	l.ID = id
	return deadletter.ArchivedLetter{
		Letter: deadletter.Complete(l), Disposition: deadletter.Archived, Once: id,
		Decision: deadletter.Decision{By: "ana@night", Reason: "to look at: ü"},
		At:       time.Date(2025, 1, 2, 3, 4, 5, 678_000_000, time.UTC),
	}
}

func archivedRows(t *testing.T, s Archived) []deadletter.ArchivedLetter {
	t.Helper()
	rows, err := s.ArchivedLetters(t.Context(), "", 100)
	require.NoError(t, err)
	return rows
}

func keepsArchived(t *testing.T, s Archived) {
	t.Helper()
	var want []deadletter.ArchivedLetter
	for i := range 5 {
		a := archived(t, fmt.Sprint("letter ", i))
		a.Letter.Body = append(a.Letter.Body, 0, 0xff)
		a.Disposition = []deadletter.Disposition{
			deadletter.Archived, deadletter.Discarded, deadletter.Superseded, deadletter.Imported,
		}[i%4]
		want = append(want, a)
	}
	ids, err := s.AddArchived(t.Context(), want)
	require.NoError(t, err)
	require.Len(t, ids, len(want))

	var got []deadletter.ArchivedLetter
	for after := ""; ; after = got[len(got)-1].ID {
		rows, err := s.ArchivedLetters(t.Context(), after, 2)
		require.NoError(t, err)
		got = append(got, rows...)
		if len(rows) < 2 {
			break
		}
	}
	require.Len(t, got, len(want))
	for i := range want {
		require.Equal(t, ids[i], got[i].ID)
		encodedWant, err := want[i].Letter.Encode()
		require.NoError(t, err)
		encodedGot, err := got[i].Letter.Encode()
		require.NoError(t, err)
		require.Equal(t, string(encodedWant), string(encodedGot))
		want[i].ID, want[i].Letter, got[i].Letter = got[i].ID, deadletter.Letter{}, deadletter.Letter{}
	}
	require.Equal(t, want, got)
	ids, err = s.AddArchived(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, ids)
}

func archivesOnce(t *testing.T, s Archived) {
	t.Helper()
	a, b, imported := archived(t, "a"), archived(t, "b"), archived(t, "c")
	imported.Disposition = deadletter.Imported
	first, err := s.AddArchived(t.Context(), []deadletter.ArchivedLetter{a, imported})
	require.NoError(t, err)
	again, err := s.AddArchived(t.Context(), []deadletter.ArchivedLetter{b, a, imported})
	require.NoError(t, err)
	require.Equal(t, first, again[1:])
	require.Len(t, archivedRows(t, s), 3)

	require.NoError(t, s.EndRestore(t.Context(), first))
	third, err := s.AddArchived(t.Context(), []deadletter.ArchivedLetter{a, imported})
	require.NoError(t, err)
	require.NotEqual(t, first[0], third[0], "it was back, and is archived once more")
	require.Equal(t, first[1], third[1], "it is imported once")
	require.Len(t, archivedRows(t, s), 4)
}

func restoresArchived(t *testing.T, s Archived) {
	t.Helper()
	ids, err := s.AddArchived(t.Context(), []deadletter.ArchivedLetter{archived(t, "a"), archived(t, "b"), archived(t, "c")})
	require.NoError(t, err)
	begun := time.Now().Add(-time.Minute)

	require.NoError(t, s.BeginRestore(t.Context(), ids[:2], "ben@day"))
	require.NoError(t, s.EndRestore(t.Context(), ids[1:2]))
	require.NoError(t, s.BeginRestore(t.Context(), ids[1:2], "too late"))

	rows := archivedRows(t, s)
	require.Len(t, rows, 3)
	require.True(t, rows[0].RestoreBegun.After(begun))
	require.True(t, rows[0].RestoredAt.IsZero())
	require.Equal(t, "ben@day", rows[0].RestoredBy)
	require.True(t, rows[1].RestoredAt.After(begun))
	require.Equal(t, "ben@day", rows[1].RestoredBy)
	require.True(t, rows[2].RestoreBegun.IsZero())
	require.Empty(t, rows[2].RestoredBy)
}

func unparksDiscarded(t *testing.T, s Archived) {
	t.Helper()
	stream := NewStream()
	first, second, third := stream.Next(), stream.Next(), stream.Next()
	require.NoError(t, s.Park(t.Context(), "welcome-patient", first))
	require.NoError(t, s.Park(t.Context(), "welcome-patient", second))
	put := func(id string, d deadletter.Disposition, body []byte) {
		a := archived(t, id)
		a.Disposition, a.Letter.Body = d, body
		a.Letter = deadletter.Complete(a.Letter)
		_, err := s.AddArchived(t.Context(), []deadletter.ArchivedLetter{a})
		require.NoError(t, err)
	}
	bodyOf := func(e interface{ MarshalJSON() ([]byte, error) }) []byte {
		body, err := e.MarshalJSON()
		require.NoError(t, err)
		return body
	}
	requireBehind := func(want ...string) {
		t.Helper()
		waits, err := s.Parked(t.Context(), third, []string{"welcome-patient"})
		require.NoError(t, err)
		var got []string
		for _, id := range waits {
			got = append(got, id.String())
		}
		require.Equal(t, want, got)
	}

	put("a", deadletter.Archived, bodyOf(first))
	requireBehind(first.ID.String())
	put("b", deadletter.Discarded, bodyOf(first))
	requireBehind(second.ID.String())
	put("c", deadletter.Discarded, bodyOf(second))
	requireBehind()
	put("d", deadletter.Discarded, []byte("no event"))
}

func keepsArchive(t *testing.T, s Archived) {
	t.Helper()
	_, err := s.AddArchived(t.Context(), []deadletter.ArchivedLetter{archived(t, "a")})
	require.NoError(t, err)
	for err == nil {
		err = s.MigrateDown(t.Context())
	}
	require.ErrorIs(t, err, store.ErrWouldLose)
	require.Len(t, archivedRows(t, s), 1)
}

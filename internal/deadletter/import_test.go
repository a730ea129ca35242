package deadletter_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/storetest"
)

// memoryFile is a file that keeps what was synced; its Sync fails if broken is set.
type memoryFile struct {
	bytes.Buffer

	broken error
}

func (f *memoryFile) Sync() error { return f.broken }

func exported(t *testing.T, table *deadletter.Table, f deadletter.Filter) string {
	t.Helper()
	var file memoryFile
	n, err := table.Export(t.Context(), f, &file, audit.Actor{})
	require.NoError(t, err)
	require.Equal(t, n, strings.Count(file.String(), "\n"))
	return file.String()
}

func imported(t *testing.T, table *deadletter.Table, file string, again bool) deadletter.ImportCounts {
	t.Helper()
	counts, err := table.Import(t.Context(), strings.NewReader(file), again, audit.Actor{})
	require.NoError(t, err)
	return counts
}

// wholes are all letters with their messages.
func wholes(t *testing.T, table *deadletter.Table, f deadletter.Filter) []deadletter.Letter {
	t.Helper()
	var letters []deadletter.Letter
	for l, err := range table.Read(t.Context(), f) {
		require.NoError(t, err)
		letters = append(letters, l)
	}
	return letters
}

// variety puts letters of every kind into the table.
func variety(t *testing.T, table *deadletter.Table) {
	t.Helper()
	a := letterOf(t, storetest.NewStream(), "h", "no 7")
	a.Raw = json.RawMessage(`{"message_id":"m","headers":["a","\u0000b","n",{"long":9007199254740993}]}`)
	b := letterOf(t, storetest.NewStream(), "ü", "\xff")
	b.LastFailed = b.LastFailed.Add(time.Microsecond)
	ingest(t, table, a, b, plain("\xff\x00"), plain(""), plain("twin"), plain("twin"))
	foreign := plain("of another program")
	foreign.ID = "17"
	ingest(t, table, foreign)
	ingest(t, table, failedAgain(find(t, table, b.Event.ID.String()), "01JZ0000000000000000000000", deadletter.ToHandler, "ü", "again"))
}

func TestExportAndImport(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		variety(t, table)
		want := wholes(t, table, deadletter.Filter{})
		file := exported(t, table, deadletter.Filter{})
		require.Len(t, want, 7)
		require.Equal(t, deadletter.ImportCounts{Lines: 7}, imported(t, table, file, false), "all are there")
		require.Equal(t, deadletter.ImportCounts{Lines: 7}, imported(t, table, file, true), "all wait")

		var removed memoryFile
		n, err := table.ExportAndRemove(t.Context(), deadletter.Filter{}, &removed, audit.Actor{})
		require.NoError(t, err)
		require.Equal(t, 7, n)
		require.Equal(t, file, removed.String())
		require.Empty(t, everything(t, table))
		require.Equal(t, deadletter.ImportCounts{Lines: 7, Imported: 7}, imported(t, table, strings.TrimSuffix(file, "\n"), false))
		require.Equal(t, deadletter.ImportCounts{Lines: 7}, imported(t, table, file, false), "twice adds nothing")
		got := wholes(t, table, deadletter.Filter{})
		require.Len(t, got, 7)
		for i := range want {
			if want[i].ID == "17" { // may be another letter's elsewhere
				want[i].ID = got[i].ID
			}
		}
		require.Equal(t, want, got)

		write(t, b, "UPDATE dead_letters SET state = 'archived', decided_by = 'ana', decided_at = last_failed_at")
		require.Equal(t, deadletter.ImportCounts{Lines: 7}, imported(t, table, file, false), "they are known")
		require.Equal(t, deadletter.ImportCounts{Lines: 7, Imported: 7}, imported(t, table, file, true))
		require.Len(t, all(t, table, deadletter.Filter{}), 7)
	})
}

// What was exported and edited afterwards comes back as the file has it.
func TestImportAgainOfALetterThatWasEdited(t *testing.T) {
	t.Parallel()
	for _, originalIsThere := range []bool{true, false} {
		t.Run(fmt.Sprint(originalIsThere), func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
				t.Helper()
				ingest(t, table, letterOf(t, storetest.NewStream(), "h", "r"))
				was := only(t, table)
				file := exported(t, table, deadletter.Filter{})
				done, err := table.Edit(t.Context(), was.ID, merge(`{"event_data":{"x":1}}`), audit.Actor{By: "ana"})
				require.NoError(t, err)
				require.NoError(t, table.Settled(t.Context(), was.ID, done.ReplayID, []string{"h"}, true))
				if !originalIsThere {
					write(t, b, "DELETE FROM dead_letters WHERE state = 'edited'")
				}

				require.Equal(t, deadletter.ImportCounts{Lines: 1, Imported: 1}, imported(t, table, file, true))

				waiting := wholes(t, table, deadletter.Filter{})
				require.Len(t, waiting, 1)
				require.Equal(t, was.Body, waiting[0].Body)
				require.Equal(t, was.Failure, waiting[0].Failure)
				require.Empty(t, waiting[0].History)
				require.Equal(t, "imported again", waiting[0].Decided.Reason)
			})
		})
	}
}

// A file of an earlier version names messages that are alike by one id.
func TestImportOfTwins(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		line, err := deadletter.Letter{ID: "a1b2c3", Body: []byte("x")}.Encode()
		require.NoError(t, err)
		file := string(line) + "\n" + string(line) + "\r\n"
		require.Equal(t, deadletter.ImportCounts{Lines: 2, Imported: 2}, imported(t, table, file, false))
		require.Equal(t, deadletter.ImportCounts{Lines: 2}, imported(t, table, file, false))
		require.Len(t, everything(t, table), 2)
	})
}

func TestImportRefusesBadLines(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		good, err := deadletter.Letter{ID: "1", Body: []byte("x")}.Encode()
		require.NoError(t, err)
		for name, bad := range map[string]string{
			"no JSON": "secret", "no letter": `["secret"]`, "no id": `{"body_base64":"c2VjcmV0"}`, "two": string(good) + string(good),
			"blank": "", "cut off": string(good[:len(good)-3]), "no base64": `{"id":"1","body_base64":"secret!"}`,
		} {
			counts, err := table.Import(t.Context(), strings.NewReader(string(good)+"\n"+bad+"\n"+string(good)+"\n"), false, audit.Actor{})
			var line *deadletter.LineError
			require.ErrorAs(t, err, &line, name)
			require.Equal(t, 2, line.Line)
			require.NotContains(t, err.Error(), "secret")
			require.Zero(t, counts)
			require.Empty(t, everything(t, table), name)
		}
		require.Equal(t, deadletter.ImportCounts{}, imported(t, table, "", false))
		raw := "{\"id\":\"2\",\"message\":{\"message_id\":\"\xff\"},\"reason\":\"a\\u0000\xff\",\"body_base64\":null}\n"
		require.Equal(t, deadletter.ImportCounts{Lines: 1, Imported: 1}, imported(t, table, raw, false))
	})
}

func TestImportOfManyAndOfLargeLetters(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, deadletter.PageRows+1)
		for i := range 3 {
			a := plain(fmt.Sprint(i) + string(make([]byte, store.PageBytes*2/3)))
			a.ID = fmt.Sprint("large", i)
			ingest(t, table, a)
		}
		var file memoryFile
		n, err := table.ExportAndRemove(t.Context(), deadletter.Filter{}, &file, audit.Actor{})
		require.NoError(t, err)
		require.Equal(t, deadletter.PageRows+4, n)
		require.Equal(t, deadletter.ImportCounts{Lines: n, Imported: n}, imported(t, table, file.String(), false))
		require.Len(t, all(t, table, deadletter.Filter{}), n)
	})
}

func TestExportAndRemoveKeepsWhatIsNotSafe(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 3)
		full := errors.New("the disk is full")
		n, err := table.ExportAndRemove(t.Context(), deadletter.Filter{}, &memoryFile{broken: full}, audit.Actor{})
		require.ErrorIs(t, err, full)
		require.Zero(t, n)
		require.Len(t, everything(t, table), 3)
		_, err = table.Export(t.Context(), deadletter.Filter{}, &memoryFile{broken: full}, audit.Actor{})
		require.ErrorIs(t, err, full)
	})
}

// blockedFile is a file whose Sync waits for resume.
type blockedFile struct {
	bytes.Buffer

	syncing, resume chan struct{}
}

func (f *blockedFile) Sync() error {
	f.syncing <- struct{}{}
	<-f.resume
	return nil
}

// exportBlocked begins an export whose file takes its time. The function that it returns lets it end.
func exportBlocked(t *testing.T, table *deadletter.Table) (file *blockedFile, end func() (int, error)) {
	t.Helper()
	file = &blockedFile{syncing: make(chan struct{}), resume: make(chan struct{})}
	var n int
	var err error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n, err = table.ExportAndRemove(t.Context(), deadletter.Filter{}, file, audit.Actor{})
	}()
	select {
	case <-file.syncing:
	case <-ended:
		require.Fail(t, "the export has ended", "%v", err)
	}
	return file, func() (int, error) {
		close(file.resume)
		<-ended
		return n, err
	}
}

func TestASlowExportBlocksNobody(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 3)
		tail, err := b.Tail(t.Context(), store.TailConfig{BatchSize: 1, Start: store.StartBeginning})
		require.NoError(t, err)
		defer func() { require.NoError(t, tail.Close()) }()
		file, end := exportBlocked(t, table)

		e := storetest.NewStream().Next()
		require.NoError(t, b.Append(t.Context(), e))
		require.Eventually(t, func() bool {
			batch, err := tail.Next(t.Context(), nil)
			return err == nil && strings.Contains(string(batch.Events), e.ID.String())
		}, patience, 10*time.Millisecond)
		var other memoryFile
		n, err := table.ExportAndRemove(t.Context(), deadletter.Filter{}, &other, audit.Actor{})
		require.ErrorIs(t, err, deadletter.ErrExporting)
		require.Zero(t, n+other.Len())
		changed := all(t, table, deadletter.Filter{})[1].ID
		n, err = table.PutAside(t.Context(), deadletter.Filter{IDs: []string{changed}}, deadletter.Archived, audit.Actor{By: "ana"})
		require.NoError(t, err)
		require.Equal(t, 1, n)
		n, err = table.Restore(t.Context(), deadletter.Filter{IDs: []string{changed}, States: []deadletter.State{deadletter.Archived}}, audit.Actor{By: "ana"})
		require.NoError(t, err)
		require.Equal(t, 1, n)

		n, err = end()
		require.NoError(t, err)
		require.Equal(t, 2, n)
		require.Equal(t, 3, strings.Count(file.String(), "\n"))
		require.Equal(t, changed, only(t, table).ID)
		n, err = table.ExportAndRemove(t.Context(), deadletter.Filter{}, &other, audit.Actor{})
		require.NoError(t, err)
		require.Equal(t, 1, n, "the lease was given back")
	})
}

func TestAnExportThatHasLostItsLeaseRemovesNothing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		many(t, table, 3)
		file, end := exportBlocked(t, table)
		write(t, b, "UPDATE leases SET expires_at = "+map[store.Dialect]string{
			store.SQLite: "0", store.Postgres: "'2000-01-01'",
		}[b.SQL().Dialect]+" WHERE task = 'export'")
		other, endOther := exportBlocked(t, table)

		n, err := end()
		require.ErrorContains(t, err, "another export --remove has begun")
		require.Zero(t, n)
		require.Equal(t, 3, strings.Count(file.String(), "\n"))
		require.Len(t, everything(t, table), 3)
		n, err = endOther()
		require.NoError(t, err)
		require.Equal(t, 3, n)
		require.Equal(t, file.String(), other.String())
	})
}

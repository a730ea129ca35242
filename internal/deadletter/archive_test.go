package deadletter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store/sqlite"
)

// desk is an archive over a shelf of a real store.
type desk struct {
	t     *testing.T
	store *sqlite.Store
	queue *deadletter.ShelfQueue
	*deadletter.Archive
}

func newDesk(t *testing.T, table func(*sqlite.Store) deadletter.ArchiveTable) *desk {
	t.Helper()
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "test.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	require.NoError(t, s.Migrate(t.Context()))
	q := deadletter.NewShelfQueue(s)
	d := &desk{t: t, store: s, queue: q}
	if table == nil {
		d.Archive = deadletter.NewShelfArchive(q, s)
	} else {
		d.Archive = deadletter.NewShelfArchive(q, table(s))
	}
	return d
}

// shelve puts n letters on the shelf, whose bodies are their numbers.
func (d *desk) shelve(n int) {
	d.t.Helper()
	for i := range n {
		_, err := d.store.AddLetter(d.t.Context(), deadletter.Letter{Body: fmt.Append(nil, i), Headers: map[string]any{}})
		require.NoError(d.t, err)
	}
}

func (d *desk) shelved() []string {
	d.t.Helper()
	var bodies []string
	for l, err := range d.queue.List(d.t.Context(), deadletter.Filter{}) {
		require.NoError(d.t, err)
		bodies = append(bodies, string(l.Body))
	}
	return bodies
}

func (d *desk) archived(f deadletter.ArchiveFilter) []deadletter.ArchivedLetter {
	d.t.Helper()
	var list []deadletter.ArchivedLetter
	for l, err := range d.List(d.t.Context(), f) {
		require.NoError(d.t, err)
		list = append(list, l)
	}
	return list
}

func decided() deadletter.Decision { return deadletter.Decision{By: "ana@night", Reason: "CLINIC-512"} }

// cutOff is a table that is cut off at each of its calls in turn, before or after it has worked.
type cutOff struct {
	deadletter.ArchiveTable

	after, calls int
}

var errCut = errors.New("cut off")

func (c *cutOff) do(work func() error) error {
	c.calls++
	if c.calls-1 == c.after/2 && c.after%2 == 0 {
		return errCut
	}
	err := work()
	if c.calls-1 == c.after/2 {
		return errCut
	}
	return err
}

func (c *cutOff) AddArchived(ctx context.Context, l []deadletter.ArchivedLetter) (ids []string, err error) {
	err = c.do(func() error { ids, err = c.ArchiveTable.AddArchived(ctx, l); return err })
	return ids, err
}

func (c *cutOff) BeginRestore(ctx context.Context, ids []string, by string) error {
	return c.do(func() error { return c.ArchiveTable.BeginRestore(ctx, ids, by) })
}

func (c *cutOff) EndRestore(ctx context.Context, ids []string) error {
	return c.do(func() error { return c.ArchiveTable.EndRestore(ctx, ids) })
}

// Whatever is cut off and done again, each letter is in one place, once, and in its order.
func TestArchiveLosesAndDoublesNothingWhenItIsCutOff(t *testing.T) {
	t.Parallel()
	const count = 110 // more than are moved at once
	var all []string
	for i := range count {
		all = append(all, fmt.Sprint(i))
	}
	for moment := range 12 {
		t.Run(fmt.Sprint("at moment ", moment), func(t *testing.T) {
			t.Parallel()
			var cut *cutOff
			d := newDesk(t, func(s *sqlite.Store) deadletter.ArchiveTable {
				cut = &cutOff{ArchiveTable: s, after: moment}
				return cut
			})
			d.shelve(count)
			until := func(do func() (int, error)) {
				t.Helper()
				_, err := do()
				for err != nil {
					require.ErrorIs(t, err, errCut)
					_, err = do()
				}
			}
			until(func() (int, error) { return d.Put(t.Context(), deadletter.Filter{}, deadletter.Archived, decided()) })
			require.Empty(t, d.shelved())
			require.Len(t, d.archived(deadletter.ArchiveFilter{All: true}), count)
			until(func() (int, error) { return d.Restore(t.Context(), deadletter.Filter{}, "ben") })
			require.Equal(t, all, d.shelved())
			require.Empty(t, d.archived(deadletter.ArchiveFilter{}))
			require.GreaterOrEqual(t, cut.calls, 6)
		})
	}
}

func TestImportIsCompletedWhenItWasCutOff(t *testing.T) {
	t.Parallel()
	source := newDesk(t, nil)
	source.shelve(110)
	var file syncedBuffer
	n, err := deadletter.Export(t.Context(), source.queue, deadletter.Filter{}, &file)
	require.NoError(t, err)
	require.Equal(t, 110, n)
	require.Equal(t, 1, file.syncs)
	for moment := range 12 {
		d := newDesk(t, func(s *sqlite.Store) deadletter.ArchiveTable { return &cutOff{ArchiveTable: s, after: moment} })
		read := func() (deadletter.ImportCounts, error) {
			return d.Import(t.Context(), bytes.NewReader(file.Bytes()), decided(), deadletter.ImportOnce)
		}
		_, err := read()
		require.ErrorIs(t, err, errCut, "at moment %d", moment)
		_, err = read()
		require.NoError(t, err)
		require.Equal(t, source.shelved(), d.shelved(), "at moment %d", moment)
		counts, err := read()
		require.NoError(t, err)
		require.Equal(t, deadletter.ImportCounts{Lines: 110}, counts)
	}
}

type syncedBuffer struct {
	bytes.Buffer

	syncs int
	err   error
}

func (b *syncedBuffer) Sync() error {
	b.syncs++
	return b.err
}

func TestExportAndRemoveKeepsWhatIsNotSafe(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	d.shelve(3)
	full := syncedBuffer{err: errors.New("no space")}
	n, err := deadletter.ExportAndRemove(t.Context(), d.queue, deadletter.Filter{}, &full)
	require.ErrorIs(t, err, full.err)
	require.Zero(t, n)
	require.Len(t, d.shelved(), 3)
	var file syncedBuffer
	n, err = deadletter.ExportAndRemove(t.Context(), d.queue, deadletter.Filter{Limit: 2}, &file)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.Equal(t, []string{"2"}, d.shelved())
	require.Equal(t, 2, strings.Count(file.String(), "\n"))
}

func TestImportRefusesBadLines(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	good := `{"id":"1","body_base64":""}` + "\n"
	for name, bad := range map[string]string{
		"no JSON": "{\n", "an empty line": "\n", "no id": "{}\n", "two values": `{"id":"1"}{"id":"2"}` + "\n", "an array": "[]",
		"a broker's": `{"id":"1","message":{},"body_base64":""}`, "half a body": `{"id":"1","body_base64":"Kova"`,
	} {
		_, err := d.Import(t.Context(), strings.NewReader(good+bad), decided(), deadletter.ImportOnce)
		var line *deadletter.LineError
		require.ErrorAs(t, err, &line, name)
		require.Equal(t, 2, line.Line, name)
		require.NotContains(t, err.Error(), "Kova")
		require.Empty(t, d.shelved(), name)
	}
	_, err := d.Import(t.Context(), strings.NewReader(good+strings.TrimSuffix(good, "\n")), decided(), deadletter.ImportOnce)
	require.NoError(t, err)
	require.Len(t, d.shelved(), 2, "twins of one file are two")
	_, err = d.Import(t.Context(), strings.NewReader(good), decided(), deadletter.ImportAnew)
	require.NoError(t, err)
	require.Len(t, d.shelved(), 3)
}

func TestRestoreTakesWhatIsHiddenByItsIDOnly(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	d.shelve(2)
	for _, disposition := range []deadletter.Disposition{deadletter.Discarded, deadletter.Archived} {
		n, err := d.Put(t.Context(), deadletter.Filter{Limit: 1}, disposition, decided())
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
	n, err := d.Restore(t.Context(), deadletter.Filter{}, "ben")
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Equal(t, []string{"1"}, d.shelved())
	n, err = d.Restore(t.Context(), deadletter.Filter{IDs: []string{"1"}}, "ben")
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Equal(t, []string{"1", "0"}, d.shelved())
	list := d.archived(deadletter.ArchiveFilter{All: true})
	require.Len(t, list, 2)
	for _, l := range list {
		require.Equal(t, "ben", l.RestoredBy)
		require.False(t, l.RestoredAt.IsZero())
		require.Equal(t, decided(), l.Decision)
	}
}

func TestEdit(t *testing.T) {
	t.Parallel()
	original := events.Event{
		ID: uuid.New(), Type: "PatientRegistered", AggregateType: "Patient", AggregateID: uuid.New(), AggregateVersion: 1,
		TenantID: uuid.New(), CorrelationID: uuid.New(), CreatedAt: failedAt(), Data: []byte(`{"name":"","n":9007199254740993}`),
	}
	body, err := original.MarshalJSON()
	require.NoError(t, err)
	id := uuid.New()
	withoutTenant := bytes.Replace(body, fmt.Appendf(nil, `"tenant_id":%q,`, original.TenantID), nil, 1)
	for name, test := range map[string]struct {
		body       []byte
		patch      string
		err, after string
	}{
		"merge patch":      {body, `{"event_data":{"name":"Ana"}}`, "", `{"n":9007199254740993,"name":"Ana"}`},
		"JSON patch":       {body, `[{"op":"replace","path":"/event_data/name","value":"Ana"}]`, "", `{"name":"Ana","n":9007199254740993}`},
		"what was missing": {withoutTenant, fmt.Sprintf(`{"tenant_id":%q}`, original.TenantID), "", string(original.Data)},
		"another tenant":   {body, fmt.Sprintf(`{"tenant_id":%q}`, uuid.New()), "tenant_id must stay", ""},
		"another event":    {body, fmt.Sprintf(`{"event_id":%q}`, id), "event_id must stay what it was", ""},
		"two fields":       {body, `{"event_type":"X","aggregate_version":2}`, "event_type must stay what it was; aggregate_version must", ""},
		"no event":         {body, `{"event_data":null,"created_at":"yesterday"}`, "created_at is not an RFC 3339 time", ""},
		"nothing":          {body, `{}`, "nothing was changed", ""},
		"no such path":     {body, `[{"op":"remove","path":"/event_data/Kova"}]`, "a path of the patch is not there", ""},
		"a failed test":    {body, `[{"op":"test","path":"/event_data/name","value":"Kova"}]`, "a test of the patch does not hold", ""},
		"no patch":         {body, `"Kova"`, "the body is a JSON string, not an object", ""},
		"no operations":    {body, `[1]`, "not a list of JSON Patch operations", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, nil)
			failure := deadletter.Failure{Handler: "welcome", Reason: "no name", Attempts: 2, FirstFailed: failedAt(), LastFailed: failedAt()}
			_, err := d.store.AddLetter(t.Context(), deadletter.Letter{Body: test.body, Headers: map[string]any{"k": "v"}, Failure: failure})
			require.NoError(t, err)
			before := d.shelved()

			done, err := d.Edit(t.Context(), original.ID.String(), func(body []byte, check func([]byte) error) ([]byte, error) {
				patched, err := deadletter.Patch(body, []byte(test.patch))
				if err == nil && test.err == "" {
					require.NoError(t, check(patched))
				}
				return patched, err
			}, decided())

			if test.err != "" {
				require.ErrorContains(t, err, test.err)
				require.NotContains(t, err.Error(), "Kova")
				require.Equal(t, before, d.shelved())
				require.Empty(t, d.archived(deadletter.ArchiveFilter{All: true}))
				return
			}
			require.NoError(t, err)
			requested, err := d.store.ReplayRequested(t.Context(), 10)
			require.NoError(t, err)
			require.Len(t, requested, 1)
			l := deadletter.Complete(requested[0].Letter)
			require.Equal(t, done.LetterID, l.ID)
			require.JSONEq(t, test.after, string(l.Event.Data))
			require.Contains(t, string(l.Event.Data), "9007199254740993")
			require.Equal(t, original.TenantID, l.Event.TenantID)
			require.Equal(t, failure, l.Failure)
			require.Equal(t, map[string]any{"k": "v"}, l.Headers)
			require.Len(t, l.History, 1)
			require.Equal(t, deadletter.Edited, l.History[0].Kind)
			require.Equal(t, "CLINIC-512 (original: archived letter "+done.OriginalID+")", l.History[0].Reason)
			require.Equal(t, bytes.Equal(test.body, body), original.Fingerprint() == l.Event.Fingerprint() && len(l.Event.Metadata) > 0)
			kept := d.archived(deadletter.ArchiveFilter{All: true})
			require.Len(t, kept, 1)
			require.Equal(t, string(test.body), string(kept[0].Letter.Body))
			require.Equal(t, deadletter.Superseded, kept[0].Disposition)
			require.Equal(t, done.OriginalID, kept[0].ID)
		})
	}
}

func TestEditNeedsOneLetter(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	body := fmt.Appendf(nil, `{"event_id":%q}`, uuid.NewString())
	for range 2 {
		_, err := d.store.AddLetter(t.Context(), deadletter.Letter{Body: body})
		require.NoError(t, err)
	}
	unused := func([]byte, func([]byte) error) ([]byte, error) {
		t.Error("it is not known what to edit")
		return nil, nil
	}
	_, err := d.Edit(t.Context(), events.ParsePartial(body).ID.String(), unused, decided())
	require.ErrorContains(t, err, "2 dead letters are of the event")
	_, err = d.Edit(t.Context(), "77", unused, decided())
	require.ErrorContains(t, err, `no dead letter has the id "77"`)
	_, err = d.Edit(t.Context(), "1", func([]byte, func([]byte) error) ([]byte, error) {
		_, err := d.Put(t.Context(), deadletter.Filter{IDs: []string{"1"}}, deadletter.Archived, decided())
		return []byte("{}"), err
	}, decided())
	require.Error(t, err)
}

func failedAt() time.Time { return time.Date(2025, 1, 2, 3, 4, 5, 678_000_000, time.UTC) }

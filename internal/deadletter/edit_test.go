package deadletter_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store/storetest"
)

// merge is a change by a merge patch.
func merge(patch string) func(body []byte, check func([]byte) error) ([]byte, error) {
	return func(body []byte, _ func([]byte) error) ([]byte, error) { return deadletter.Patch(body, []byte(patch)) }
}

func TestEdit(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		a := letterOf(t, storetest.NewStream(), "h", "no town")
		ingest(t, table, a)
		was := only(t, table)

		done, err := table.Edit(t.Context(), was.Event.ID.String(), merge(`{"event_data":{"name":"Eva"}}`), audit.Actor{By: "ana", Reason: "typo"})

		require.NoError(t, err)
		require.Equal(t, was.ID, done.LetterID)
		l := find(t, table, was.ID)
		require.Equal(t, deadletter.Replaying, l.State)
		require.JSONEq(t, `{"name":"Eva"}`, string(l.Event.Data))
		require.Equal(t, was.Event.Fingerprint(), l.Event.Fingerprint(), "it is the same event")
		require.Equal(t, was.Failure, l.Failure)
		require.Equal(t, was.Headers, l.Headers)
		require.Equal(t, len(l.Body), l.Bytes)
		require.Len(t, l.History, 1)
		require.Equal(t, deadletter.Edited, l.History[0].Kind)
		require.Equal(t, "ana", l.History[0].By)
		require.Contains(t, l.History[0].Reason, done.OriginalID)
		original := find(t, table, done.OriginalID)
		require.Equal(t, deadletter.Superseded, original.State)
		require.Equal(t, was.Body, original.Body)
		require.Equal(t, "typo", original.Decided.Reason)

		ingest(t, table, a)
		require.Len(t, everything(t, table), 2, "the original's ack was lost")
		require.Equal(t, deadletter.Superseded, find(t, table, done.OriginalID).State)

		_, err = table.Edit(t.Context(), was.ID, merge(`{"event_data":{"name":"Ina"}}`), audit.Actor{})
		require.ErrorContains(t, err, "is replaying: only one that is waiting can be edited")
		ingest(t, table, failedAgain(l, done.ReplayID, deadletter.ToHandler, "h", "no street"))
		l = find(t, table, was.ID)
		require.Equal(t, deadletter.Waiting, l.State)
		require.Equal(t, []deadletter.IncidentKind{deadletter.Failed, deadletter.Edited, deadletter.Replayed},
			[]deadletter.IncidentKind{l.History[0].Kind, l.History[1].Kind, l.History[2].Kind})
	})
}

// The body may go to and fro between two values.
func TestEditBackToAnEarlierBody(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		ingest(t, table, letterOf(t, storetest.NewStream(), "h", "r"))
		id := only(t, table).ID
		for _, name := range []string{"Eva", "Ina", "Eva", "Ina", "Ana"} {
			done, err := table.Edit(t.Context(), id, merge(`{"event_data":{"name":"`+name+`"}}`), audit.Actor{By: "ana"})
			require.NoError(t, err)
			l := find(t, table, id)
			require.JSONEq(t, `{"name":"`+name+`"}`, string(l.Event.Data))
			ingest(t, table, failedAgain(l, done.ReplayID, deadletter.ToHandler, "h", "no "+name))
			require.Equal(t, deadletter.Waiting, find(t, table, id).State)
		}
		require.Len(t, everything(t, table), 6)
	})
}

func TestEditThatIsRefused(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		ingest(t, table, letterOf(t, storetest.NewStream(), "h", "r"))
		was := only(t, table)
		edit := func(change func([]byte, func([]byte) error) ([]byte, error)) error {
			_, err := table.Edit(t.Context(), was.ID, change, audit.Actor{By: "ana"})
			return err
		}
		require.ErrorIs(t, edit(merge(`{}`)), deadletter.ErrUnchanged)
		var invalid *events.InvalidError
		require.ErrorAs(t, edit(merge(`{"event_type":"Other"}`)), &invalid)
		require.ErrorAs(t, edit(merge(`{"event_data":null}`)), &invalid)
		require.ErrorAs(t, edit(func(body []byte, check func([]byte) error) ([]byte, error) { return nil, check([]byte("x")) }), &invalid)
		for name, change := range map[string]string{
			"failed anew":    "UPDATE dead_letters SET last_failed_at = first_failed_at, first_failed_at = last_failed_at, state = 'archived'",
			"other body":     "UPDATE dead_letters SET body = CAST('x' AS " + map[bool]string{true: "BLOB", false: "bytea"}[b.SQL().Dialect == "sqlite"] + ")",
			"renamed":        "UPDATE dead_letters SET handler = 'new'",
			"gone":           "DELETE FROM dead_letters",
			"being replayed": "UPDATE dead_letters SET state = 'replaying'",
		} {
			write(t, b, "DELETE FROM dead_letters")
			a := letterOf(t, storetest.NewStream(), "h", "r")
			ingest(t, table, a)
			was = only(t, table)
			err := edit(func(body []byte, check func([]byte) error) ([]byte, error) {
				write(t, b, change)
				return merge(`{"event_data":{"x":1}}`)(body, check)
			})
			require.ErrorContains(t, err, "has changed meanwhile", name)
		}
		_, err := table.Edit(t.Context(), "unknown", merge(`{}`), audit.Actor{})
		require.ErrorIs(t, err, deadletter.ErrNotFound)
	})
}

// What is no event, as a field is missing, becomes one.
func TestEditOfWhatIsNoEvent(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		e := storetest.NewStream().Next()
		full, err := e.MarshalJSON()
		require.NoError(t, err)
		cut, err := deadletter.Patch(full, []byte(`{"tenant_id":null}`))
		require.NoError(t, err)
		a := plain(string(cut))
		ingest(t, table, a)
		was := only(t, table)
		_, err = table.Edit(t.Context(), was.ID, merge(`{"tenant_id":"`+e.TenantID.String()+`"}`), audit.Actor{By: "ana"})
		require.NoError(t, err)
		l := find(t, table, was.ID)
		require.Equal(t, e.TenantID, l.Event.TenantID)
		require.JSONEq(t, string(full), string(l.Body))
		require.Equal(t, was.Raw, l.Raw)
		require.Equal(t, map[string]any{"a": "b"}, l.Headers)
		require.WithinDuration(t, time.Now(), l.History[0].At, time.Minute)
	})
}

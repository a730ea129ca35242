package deadletter_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/intake"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/storetest"
)

// entries are the recorded actions, the oldest first, without ids and times.
func entries(t *testing.T, b backend, f audit.Filter) []audit.Entry {
	t.Helper()
	found, err := audit.NewLog(b.SQL()).List(t.Context(), f, 100)
	require.NoError(t, err)
	list := make([]audit.Entry, len(found))
	for i, e := range found {
		require.WithinDuration(t, time.Now(), e.At, time.Hour)
		e.ID, e.At = 0, time.Time{}
		list[len(found)-1-i] = e
	}
	return list
}

func TestActionsAreRecorded(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		ctx, s := t.Context(), storetest.NewStream()
		arrivals := []deadletter.Arrival{
			letterOf(t, s, "welcome", "no answer to Ana Souza"), letterOf(t, s, "welcome", "other"), letterOf(t, s, "bill", "x"),
		}
		err := table.Ingest(ctx, arrivals)
		require.NoError(t, err)
		letters := all(t, table, deadletter.Filter{})
		tenant := letters[0].Event.TenantID
		ana := audit.Actor{By: "ana", Source: "command line, ana@host", Reason: "CLINIC-1\x00"}
		recorded := audit.Actor{By: "ana", Source: "command line, ana@host", Reason: "CLINIC-1\ufffd"}

		_, err = table.PutAside(ctx, deadletter.Filter{Tenant: tenant, Contains: "Ana Souza"}, deadletter.Archived, ana)
		require.NoError(t, err)
		_, err = table.PutAside(ctx, deadletter.Filter{Handler: "nobody"}, deadletter.Discarded, ana)
		require.NoError(t, err)
		_, err = table.PutAside(ctx, deadletter.Filter{Handler: "welcome"}, deadletter.Discarded, ana)
		require.NoError(t, err)
		_, err = table.Restore(ctx, deadletter.Filter{States: []deadletter.State{deadletter.Discarded}}, ana)
		require.NoError(t, err)
		edited, err := table.Edit(ctx, letters[2].ID, merge(`{"event_data":{"x":1}}`), ana)
		require.NoError(t, err)
		var file memoryFile
		_, err = table.ExportAndRemove(ctx, deadletter.Filter{}, &file, ana)
		require.NoError(t, err)
		_, err = table.Import(ctx, strings.NewReader(file.String()), false, ana)
		require.NoError(t, err)
		replayed := ""
		for p, err := range table.Replay(ctx, deadletter.Filter{}, deadletter.ReplayOptions{By: ana, MaxFailures: -1, Patience: time.Millisecond}) {
			replayed = p.ReplayID
			if err != nil {
				require.ErrorIs(t, err, deadletter.ErrNoOutcome, "no worker publishes")
			}
		}
		_, err = table.PurgeDecided(ctx, time.Now().Add(time.Hour), 10, &ana)
		require.NoError(t, err)
		_, err = table.PurgeDecided(ctx, time.Now().Add(time.Hour), 10, nil)
		require.NoError(t, err)

		want := []audit.Entry{
			recorded.Did(audit.Archive, audit.Subject{"tenant": tenant.String(), "failure": "(not recorded)", "states": []any{"waiting"}}, 1),
			recorded.Did(audit.Discard, audit.Subject{"handler": "welcome", "states": []any{"waiting"}}, 1),
			recorded.Did(audit.Restore, audit.Subject{"all": true, "states": []any{"discarded"}}, 1),
			recorded.Did(audit.Edit, audit.Subject{"ids": []any{letters[2].ID}, "original": edited.OriginalID, "replay": edited.ReplayID}, 1),
			recorded.Did(audit.Export, audit.Subject{"all": true}, 0),
			recorded.Did(audit.Purge, audit.Subject{"all": true, "after": "export"}, 1),
			recorded.Did(audit.Import, audit.Subject{"again": false}, 1),
			recorded.Did(audit.Replay, audit.Subject{"all": true, "replay": replayed, "to": "handler"}, 1),
		}
		got := entries(t, b, audit.Filter{})
		require.Equal(t, want, got[:len(want)])
		require.Len(t, got, len(want)+1, "the worker's own retention is not recorded")
		require.Equal(t, audit.Purge, got[len(want)].Action)
		for _, e := range got {
			require.NotContains(t, e.Subject.String(), "Souza")
		}
		require.Len(t, entries(t, b, audit.Filter{By: "ana", Actions: []audit.Action{audit.Purge, audit.Export}, Since: time.Now().Add(-time.Hour)}), 3)
		require.Empty(t, entries(t, b, audit.Filter{By: "an"}))
		require.Empty(t, entries(t, b, audit.Filter{Until: time.Now().Add(-time.Hour)}))
		newest, err := audit.NewLog(b.SQL()).List(ctx, audit.Filter{}, 1)
		require.NoError(t, err)
		require.Len(t, entries(t, b, audit.Filter{Before: newest[0].ID}), len(want))
	})
}

func TestNothingIsDoneThatCannotBeRecorded(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		ctx, s := t.Context(), storetest.NewStream()
		err := table.Ingest(ctx, []deadletter.Arrival{letterOf(t, s, "welcome", "x")})
		require.NoError(t, err)
		l := all(t, table, deadletter.Filter{})[0]
		write(t, b, "ALTER TABLE worker_audit RENAME TO elsewhere")
		var file memoryFile
		for name, do := range map[string]func() error{
			"archive": func() error {
				_, err := table.PutAside(ctx, deadletter.Filter{}, deadletter.Archived, audit.Actor{})
				return err
			},
			"edit": func() error {
				_, err := table.Edit(ctx, l.ID, merge(`{"event_data":{"x":1}}`), audit.Actor{})
				return err
			},
			"purge":  func() error { _, err := table.PurgeWaiting(ctx, audit.Actor{}); return err },
			"export": func() error { _, err := table.Export(ctx, deadletter.Filter{}, &file, audit.Actor{}); return err },
			"replay": func() error {
				for _, err := range table.Replay(ctx, deadletter.Filter{}, deadletter.ReplayOptions{}) {
					if err != nil {
						return err
					}
				}
				return nil
			},
			"append": func() error {
				return intake.Audited(b, audit.Actor{}).AppendMany(ctx, []events.Event{s.Next()})
			},
		} {
			require.Error(t, do(), name)
		}
		require.Empty(t, file.String())
		now := all(t, table, deadletter.Filter{})
		require.Len(t, now, 1)
		require.Equal(t, l, now[0])
		found, err := b.Search(ctx, store.Search{}, store.Query{Limit: 1})
		require.NoError(t, err)
		require.Empty(t, found.Events)
	})
}

func TestAppendedEventsAreRecorded(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, _ *deadletter.Table) {
		t.Helper()
		ctx, s := t.Context(), storetest.NewStream()
		ben := audit.Actor{By: "ben", Source: "console, 127.0.0.1"}
		into := intake.Audited(b, ben)
		first := s.Next()
		require.NoError(t, into.AppendMany(ctx, []events.Event{first}))
		several := []events.Event{s.Next(), s.Next(), s.Next()}
		require.NoError(t, into.AppendMany(ctx, several))
		taken := several[2]
		taken.ID = uuid.New()
		require.ErrorIs(t, into.AppendMany(ctx, []events.Event{taken}), events.ErrConflict)
		require.Equal(t, []audit.Entry{
			ben.Did(audit.Append, audit.Subject{"event_id": first.ID.String(), "type": first.Type}, 1),
			ben.Did(audit.Append, audit.Subject{"first_event_id": several[0].ID.String(), "last_event_id": several[2].ID.String()}, 3),
		}, entries(t, b, audit.Filter{}))
		version, err := b.Version(ctx, first.AggregateType, first.AggregateID)
		require.NoError(t, err)
		require.Equal(t, 4, version)
	})
}

func TestAuditLogIsAppendOnly(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, _ *deadletter.Table) {
		t.Helper()
		ids := make([]string, 150)
		for i := range ids {
			ids[i] = uuid.NewString()
		}
		require.NoError(t, audit.NewLog(b.SQL()).Record(t.Context(), audit.Actor{By: "ana"}.Did(audit.Reveal, audit.Subject{}.WithList("event_ids", ids), len(ids))))
		was := entries(t, b, audit.Filter{})
		require.Len(t, was[0].Subject["event_ids"], 100)
		require.InDelta(t, 50, was[0].Subject["more_event_ids"], 0)
		statements := []string{"UPDATE worker_audit SET done_by = 'ben'", "DELETE FROM worker_audit"}
		if b.SQL().Dialect == store.SQLite {
			statements = append(statements, "INSERT OR REPLACE INTO worker_audit (id, action, done_by, source, subject, reason) VALUES (1, '', '', '', '{}', '')")
		} else {
			statements = append(statements, "TRUNCATE worker_audit")
		}
		for _, statement := range statements {
			require.ErrorContains(t, change(t, b, statement), "refuse", statement)
		}
		require.Equal(t, was, entries(t, b, audit.Filter{}))
	})
}

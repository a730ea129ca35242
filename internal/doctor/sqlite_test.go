package doctor_test

import (
	"bytes"
	"database/sql"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/healz/worker/internal/doctor"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/worker"
)

func TestFile(t *testing.T) {
	t.Parallel()
	type fault struct {
		make  func(t *testing.T, s *worker.Settings)
		check string
		want  doctor.Status
		says  []string
	}
	statement := func(text string, args ...any) func(*testing.T, *worker.Settings) {
		return func(t *testing.T, s *worker.Settings) {
			t.Helper()
			db, err := sql.Open("sqlite", s.SQLitePath)
			require.NoError(t, err)
			_, err = db.ExecContext(t.Context(), text, args...)
			require.NoError(t, err)
			require.NoError(t, db.Close())
		}
	}
	hourAgo := time.Now().Add(-time.Hour)
	for name, f := range map[string]fault{
		"none": {func(*testing.T, *worker.Settings) {}, "sqlite", doctor.OK, []string{"KiB"}},
		"no file": {func(t *testing.T, s *worker.Settings) {
			t.Helper()
			s.SQLitePath = filepath.Join(t.TempDir(), "nowhere", "events.db")
		}, "sqlite", doctor.Wrong, []string{"no file", "--sqlite-path"}},
		"a folder": {
			func(_ *testing.T, s *worker.Settings) { s.SQLitePath = filepath.Dir(s.SQLitePath) },
			"sqlite", doctor.Wrong,
			[]string{"not a regular file"},
		},
		"another file": {func(t *testing.T, s *worker.Settings) {
			t.Helper()
			s.SQLitePath = filepath.Join(t.TempDir(), "garbage.db")
			require.NoError(t, os.WriteFile(s.SQLitePath, bytes.Repeat([]byte("garbage"), 1000), 0o600))
		}, "sqlite", doctor.Wrong, []string{"not an SQLite database"}},
		"open to others": {func(t *testing.T, s *worker.Settings) {
			t.Helper()
			require.NoError(t, os.Chmod(s.SQLitePath, 0o644))
		}, "sqlite", doctor.Warning, []string{"other than the owner", "chmod 600"}},
		"no write-ahead log": {statement("PRAGMA journal_mode = delete"), "sqlite", doctor.Warning, []string{"no write-ahead log"}},
		"an old schema": {func(t *testing.T, s *worker.Settings) {
			t.Helper()
			require.NoError(t, migrated(t, *s).MigrateDown(t.Context()))
		}, "schema", doctor.Wrong, []string{"this worker needs", "worker migrate up"}},
		"a newer schema": {
			statement("INSERT INTO worker_migrations (version_id, is_applied) VALUES (999, true)"),
			"schema", doctor.OK,
			[]string{"the schema is newer (version 999) than this program (", "), and compatible"},
		},
		"a newer schema that breaks older programs": {
			statement("INSERT INTO worker_migrations (version_id, is_applied) VALUES (999, true); PRAGMA user_version = 998"),
			"schema", doctor.Wrong,
			[]string{"version 999", "cannot work with version 998", "newer worker"},
		},
		"no schema": {func(t *testing.T, s *worker.Settings) {
			t.Helper()
			s.SQLitePath = filepath.Join(t.TempDir(), "new.db")
			statement("CREATE TABLE others (id integer)")(t, s)
		}, "schema", doctor.Wrong, []string{"no schema", "worker migrate up"}},
		"a table of another program": {func(t *testing.T, s *worker.Settings) {
			t.Helper()
			s.SQLitePath = filepath.Join(t.TempDir(), "other.db")
			statement("CREATE TABLE events (at text)")(t, s)
		}, "schema", doctor.Wrong, []string{"a table events that is not the contract's: another program has made it", "correct --sqlite-path"}},
		"intact": {func(*testing.T, *worker.Settings) {}, "integrity", doctor.OK, []string{"no fault"}},
		"a corrupt page": {func(t *testing.T, s *worker.Settings) {
			t.Helper()
			statement("PRAGMA wal_checkpoint(TRUNCATE)")(t, s)
			file, err := os.OpenFile(s.SQLitePath, os.O_RDWR, 0)
			require.NoError(t, err)
			_, err = file.WriteAt(bytes.Repeat([]byte{0xff}, 4096), 3*4096)
			require.NoError(t, err)
			require.NoError(t, file.Close())
		}, "integrity", doctor.Wrong, []string{"the file is corrupt", "restore a backup"}},
		"no trigger": {
			statement("DROP TRIGGER events_no_delete"), "append-only", doctor.Wrong, []string{"can be changed", "events_no_delete"},
		},
		"no relay yet": {
			func(*testing.T, *worker.Settings) {}, "relay", doctor.Warning, []string{"no relay has started", "worker run"},
		},
		"a relay without its position": {
			statement("INSERT INTO leases VALUES ('relay', '', 1, 0)"),
			"relay", doctor.Wrong,
			[]string{"the row of relay_position is missing"},
		},
		"a relay that rests": {func(t *testing.T, s *worker.Settings) {
			t.Helper()
			b := migrated(t, *s)
			tail, err := b.Tail(t.Context(), store.TailConfig{BatchSize: 1})
			require.NoError(t, err)
			require.NoError(t, tail.Close())
			require.NoError(t, b.Append(t.Context(), event(time.Now().Add(-time.Hour))))
		}, "relay", doctor.Wrong, []string{"1 event not published", "1h0m", "and the relay makes no progress"}},
		"others' events, of which the relay knows nothing": {func(t *testing.T, s *worker.Settings) {
			t.Helper()
			s.Relay.OnlyOwn = true
			tail, err := migrated(t, *s).Tail(t.Context(), store.TailConfig{BatchSize: 1})
			require.NoError(t, err)
			require.NoError(t, tail.Close())
		}, "relay", doctor.OK, []string{"all committed events"}},
		"dead letters": {func(t *testing.T, s *worker.Settings) {
			t.Helper()
			addLetters(t, migrated(t, *s))
		}, "dead letters", doctor.Warning, []string{"1 dead letter", "worker dlq list"}},
		"an inbox that nobody prunes": {func(t *testing.T, s *worker.Settings) {
			t.Helper()
			require.NoError(t, migrated(t, *s).Record(t.Context(), "handler", event(hourAgo), nil))
			statement("UPDATE handled SET handled_at = ?", time.Now().Add(-40*24*time.Hour).UnixMicro())(t, s)
		}, "inbox", doctor.Warning, []string{"beyond the retention", "prunes"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := onFile(t)
			b, err := s.OpenStore(t.Context())
			require.NoError(t, err)
			require.NoError(t, b.Migrate(t.Context()))
			require.NoError(t, b.Close())
			f.make(t, &s)
			found := examine(t, s)
			found.requireFinding(t, f.check, f.want, f.says...)
			if name == "no file" {
				require.NoDirExists(t, filepath.Dir(s.SQLitePath), "it makes nothing")
			}
		})
	}
}

// A large file is not checked to its end.
func TestIntegrityIsCheckedForABoundedTime(t *testing.T) {
	t.Parallel()
	s := onFile(t)
	migrated(t, s)
	for _, c := range doctor.Checks(s, 1) {
		if c.Name == "integrity" {
			c.Needs = ""
			found := examined(slices.Collect(doctor.Examine(t.Context(), []doctor.Check{c}, time.Nanosecond)))
			found.requireFinding(t, "integrity", doctor.Unknown, "not checked to its end", "quick_check")
			return
		}
	}
	require.Fail(t, "no check integrity")
}

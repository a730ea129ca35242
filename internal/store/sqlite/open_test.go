package sqlite

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/storetest"
	"github.com/healz/worker/internal/test/posix"
)

func TestOpenTakesAnyPath(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"plain.db", "with space.db", "what?.db", "a#b.db", "100%.db", "%41.db", "a&mode=ro.db", "é😀.db", "a;b:c.db", `a"b'c.db`,
		"file:x.db", ":memory:", "no/such/folder/yet.db",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), name)
			s := opened(t, path)
			stream := storetest.NewStream()
			require.NoError(t, s.Append(t.Context(), stream.Next()))
			require.FileExists(t, path)

			version, err := opened(t, path).Version(t.Context(), stream.AggregateType, stream.AggregateID)
			require.NoError(t, err)
			require.Equal(t, 1, version)
		})
	}
}

func TestOpenTakesARelativePath(t *testing.T) {
	folder := t.TempDir()
	t.Chdir(folder)
	s := opened(t, filepath.Join("data", "events.db"))
	t.Chdir(t.TempDir())
	require.NoError(t, s.Append(t.Context(), storetest.NewStream().Next()))
	require.FileExists(t, filepath.Join(folder, "data", "events.db"))
}

// One file has one leader, whatever name it is opened by, and also without its lock file.
func TestOneFileHasOneLeader(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path := filepath.Join(folder, "events.db")
	link := filepath.Join(folder, "link.db")
	toFolder := filepath.Join(folder, "folder")
	require.NoError(t, os.Symlink("events.db", link)) // before there is a file
	require.NoError(t, os.Symlink(folder, toFolder))
	lease := func(path, holder string) error {
		t.Helper()
		tail, err := opened(t, path).Tail(t.Context(), store.TailConfig{BatchSize: 1})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, tail.Close()) })
		_, err = tail.TakeLease(t.Context(), store.RelayTask, holder, time.Minute)
		return err
	}
	require.NoError(t, lease(link, "first"))
	require.ErrorIs(t, lease(path, "second"), store.ErrNotLeader)
	require.ErrorIs(t, lease(filepath.Join(toFolder, "link.db"), "third"), store.ErrNotLeader)
	locks, err := filepath.Glob(filepath.Join(folder, "*"+setupLockSuffix))
	require.NoError(t, err)
	require.Len(t, locks, 1)
	require.Equal(t, path+setupLockSuffix, locks[0])
	require.NoError(t, os.Remove(locks[0]))
	require.ErrorIs(t, lease(path, "fourth"), store.ErrNotLeader)

	volume := t.TempDir() // a link to a file beside a folder that is a link: ".." is a folder of the volume
	require.NoError(t, os.MkdirAll(filepath.Join(volume, "v1", "app"), 0o700))
	current := filepath.Join(folder, "current")
	require.NoError(t, os.Symlink(filepath.Join(volume, "v1", "app"), current))
	require.NoError(t, os.Symlink(filepath.Join("..", "real", "events.db"), filepath.Join(current, "events.db")))
	real := filepath.Join(volume, "v1", "real", "events.db")
	require.NoError(t, lease(filepath.Join(current, "events.db"), "first"))
	require.FileExists(t, real)
	require.NoDirExists(t, filepath.Join(folder, "real"))
	for _, name := range []string{real, current + "/../real/events.db"} {
		require.ErrorIs(t, lease(name, "second"), store.ErrNotLeader)
	}

	second := filepath.Join(folder, "second.db")
	require.NoError(t, os.Link(path, second))
	for _, name := range []string{second, path, link} {
		_, err = Open(t.Context(), name)
		require.ErrorContains(t, err, "the file has 2 names (hard links)")
	}
}

func TestOpenMakesFilesForTheirOwnerAlone(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "data", "clinic")
	s := opened(t, filepath.Join(folder, "events.db"))
	storetest.Subscribe(t, s, store.TailConfig{BatchSize: 1})
	require.NoError(t, s.Append(t.Context(), storetest.NewStream().Next()))

	for _, made := range []string{filepath.Dir(folder), folder} {
		requireMode(t, fs.ModeDir|0o700, made)
	}
	entries, err := os.ReadDir(folder)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		requireMode(t, 0o600, filepath.Join(folder, e.Name()))
	}
	require.Equal(t, []string{
		"events.db", "events.db-setup.lock", "events.db-shm", "events.db-wal",
	}, names)
}

func requireMode(t *testing.T, want fs.FileMode, path string) {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, want.String(), info.Mode().String(), path)
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	text := filepath.Join(folder, "text")
	require.NoError(t, os.WriteFile(text, []byte(strings.Repeat("no database\n", 1000)), 0o600))
	short := filepath.Join(folder, "short")
	require.NoError(t, os.WriteFile(short, []byte("no database"), 0o600))
	for name, test := range map[string]struct{ path, message string }{
		"no path":              {"", "the path is empty"},
		"a folder":             {folder, "it is not a regular file"},
		"a device":             {os.DevNull, "it is not a regular file"},
		"a text":               {text, "it is not an SQLite database"},
		"a short text":         {short, "it is not an SQLite database"},
		"a file for a folder":  {filepath.Join(text, "events.db"), "not a directory"},
		"a path with NUL":      {filepath.Join(folder, "a\x00b"), "invalid argument"},
		"too long for a name ": {filepath.Join(folder, strings.Repeat("x", 300)), "file name too long"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Open(t.Context(), test.path)
			require.ErrorContains(t, err, test.message)
			require.NotErrorIs(t, err, store.ErrUnavailable)
		})
	}
}

// TestOpenReadOnly runs as a user whom permissions bind, which the super-user is not.
func TestOpenReadOnly(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		folder, file fs.FileMode
		message      string
	}{
		"file":   {0o777, 0o444, "the file is read-only"},
		"folder": {0o555, 0o666, "permission denied"},
		"hidden": {0o777, 0o000, "unable to open database file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder, err := os.MkdirTemp("", "readonly") //nolint:usetesting // t.TempDir's parent keeps other users out
			require.NoError(t, err)
			t.Cleanup(func() {
				require.NoError(t, os.Chmod(folder, 0o700))
				require.NoError(t, os.RemoveAll(folder))
			})
			path := filepath.Join(folder, "events.db")
			require.NoError(t, migrated(t, path).Close())
			require.NoError(t, os.Remove(path+setupLockSuffix))
			require.NoError(t, os.Chmod(path, test.file))
			require.NoError(t, os.Chmod(folder, test.folder))

			out, err := asOrdinaryUser(t, "open", path).CombinedOutput()

			require.NoError(t, err, string(out))
			require.Contains(t, string(out), test.message)
			require.Contains(t, string(out), store.ErrUnavailable.Error())
		})
	}
}

// asOrdinaryUser is the command of a child process (see TestMain) without the super-user's rights.
func asOrdinaryUser(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	c := child(t, args...)
	if os.Geteuid() != 0 {
		return c
	}
	const nobody = 65534
	program, err := os.MkdirTemp("", "program") //nolint:usetesting // t.TempDir's parent keeps other users out
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(program)) })
	require.NoError(t, os.Chmod(program, 0o755))
	binary, err := os.ReadFile(c.Path)
	require.NoError(t, err)
	c.Path = filepath.Join(program, "test")
	require.NoError(t, os.WriteFile(c.Path, binary, 0o755))
	c.Dir = program
	c.SysProcAttr = posix.As(nobody, nobody)
	return c
}

func TestOpenAndMigrateAtOnce(t *testing.T) {
	t.Parallel()
	const count = 8
	for range 5 {
		path := newPath(t)
		results := make([]error, count)
		var done sync.WaitGroup
		for i := range count {
			done.Go(func() {
				s, err := Open(t.Context(), path)
				if err == nil {
					err = s.Migrate(t.Context())
				}
				if err == nil {
					err = s.Append(t.Context(), storetest.NewStream().Next())
				}
				if err == nil {
					err = s.Close()
				}
				results[i] = err
			})
		}
		done.Wait()
		for _, err := range results {
			require.NoError(t, err)
		}
		requireIntact(t, path, count)
	}
}

// requireIntact checks the file, and that it holds so many events.
func requireIntact(t *testing.T, path string, count int) {
	t.Helper()
	db := rawDB(t, path)
	var verdict string
	require.NoError(t, db.QueryRowContext(t.Context(), "PRAGMA integrity_check").Scan(&verdict))
	require.Equal(t, "ok", verdict)
	var found int
	require.NoError(t, db.QueryRowContext(t.Context(), "SELECT count(*) FROM events").Scan(&found))
	require.Equal(t, count, found)
}

func TestOpenRestoresTheLog(t *testing.T) {
	t.Parallel()
	source, copied := newPath(t), newPath(t)
	s := opened(t, source)
	stream := storetest.NewStream()
	require.NoError(t, s.AppendMany(t.Context(), stream.Take(3)))
	_, err := rawDB(t, source).ExecContext(t.Context(), "VACUUM INTO ?", copied)
	require.NoError(t, err)

	restored := opened(t, copied)
	require.NoError(t, restored.Append(t.Context(), stream.Next()))

	var mode string
	require.NoError(t, rawDB(t, copied).QueryRowContext(t.Context(), "PRAGMA journal_mode").Scan(&mode))
	require.Equal(t, walMode, mode)
	requireIntact(t, copied, 4)
}

func TestFaultsThatPass(t *testing.T) {
	t.Parallel()
	t.Run("another holds the lock", func(t *testing.T) {
		t.Parallel()
		path := newPath(t)
		opened(t, path)
		s, err := open(t.Context(), path, 50*time.Millisecond)
		require.NoError(t, err)
		defer func() { require.NoError(t, s.Close()) }()
		foreign, err := rawDB(t, path).BeginTx(t.Context(), nil)
		require.NoError(t, err)
		stream := storetest.NewStream()
		e := stream.Next()

		require.ErrorIs(t, s.Append(t.Context(), e), store.ErrUnavailable)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, s.Append(ctx, e), context.DeadlineExceeded)
		_, err = s.ByTenant(t.Context(), stream.TenantID, store.Query{})
		require.NoError(t, err, "readers do not wait")

		require.NoError(t, foreign.Rollback())
		require.NoError(t, s.Append(t.Context(), e))
	})
	t.Run("the disk is full", func(t *testing.T) {
		t.Parallel()
		path := newPath(t)
		s := opened(t, path)
		stream := storetest.NewStream()
		_, err := s.writer.ExecContext(t.Context(), "PRAGMA max_page_count = 30")
		require.NoError(t, err)

		err = s.AppendMany(t.Context(), stream.Take(1000))
		require.ErrorIs(t, err, store.ErrUnavailable)
		var blamed *store.EventError
		require.NotErrorAs(t, err, &blamed)

		_, err = s.writer.ExecContext(t.Context(), "PRAGMA max_page_count = 1000000")
		require.NoError(t, err)
		require.NoError(t, s.Append(t.Context(), stream.At(1)))
	})
	t.Run("a canceled batch", func(t *testing.T) {
		t.Parallel()
		path := newPath(t)
		s := opened(t, path)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, s.AppendMany(ctx, storetest.NewStream().Take(20_000)), context.DeadlineExceeded)
		require.NoError(t, s.Append(t.Context(), storetest.NewStream().Next()))
		requireIntact(t, path, 1)
	})
}

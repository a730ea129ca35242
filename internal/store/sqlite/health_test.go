package sqlite

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/store/storetest"
)

// SQLite goes on with a file that was moved or deleted: the store says that it is another one that others would find.
func TestPingNoticesThatTheFileIsGone(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := opened(t, path)
	require.NoError(t, s.Ping(t.Context()))

	require.NoError(t, os.Rename(path, path+".moved"))
	err := s.Ping(t.Context())
	require.ErrorIs(t, err, store.ErrUnavailable)
	require.ErrorContains(t, err, path+" was moved or deleted")

	require.NoError(t, os.WriteFile(path, nil, 0o600))
	err = s.Ping(t.Context())
	require.ErrorIs(t, err, store.ErrUnavailable)
	require.ErrorContains(t, err, path+" was replaced by another file")

	require.NoError(t, os.Rename(path+".moved", path))
	require.NoError(t, s.Ping(t.Context()))
}

// A small write that succeeds on a full disk does not hide that others fail.
func TestPingNoticesThatWritesFail(t *testing.T) {
	t.Parallel()
	s := opened(t, newPath(t))
	s.disk.memory = time.Hour
	limit := func(pages string) {
		_, err := s.writer.ExecContext(t.Context(), "PRAGMA max_page_count = "+pages)
		require.NoError(t, err)
	}
	large := storetest.NewStream().Next()
	large.Data = json.RawMessage(`"` + strings.Repeat("x", 100_000) + `"`)

	limit("1") // at least the present number
	full := s.Append(t.Context(), large)
	require.ErrorIs(t, full, store.ErrUnavailable)
	require.Equal(t, full, s.Ping(t.Context()))
	require.ErrorContains(t, full, "full")
	_, err := s.takeLease(t.Context(), "relay", "me", time.Minute)
	require.NoError(t, err)
	require.Equal(t, full, s.Ping(t.Context()))

	limit("1000000")
	require.NoError(t, s.Append(t.Context(), large))
	require.Equal(t, full, s.Ping(t.Context()), "it has just failed")
	s.disk.memory = 0
	require.NoError(t, s.Ping(t.Context()))

	limit("1")
	large = storetest.NewStream().Next()
	large.Data = json.RawMessage(`"` + strings.Repeat("x", 100_000) + `"`)
	require.ErrorIs(t, s.Append(t.Context(), large), store.ErrUnavailable)
	require.ErrorIs(t, s.Ping(t.Context()), store.ErrUnavailable)
	_, err = s.takeLease(t.Context(), "relay", "a standby", time.Second)
	require.ErrorIs(t, err, store.ErrNotLeader)
	require.NoError(t, s.Ping(t.Context()))
}

func TestPingNoticesAFullDisk(t *testing.T) {
	t.Parallel()
	s := opened(t, newPath(t))
	s.freeSpace = func(string) (int64, error) { return 4096, nil }
	err := s.Ping(t.Context())
	require.ErrorIs(t, err, store.ErrUnavailable)
	require.ErrorContains(t, err, "its disk is full, with 4.0 KiB free")
}

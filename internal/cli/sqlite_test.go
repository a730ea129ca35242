package cli

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// Two workers on one SQLite file, of which one has a symbolic link to it and a removed lock file, handle each event once.
func TestTwoNamesOfOneFile(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path, link := filepath.Join(folder, "clinic.db"), filepath.Join(folder, "link.db")
	require.NoError(t, os.Symlink(path, link))
	p := newProgram(t, "WORKER_SQLITE_PATH="+path)
	p.start()
	locks, err := filepath.Glob(filepath.Join(folder, "*.lock"))
	require.NoError(t, err)
	for _, lock := range locks {
		require.NoError(t, os.Remove(lock))
	}
	newProgram(t, "WORKER_SQLITE_PATH="+link).start()
	const n = 6
	lines := ""
	for range n {
		lines += registration(uuid.NewString(), `{"name":""}`, "") + "\n"
	}
	p.append(lines)
	good := p.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0]
	p.awaitFollowUp(good, "WelcomeMessageRequested")
	require.Len(t, p.awaitLetters(n), n)
	require.Empty(t, decodeLines[letter](t, p.must("", "dlq", "archived", "list", "--all", "--format", "json")))
}

package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// What the commands print is what the table says, also when no worker runs and when two run at once.
func TestCommandsSayWhatTheTableSays(t *testing.T) {
	t.Parallel()
	bothDefaults(t, func(p *program) {
		t := p.t
		p.failMendable(3)
		n := len(p.wholeLetters())

		f := p.follow("dlq", "replay", "--all", "--patience", "1h", "--format", "json")
		require.Eventually(t, func() bool { return strings.Contains(f.out.String(), `"step":"no worker"`) }, patience, tick)
		require.Contains(t, f.out.String(), `"problem":"no worker leads the relay of this store`)
		require.Contains(t, p.must("", "dlq", "archive", "--all", "--reason", "r"), "archived: 0", "they are in the replay")
		require.Equal(t, 1, f.quit())
		require.NotContains(t, f.out.String(), `"step":"handled"`)
		r := p.run("", "dlq", "replay", "--all", "--patience", "10s", "--format", "table")
		require.Equal(t, 1, r.code)
		require.Contains(t, r.out, "waiting for a worker: no worker leads the relay of this store")
		require.Contains(t, r.err, fmt.Sprintf("0 of %d replayed, 0 handled, 0 failed again\n", n))
		require.Contains(t, r.err, "no outcome came in time: no worker leads")
		require.Len(t, p.wholeLetters(), n)

		twice := func(command ...string) (total int) {
			t.Helper()
			results := make([]result, 2)
			var g errgroup.Group
			for i := range results {
				g.Go(func() error {
					results[i] = p.run("", strings.Split(fmt.Sprintf(strings.Join(command, "\n"), i), "\n")...)
					return nil
				})
			}
			require.NoError(t, g.Wait())
			for _, r := range results {
				if command[1] == "export" && r.code != 0 {
					require.Contains(t, r.err, "another export --remove is running")
					continue
				}
				require.Equal(t, 0, r.code, r.err)
				var changed int
				_, err := fmt.Sscan(r.out[strings.LastIndex(r.out, " ")+1:], &changed)
				require.NoError(t, err, r.out)
				total += changed
			}
			return total
		}
		require.Equal(t, n, twice("dlq", "archive", "--all", "--reason", "command %d"))
		require.Contains(t, p.must("", "dlq", "restore", "--all"), fmt.Sprint("restored: ", n))
		directory := t.TempDir()
		require.Equal(t, n, twice("dlq", "export", "--remove", filepath.Join(directory, "%d")))
		once := map[string]int{}
		files, err := os.ReadDir(directory)
		require.NoError(t, err)
		for _, file := range files {
			lines, err := os.ReadFile(filepath.Join(directory, file.Name()))
			require.NoError(t, err)
			for line := range strings.Lines(string(lines)) {
				once[line]++
			}
		}
		require.Len(t, once, n)
		for _, times := range once {
			require.Equal(t, 1, times)
		}
		require.Empty(t, p.wholeLetters())
	})
}

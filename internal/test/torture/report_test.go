package torture

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
)

func TestResultsOfSeveralRunsAreOneTable(t *testing.T) {
	t.Parallel()
	run := func(seed string, recovery time.Duration) Result {
		return Result{
			Faults: 2, seeds: []string{seed}, kinds: map[string]tally{"kill -9": {2, recovery}}, took: time.Minute, workers: 3,
			servers: "Postgres 15", v: verdict{
				appended: map[writer]int{byStore: 5}, letters: map[deadletter.State]int{deadletter.Waiting: 1}, unknown: 1,
			},
		}
	}
	var all Result
	all.Add(run("1", time.Second))
	all.Add(run("2", 3*time.Second))
	require.NoError(t, all.Err())
	path := filepath.Join(t.TempDir(), "RESULT.md")
	require.NoError(t, all.Markdown(path, "A run", "torture"))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, line := range []string{
		"| fault | times | longest recovery |\n| --- | ---: | ---: |\n| kill -9 | 4 | 3.0 s |\n", "| seeds | 1, 2 |",
		"| faults injected | 4 of 1 kinds, in 2m0s, with 3 workers |", "| events appended | 10 (store API 10) |", "| lost | 0 |",
		"| outcome unknown | 2 |", "| dead letters | 2 (waiting 2) |", "| servers | Postgres 15 |",
	} {
		require.Contains(t, string(text), line)
	}

	broken := run("3", time.Second)
	broken.lost, broken.broken = 1, []string{"P1: one is lost"}
	all.Add(broken)
	require.ErrorIs(t, all.Err(), ErrBroken)
	require.NoError(t, all.Markdown(path, "A run", "torture"))
	text, err = os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(text), "| lost | 1 |")
	require.Contains(t, string(text), "Broken: P1: one is lost")
}

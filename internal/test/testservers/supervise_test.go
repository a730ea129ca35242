package testservers

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAServerThatExitsIsStartedAnew(t *testing.T) {
	t.Parallel()
	var dirs []string
	unready := func(context.Context) error { return errors.New("not ready") }
	s, err := startAnew(t.Context(), func(ctx context.Context, dir string, durable bool) (*server, error) {
		dirs = append(dirs, dir)
		if len(dirs) < startTries {
			_, err := startReady(ctx, exec.CommandContext(ctx, "sh", "-c", "echo port taken"), dir, syscall.SIGKILL, unready)
			return nil, err
		}
		return startPostgres(ctx, dir, durable)
	}, false)
	require.NoError(t, err)
	t.Cleanup(func() {
		s.stop()
		require.NoError(t, os.RemoveAll(s.dir))
	})
	require.Equal(t, dirs[startTries-1], s.dir)
	for _, dir := range dirs[:startTries-1] {
		require.NoDirExists(t, dir)
	}
}

func TestAServerThatCannotStartIsGivenUp(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		script string
		tries  int
		says   string
	}{
		"exits each time": {script: "echo port taken", tries: startTries, says: "port taken"},
		"is not there":    {tries: 1, says: "no such file"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var dirs []string
			_, err := startAnew(t.Context(), func(ctx context.Context, dir string, _ bool) (*server, error) {
				dirs = append(dirs, dir)
				command := exec.CommandContext(ctx, dir+"/missing")
				if test.script != "" {
					command = exec.CommandContext(ctx, "sh", "-c", test.script)
				}
				_, err := startReady(ctx, command, dir, syscall.SIGKILL, func(context.Context) error { return errors.New("not ready") })
				return nil, err
			}, false)
			require.ErrorContains(t, err, test.says)
			require.Len(t, dirs, test.tries)
			require.NotContains(t, strings.Join(dirs[1:], " "), dirs[0], "a folder is used twice")
			for _, dir := range dirs {
				require.NoDirExists(t, dir)
			}
		})
	}
}

func TestFreePortsDiffer(t *testing.T) {
	t.Parallel()
	ports, err := freePorts(t.Context(), 50)
	require.NoError(t, err)
	seen := map[string]bool{}
	for _, port := range ports {
		seen[port] = true
	}
	require.Len(t, seen, 50)
}

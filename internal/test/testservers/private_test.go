package testservers_test

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestPrivateServersEnd runs both servers by with-servers and ends it in each way that there is.
func TestPrivateServersEnd(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "with-servers")
	output, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./cmd/with-servers").CombinedOutput()
	require.NoError(t, err, string(output))

	tests := map[string]struct {
		signal syscall.Signal
		code   int
	}{
		"with the command": {code: 7},
		"when terminated":  {signal: syscall.SIGTERM, code: 128 + int(syscall.SIGTERM)},
		"when killed":      {signal: syscall.SIGKILL, code: -1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			require.NoError(t, os.Chmod(filepath.Dir(dir), 0o711)) // Postgres runs under another account

			script := `env; echo; read line; exit 7`
			if test.signal != 0 {
				script = `env; echo; exec cat`
			}
			command := exec.CommandContext(t.Context(), program, "--", "sh", "-c", script)
			command.Env = append(withoutServers(os.Environ()), "TMPDIR="+dir)
			command.Stderr = os.Stderr
			input, err := command.StdinPipe()
			require.NoError(t, err)
			output, err := command.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, command.Start())

			settings := readSettings(t, output)
			addresses := []string{
				host(t, settings["DATABASE_URL"]),
				host(t, settings["RABBITMQ_URL"]),
				host(t, settings["RABBITMQ_MANAGEMENT_URL"]),
			}
			for _, address := range addresses {
				require.True(t, listens(t, address), address)
			}
			if runtime.GOOS == "linux" {
				require.NotEmpty(t, processesOf(dir))
			}

			if test.signal == 0 {
				require.NoError(t, input.Close())
			} else {
				require.NoError(t, command.Process.Signal(test.signal))
			}
			state, err := command.Process.Wait()
			require.NoError(t, err)
			require.Equal(t, test.code, state.ExitCode())

			// The servers of a killed with-servers end on their own, so it may take a moment.
			require.Eventually(t, func() bool {
				return !slices.ContainsFunc(addresses, func(address string) bool { return listens(t, address) })
			}, time.Minute, 50*time.Millisecond)
			_ = input.Close() // ends the command that outlived a killed with-servers
			require.Eventually(t, func() bool { return len(processesOf(dir)) == 0 }, time.Minute, 50*time.Millisecond)
			left, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

func withoutServers(environment []string) []string {
	return slices.DeleteFunc(environment, func(setting string) bool {
		name, _, _ := strings.Cut(setting, "=")
		return slices.Contains([]string{"DATABASE_URL", "RABBITMQ_URL", "RABBITMQ_MANAGEMENT_URL"}, name)
	})
}

// readSettings reads what env printed, up to the empty line after it.
func readSettings(t *testing.T, output io.Reader) map[string]string {
	t.Helper()
	settings := map[string]string{}
	lines := bufio.NewScanner(output)
	for lines.Scan() && lines.Text() != "" {
		name, value, _ := strings.Cut(lines.Text(), "=")
		settings[name] = value
	}
	require.NoError(t, lines.Err())
	return settings
}

func host(t *testing.T, address string) string {
	t.Helper()
	parsed, err := url.Parse(address)
	require.NoError(t, err)
	require.NotEmpty(t, parsed.Host)
	return parsed.Host
}

func listens(t *testing.T, address string) bool {
	t.Helper()
	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// processesOf returns the processes that have dir in their environment: with-servers, its command, its servers and all
// that these start.
func processesOf(dir string) []string {
	environments, _ := filepath.Glob("/proc/[0-9]*/environ")
	return slices.DeleteFunc(environments, func(path string) bool {
		environment, err := os.ReadFile(path) // fails for a process that ended meanwhile
		return err != nil || !bytes.Contains(environment, []byte(dir))
	})
}

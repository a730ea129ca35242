package cli

import (
	"bytes"
	"io"
	"os"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// The first interrupt ends an append that waits for input, which says what it has appended.
func TestAnInterruptedAppendSaysWhatIsAppended(t *testing.T) {
	t.Parallel()
	p := embedded(t)
	c := p.command(t.Context(), "", "append", "--batch", "2", "--format", "json")
	c.Stdin = nil
	input, err := c.StdinPipe()
	require.NoError(t, err)
	output, err := c.StdoutPipe()
	require.NoError(t, err)
	var errOut bytes.Buffer
	c.Stderr = &errOut
	require.NoError(t, c.Start())
	for range 2 {
		_, err = io.WriteString(input, registration(uuid.NewString(), `{"name":"Ana"}`, ""))
		require.NoError(t, err)
	}
	printed := make([]byte, 1)
	_, err = output.Read(printed) // the batch is appended
	require.NoError(t, err)
	require.NoError(t, c.Process.Signal(syscall.SIGINT))
	_, err = io.Copy(io.Discard, output)
	require.NoError(t, err)
	require.Error(t, c.Wait())
	require.Equal(t, exitFailed, c.ProcessState.ExitCode(), errOut.String())
	require.Contains(t, errOut.String(), "worker: interrupted: events that were appended: 2; no line after them was appended")
}

// What cannot be printed is appended all the same, and the error says so.
func TestAnAppendThatCannotPrintSaysWhatIsAppended(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, full.Close()) })
	for _, format := range []string{"table", "json"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			p := embedded(t)
			tenant := uuid.NewString()
			in := registration(tenant, `{"name":"Ana"}`, "") + registration(tenant, `{"name":"Ben"}`, "") + registration(tenant, `{"name":"Eva"}`, "")
			c := p.command(t.Context(), in, "append", "--batch", "2", "--format", format)
			var errOut bytes.Buffer
			c.Stdout, c.Stderr = full, &errOut
			require.Error(t, c.Run())
			require.Equal(t, exitFailed, c.ProcessState.ExitCode())
			require.Contains(t, errOut.String(), "events that were appended: 2, of which the last 2 could not be printed; no line after them was appended: ")
			require.Contains(t, errOut.String(), "no space left on device")
			require.Len(t, decodeLines[wire](t, p.must("", "events", "--tenant", tenant, "--format", "json")), 2)
		})
	}
}

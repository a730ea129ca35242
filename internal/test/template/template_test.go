// Package template_test takes the part of a team that takes this repository as its template: it copies the repository,
// adds an event and a handler, renames the module, and runs the worker on the embedded default.
package template_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	upstream = "github.com/healz/worker"
	adopter  = "example.org/billing/worker"

	correlation = "6d7f0c1e-3a52-4b0e-8f57-0d1a2c9b4e63"
	finished    = `{"event_type": "TreatmentFinished", "aggregate_type": "Treatment",` +
		`"aggregate_id": "5f0c7a52-9b4e-4a35-8f0e-2f6d0f6b1c11", "tenant_id": "0b9a4f3e-0c3d-4f5e-9a51-7d2c6b8e4a10",` +
		`"correlation_id": "` + correlation + `", "event_data": {"fee": "80.00"}}`
)

func TestAdopterAddsHandler(t *testing.T) {
	t.Parallel()
	tree := t.TempDir()
	copyRepository(t, tree)
	addHandler(t, tree)
	renameModule(t, tree)
	run(t, tree, "", "go", "build", "-o", "bin/", "./cmd/worker")
	program := filepath.Join(tree, "bin", "worker")
	startWorker(t, tree, program)

	run(t, tree, finished, program, "append")

	chain := []string{"events", "--correlation", correlation, "--format", "json"}
	require.Eventually(t, func() bool {
		printed, err := output(t, tree, "", program, chain...)
		return err == nil && strings.Count(printed, "\n") == 2
	}, 90*time.Second, 100*time.Millisecond)
	_, last, _ := strings.Cut(run(t, tree, "", program, chain...), "\n")
	var invoice struct {
		Type string            `json:"event_type"`
		Data map[string]string `json:"event_data"`
	}
	require.NoError(t, json.Unmarshal([]byte(last), &invoice))
	require.Equal(t, "InvoiceRequested", invoice.Type)
	require.Equal(t, map[string]string{"amount": "80.00"}, invoice.Data)
}

// copyRepository copies what the repository holds, with the changes that are not committed yet.
func copyRepository(t *testing.T, tree string) {
	t.Helper()
	root := filepath.Join("..", "..", "..")
	listed := run(t, root, "", "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	for _, name := range strings.FieldsFunc(listed, func(r rune) bool { return r == 0 }) {
		content, err := os.ReadFile(filepath.Join(root, name))
		if errors.Is(err, fs.ErrNotExist) { // deleted, and not yet committed
			continue
		}
		require.NoError(t, err)
		target := filepath.Join(tree, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(target), 0o755))
		require.NoError(t, os.WriteFile(target, content, 0o644))
	}
}

// addHandler adds a package with events and their handler, and its line among the registrations.
func addHandler(t *testing.T, tree string) {
	t.Helper()
	require.NoError(t, os.CopyFS(filepath.Join(tree, "internal", "handlers", "invoicing"),
		os.DirFS(filepath.Join("testdata", "invoicing"))))

	const (
		otherImport = "\t\"" + upstream + "/examples/clinic\"\n"
		otherLine   = "\tclinic.Register(reg, o.Streams, o.Chaos)\n"
	)
	list := filepath.Join(tree, "internal", "handlers", "register", "register.go")
	content, err := os.ReadFile(list)
	require.NoError(t, err)
	require.Contains(t, string(content), otherImport)
	require.Contains(t, string(content), otherLine)
	extended := strings.NewReplacer(
		otherImport, otherImport+"\t\""+upstream+"/internal/handlers/invoicing\"\n",
		otherLine, otherLine+"\tinvoicing.Register(reg)\n",
	).Replace(string(content))
	require.NoError(t, os.WriteFile(list, []byte(extended), 0o644))
}

func renameModule(t *testing.T, tree string) {
	t.Helper()
	run(t, tree, "", "go", "mod", "edit", "-module", adopter)
	require.NoError(t, filepath.WalkDir(tree, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".go" {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(path, bytes.ReplaceAll(content, []byte(upstream), []byte(adopter)), 0o644)
	}))
}

// startWorker starts `worker run`, returns when the worker is ready, and stops it when the test ends.
func startWorker(t *testing.T, tree, program string) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	output, err := os.Create(log)
	require.NoError(t, err)
	defer output.Close()
	command := exec.CommandContext(context.WithoutCancel(t.Context()), program, "run", "--http-addr", "127.0.0.1:0")
	command.Dir, command.Env, command.Stderr = tree, environment(), output
	require.NoError(t, command.Start())
	t.Cleanup(func() {
		require.NoError(t, command.Process.Signal(syscall.SIGTERM))
		err := command.Wait()
		content, _ := os.ReadFile(log)
		require.NoError(t, err, string(content))
	})

	address := regexp.MustCompile(`http://127\.0\.0\.1:\d+`)
	require.Eventually(t, func() bool {
		content, err := os.ReadFile(log)
		return err == nil && isReady(t, address.FindString(string(content)))
	}, 90*time.Second, 50*time.Millisecond)
}

func isReady(t *testing.T, address string) bool {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address+"/readyz", nil)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// run runs a program to its end in a folder and returns what it printed.
func run(t *testing.T, dir, input, program string, arguments ...string) string {
	t.Helper()
	printed, err := output(t, dir, input, program, arguments...)
	require.NoError(t, err)
	return printed
}

// output is run for where a failure may pass.
func output(t *testing.T, dir, input, program string, arguments ...string) (string, error) {
	t.Helper()
	command := exec.CommandContext(t.Context(), program, arguments...)
	command.Dir, command.Env, command.Stdin = dir, environment(), strings.NewReader(input)
	var complaints strings.Builder
	command.Stderr = &complaints
	printed, err := command.Output()
	if err != nil {
		err = fmt.Errorf("%s %q: %w: %s", program, arguments, err, &complaints)
	}
	return string(printed), err
}

// environment is this process's without the worker's settings, so that it runs on its defaults.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(setting string) bool {
		name, _, _ := strings.Cut(setting, "=")
		return strings.HasPrefix(name, "WORKER_") || slices.Contains([]string{"DATABASE_URL", "RABBITMQ_URL", "HTTP_ADDR"}, name)
	})
}

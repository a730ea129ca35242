// Package module_test takes the part of a team that builds on this module: in folders outside of it, it writes modules that
// import it, builds them, and runs them.
package module_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/test/testservers"
)

func TestMain(m *testing.M) { testservers.Main(m) }

const (
	patience = 90 * time.Second

	correlation = "6d7f0c1e-3a52-4b0e-8f57-0d1a2c9b4e63"
	registered  = `{"event_type": "PatientRegistered", "aggregate_type": "Patient",` +
		`"aggregate_id": "5f0c7a52-9b4e-4a35-8f0e-2f6d0f6b1c11", "tenant_id": "0b9a4f3e-0c3d-4f5e-9a51-7d2c6b8e4a10",` +
		`"correlation_id": "` + correlation + `", "event_data": {"name": "Ana"}}`
)

// The README's program is a module of its own, on both defaults.
func TestTheProgramOfTheReadme(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string]func(*testing.T) []string{
		"embedded": func(*testing.T) []string { return nil },
		"on servers": func(t *testing.T) []string {
			t.Helper()
			return []string{"DATABASE_URL=" + testservers.Postgres(t), "RABBITMQ_URL=" + testservers.RabbitMQ(t)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGuide(t, settings(t)...)
			g.read("README.md")
			g.until("README.md", "go run . events --type WelcomeRequested -o json --reveal", `{…"name":…"Ana"…}`)
			g.until("README.md", "go run . version", "worker   replaced by …\nprogram  example.org/billing (devel)\ngo…\nschema   Postgres…SQLite…")
			g.stop()
		})
	}
}

// What `worker new` writes builds, passes its tests, and handles events.
func TestANewProgram(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs(filepath.Join("..", "..", ".."))
	require.NoError(t, err)
	parent := t.TempDir()
	worker := filepath.Join(parent, "worker")
	output(t, root, nil, "", "go", "build", "-o", worker, "./cmd/worker")
	printed := output(t, parent, nil, "", worker, "new", "example.org/health/billing")
	require.Contains(t, printed, "billing/main.go\n")
	folder := filepath.Join(parent, "billing")
	require.Empty(t, output(t, folder, nil, "", "gofmt", "-l", "."))
	requireWorker(t, folder)
	output(t, folder, nil, "", "go", "vet", "-mod=mod", "./...")
	output(t, folder, nil, "", "make", "test", "build")
	m := module{t: t, folder: t.TempDir(), program: filepath.Join(folder, "bin", "billing")}
	m.start("run", "--http-addr", "127.0.0.1:0")
	m.run(registered, "append")
	require.Eventually(t, func() bool {
		return strings.Contains(m.run("", "trace", correlation), "WelcomeRequested")
	}, patience, 500*time.Millisecond)

	again := exec.CommandContext(t.Context(), worker, "new", "billing")
	again.Dir = parent
	complaint, err := again.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(complaint), "billing exists already: nothing was written")
}

// A worker inside an HTTP service shares its pool, its server and its transactions.
func TestAWorkerInAService(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	require.NoError(t, os.CopyFS(folder, os.DirFS(filepath.Join("testdata", "clinicweb"))))
	output(t, folder, nil, "", "go", "mod", "init", "example.org/clinicweb")
	requireWorker(t, folder)
	output(t, folder, nil, "", "go", "build", "-mod=mod", "-o", "program", ".")
	database := testservers.Postgres(t)
	m := module{
		t: t, folder: t.TempDir(), program: filepath.Join(folder, "program"),
		settings: []string{"DATABASE_URL=" + database, "RABBITMQ_URL=" + testservers.RabbitMQ(t)},
	}
	address := m.start()
	register := func(name string) (status int, body string) {
		response, err := http.PostForm(address+"/patients", url.Values{"name": {name}})
		require.NoError(t, err)
		defer response.Body.Close()
		content, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response.StatusCode, string(content)
	}
	status, id := register("Ana")
	require.Equal(t, http.StatusOK, status, id)
	status, reason := register("Ana")
	require.Equal(t, http.StatusConflict, status, "her row is refused")
	require.Contains(t, reason, "patients_name_key")

	conn, err := pgx.Connect(t.Context(), database)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(context.WithoutCancel(t.Context()))) })
	require.Eventually(t, func() bool {
		var welcomed bool
		return conn.QueryRow(t.Context(), "SELECT welcomed FROM patients WHERE id = $1", id).Scan(&welcomed) == nil && welcomed
	}, patience, 100*time.Millisecond)
	var events int
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM events").Scan(&events))
	require.Equal(t, 1, events, "the second row's event was rolled back with it")
	for path, want := range map[string]string{
		"/metrics": `worker_handler_handled_total{event_type="PatientRegistered",handler="welcome-patient"} 1`,
		"/":        "the console is not served: it needs a ConsoleToken",
	} {
		response, err := http.Get(address + path)
		require.NoError(t, err)
		content, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Contains(t, string(content), want)
	}
}

// A program that only appends links neither the broker's client, nor the console, nor what measures and traces.
func TestWhatAnAppenderLinks(t *testing.T) {
	t.Parallel()
	listed := output(t, filepath.Join("..", "..", ".."), nil, "", "go", "list", "-deps", ".")
	packages := strings.Fields(listed)
	require.Contains(t, packages, "github.com/jackc/pgx/v5")
	for _, heavy := range []string{
		"github.com/chromedp/", "github.com/stretchr/", "github.com/prometheus/", "go.opentelemetry.io/", "github.com/spf13/",
		"github.com/rabbitmq/", "google.golang.org/", "github.com/healz/worker/internal/cli", "github.com/healz/worker/internal/console",
		"github.com/healz/worker/internal/bus/amqp", "html/template", "testing",
	} {
		require.False(t, slices.ContainsFunc(packages, func(p string) bool { return strings.HasPrefix(p+"/", heavy) }), heavy)
	}
}

// What the image's build gets is enough to build it, and the version that it gets is told.
func TestTheImageBuilds(t *testing.T) {
	t.Parallel()
	root, folder := filepath.Join("..", "..", ".."), t.TempDir()
	ignore, err := os.ReadFile(filepath.Join(root, ".dockerignore"))
	require.NoError(t, err)
	for _, line := range strings.Split(string(ignore), "\n") {
		pattern, kept := strings.CutPrefix(line, "!")
		if !kept {
			continue
		}
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		require.NoError(t, err)
		require.NotEmpty(t, paths, line)
		for _, path := range paths {
			if strings.HasSuffix(pattern, "/") {
				require.NoError(t, os.CopyFS(filepath.Join(folder, pattern), os.DirFS(path)))
				continue
			}
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(folder, filepath.Base(path)), content, 0o600))
		}
	}
	dockerfile, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	require.NoError(t, err)
	command := regexp.MustCompile(`(?m)^RUN CGO_ENABLED=0 (go build .*)$`).FindSubmatch(dockerfile)
	require.NotNil(t, command)
	program := filepath.Join(folder, "program")
	output(t, folder, []string{"VERSION=v1.2.3"}, "", "sh", "-c", strings.Replace(string(command[1]), "/worker ", program+" ", 1))
	require.Contains(t, output(t, folder, nil, "", program, "version"), "worker   v1.2.3\n")
}

// requireWorker lets a module require the one under test.
func requireWorker(t *testing.T, folder string) {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", "..", ".."))
	require.NoError(t, err)
	output(t, folder, nil, "", "go", "mod", "edit", "-require=github.com/healz/worker@v0.0.0", "-replace=github.com/healz/worker="+root)
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(folder, "go.sum"), sums, 0o600))
}

// module is a program with the settings and the folder of one test.
type module struct {
	t        *testing.T
	folder   string
	program  string
	settings []string
}

// start starts the program, returns its address when it is ready, and stops it when the test ends.
func (m module) start(arguments ...string) string {
	m.t.Helper()
	log := filepath.Join(m.t.TempDir(), "log")
	file, err := os.Create(log)
	require.NoError(m.t, err)
	defer file.Close()
	command := exec.CommandContext(context.WithoutCancel(m.t.Context()), m.program, arguments...)
	command.Dir, command.Env, command.Stderr = m.folder, environment(m.settings), file
	require.NoError(m.t, command.Start())
	m.t.Cleanup(func() {
		require.NoError(m.t, command.Process.Signal(syscall.SIGTERM))
		err := command.Wait()
		if content, _ := os.ReadFile(log); m.t.Failed() || err != nil {
			m.t.Log(string(content))
		}
		require.NoError(m.t, err)
	})
	pattern, address := regexp.MustCompile(`(?:serving |address=)(http://127\.0\.0\.1:\d+)`), ""
	require.Eventually(m.t, func() bool {
		content, err := os.ReadFile(log)
		if found := pattern.FindStringSubmatch(string(content)); found != nil {
			address = found[1]
		}
		return err == nil && address != "" && isReady(m.t, address)
	}, patience, 50*time.Millisecond)
	return address
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

// run runs a command of the program and returns what it printed.
func (m module) run(input string, arguments ...string) string {
	m.t.Helper()
	return output(m.t, m.folder, m.settings, input, m.program, arguments...)
}

// output runs a program to its end in a folder and returns what it printed.
func output(t *testing.T, folder string, settings []string, input, program string, arguments ...string) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), program, arguments...)
	command.Dir, command.Env, command.Stdin = folder, environment(settings), strings.NewReader(input)
	var complaints strings.Builder
	command.Stderr = &complaints
	printed, err := command.Output()
	require.NoError(t, err, fmt.Sprintf("%s %q: %s", program, arguments, &complaints))
	return string(printed)
}

// environment is this process's without the worker's settings, and with those that are given.
func environment(settings []string) []string {
	own := slices.DeleteFunc(os.Environ(), func(setting string) bool {
		name, _, _ := strings.Cut(setting, "=")
		return strings.HasPrefix(name, "WORKER_") || slices.Contains([]string{"DATABASE_URL", "RABBITMQ_URL", "HTTP_ADDR"}, name)
	})
	return append(own, settings...)
}

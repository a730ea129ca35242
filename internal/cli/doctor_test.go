package cli

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/test/posix"
	"github.com/healz/worker/internal/test/testservers"
)

type finding struct{ Check, Status, What, Advice string }

func TestDoctor(t *testing.T) {
	t.Parallel()
	p := embedded(t)
	nothing := p.run("", "doctor")
	require.Equal(t, 2, nothing.code)
	require.Regexp(t, `(?m)^wrong +sqlite +there is no file .*\n +→ .worker run.`, nothing.out)
	require.Empty(t, nothing.err)

	address := strings.TrimPrefix(p.start().url, "http://")
	require.Equal(t, 0, p.run("", "doctor", "--http-addr", address).code)
	for _, f := range decodeLines[finding](t, p.must("", "doctor", "--http-addr", address, "--format", "json")) {
		require.Equal(t, "ok", f.Status, f)
		require.Empty(t, f.Advice)
	}
	require.Regexp(t, `(?m)^unknown +worker +no worker answers`, p.must("", "doctor", "--http-addr", "127.0.0.1:1"))

	e := p.append(registration(uuid.NewString(), `{"name":""}`, ""))[0]
	p.awaitLetters(1)
	warned := p.run("", "doctor")
	require.Equal(t, 1, warned.code)
	require.Regexp(t, `(?m)^warning +dead letters +1 dead letter\n +→ `, warned.out)
	require.NotContains(t, warned.out, e.EventID)

	p.env = append(p.env, "WORKER_INBOX_RETENTION=-1s")
	bad := p.run("", "doctor")
	require.Equal(t, 2, bad.code, "the settings of run are looked at")
	require.Contains(t, bad.out, "inbox-retention")
	require.Equal(t, 2, p.run("", "doctor", "--format", "xml").code)
}

func TestDoctorOnServers(t *testing.T) {
	t.Parallel()
	p := onServers(t)
	p.env = append(p.env, "WORKER_RABBITMQ_MANAGEMENT_URL=http://127.0.0.1:1")
	before := p.run("", "doctor")
	require.Equal(t, 2, before.code)
	require.Contains(t, before.out, "worker migrate up")
	require.Contains(t, before.out, "there is no exchange healz.events")

	address := strings.TrimPrefix(p.start().url, "http://")
	found := decodeLines[finding](t, p.run("", "doctor", "--http-addr", address, "--format", "json").out)
	for _, f := range found {
		if f.Check == "policies" || f.Check == "bindings" { // nobody tells of them at that port
			require.Equal(t, "unknown", f.Status, f)
		} else if f.Check != "append-only" && f.Check != "horizon" && f.Check != "connections" { // of the tests' server
			require.Equal(t, "ok", f.Status, f)
		}
	}

	for i, variable := range p.env {
		p.env[i] = strings.Replace(variable, "guest:guest", "guest:"+planted, 1)
	}
	refused := p.run("", "doctor")
	require.Equal(t, 2, refused.code)
	require.Regexp(t, `(?m)^wrong +rabbitmq .*refused`, refused.out)
	require.NotContains(t, refused.out+refused.err, planted)
}

// A policy by which the failed queue refuses letters is named at the start, and that it does so by the doctor too, which is
// another process.
func TestPolicyOfAFullFailedQueueIsReportedByTheDoctor(t *testing.T) {
	t.Parallel()
	p := onServers(t)
	p.env = append(p.env, "WORKER_RABBITMQ_MANAGEMENT_URL="+testservers.RabbitMQManagement(t), "WORKER_INGEST_DEAD_LETTERS=false")
	broker, err := url.Parse(strings.TrimPrefix(p.env[1], "RABBITMQ_URL="))
	require.NoError(t, err)
	manage(t, http.MethodPut, "/api/policies/"+url.PathEscape(strings.TrimPrefix(broker.Path, "/"))+"/small",
		`{"pattern":"failed$","definition":{"max-length":1,"overflow":"reject-publish"}}`)
	w := p.start("--retry-attempts", "1")
	require.Eventually(t, func() bool {
		return strings.Contains(w.log.String(), "queue healz.events.failed has max-length 1 (policy small): the broker refuses dead letters")
	}, patience, tick)
	doctor := func(address string) string { return p.run("", "doctor", "--http-addr", address).out }
	address := strings.TrimPrefix(w.url, "http://")
	require.Regexp(t, `(?m)^ok +worker +the worker at \S+ is ready$`, doctor(address))
	for range 4 {
		p.append(registration(uuid.NewString(), `{"name":""}`, ""))
	}
	require.Eventually(t, func() bool {
		_, health := w.get("/readyz")
		return strings.Contains(health, "degraded since")
	}, patience, tick)
	said := doctor(address)
	require.Regexp(t, `(?m)^warning +worker +dead_letters degraded since .* the failed queue takes no dead letters`, said)
	require.Regexp(t, `(?m)^warning +policies +queue healz.events.failed has max-length 1`, said)
	require.Regexp(t, `(?m)^unknown +worker +no worker answers at --http-addr 127.0.0.1:1`, doctor("127.0.0.1:1"))
}

// The doctor reports a file that the user must not write.
func TestDoctorOnAReadOnlyFile(t *testing.T) {
	t.Parallel()
	folder, err := os.MkdirTemp("", "readonly") //nolint:usetesting // t.TempDir's parent keeps other users out
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(folder)) })
	require.NoError(t, os.Chmod(folder, 0o755))
	p := newProgram(t, "WORKER_SQLITE_PATH="+filepath.Join(folder, "events.db"))
	p.must("", "migrate", "up")
	require.NoError(t, os.Chmod(filepath.Join(folder, "events.db"), 0o444))

	c := p.command(t.Context(), "", "doctor")
	if os.Geteuid() == 0 { // permissions bind everybody else
		binary, err := os.ReadFile(c.Path)
		require.NoError(t, err)
		c.Path, c.Dir = filepath.Join(folder, "worker"), folder
		require.NoError(t, os.WriteFile(c.Path, binary, 0o755)) //nolint:gosec // the other user runs it
		const nobody = 65534
		c.SysProcAttr = posix.As(nobody, nobody)
	}
	out, err := c.CombinedOutput()
	require.Error(t, err)
	require.Equal(t, 2, c.ProcessState.ExitCode(), string(out))
	require.Regexp(t, `(?m)^wrong +sqlite .*permission denied\n +→ give the user of the worker`, string(out))
}

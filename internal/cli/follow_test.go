package cli

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/test/posix"
)

// following is a command that runs until it is interrupted.
type following struct {
	*program
	out     *logBuffer
	process *os.Process
	done    <-chan struct{}
	quit    func() int
}

// follow starts a command that runs until it is interrupted.
func (p *program) follow(args ...string) *following {
	p.t.Helper()
	c := p.command(context.WithoutCancel(p.t.Context()), "", args...)
	stdout, err := c.StdoutPipe()
	require.NoError(p.t, err)
	errOut := &strings.Builder{}
	c.Stderr = errOut
	require.NoError(p.t, c.Start())
	done := make(chan struct{})
	f := &following{program: p, out: &logBuffer{}, process: c.Process, done: done}
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			f.out.add(lines.Text())
		}
		_ = c.Wait()
	}()
	p.t.Cleanup(func() {
		_ = c.Process.Kill()
		<-done
		if p.t.Failed() {
			p.t.Log(f.out.String(), errOut.String())
		}
	})
	f.quit = func() int {
		p.t.Helper()
		_ = c.Process.Signal(syscall.SIGINT) // it may have ended by itself
		select {
		case <-done:
		case <-time.After(patience):
			require.Fail(p.t, "the command did not end")
		}
		require.NotContains(p.t, errOut.String(), "DATA RACE")
		return c.ProcessState.ExitCode()
	}
	return f
}

// await waits until the output matches, and returns the submatches.
func (f *following) await(pattern string) []string {
	f.t.Helper()
	var found []string
	require.Eventually(f.t, func() bool {
		found = regexp.MustCompile(pattern).FindStringSubmatch(f.out.String())
		return found != nil
	}, patience, tick, "waiting for %s", pattern)
	return found[1:]
}

// The guide of the live demo leads from the failed appointment to its cause, fixes it, and replays the letter.
func TestLiveDemo(t *testing.T) {
	t.Parallel()
	d := newProgram(t).follow("demo", "--http-addr", "127.0.0.1:0")
	d.await("worker doctor")
	path := d.await(`WORKER_SQLITE_PATH=(\S+)`)[0]
	// A DATABASE_URL in the environment of the user is not used.
	env := append([]string{"DATABASE_URL=postgres://db.invalid/real", "RABBITMQ_URL=amqp://mq.invalid/"}, strings.Fields(d.await(`export (.*)`)[0])...)
	p := newProgram(t, env...)
	letterID, correlation := d.await(`dlq show (\S+)`)[0], d.await(`worker trace (\S+)`)[0]
	require.Contains(t, p.must("", "dlq", "show", letterID), "has no opening hours")
	before := p.must("", "trace", correlation)
	require.Regexp(t, `(?s)ClinicOpened.*WaitingListTransferred.*AppointmentRequested.*✗ book-appointment.*dead letter `+letterID, before)
	opened := p.must("", "events", "--aggregate", d.await(`--aggregate (\S+)`)[0], "-o", "json", "--reveal")
	require.Contains(t, opened, `"opening_hours":null`)

	p.must(d.await(`echo '(.*)' \|`)[0], "append")
	p.must("", "dlq", "replay", "--id", letterID)
	require.Eventually(t, func() bool {
		return strings.Contains(p.must("", "trace", correlation), "ReminderScheduled")
	}, patience, commandTick)
	require.Contains(t, p.must("", "trace", correlation), "0 dead letters")

	require.Greater(t, len(p.letters()), 3, "there are other failures")
	d.await(`http://127.0.0.1:\d+`)
	require.NoError(t, d.process.Signal(posix.SIGUSR1))
	require.Eventually(t, func() bool {
		log, err := os.ReadFile(filepath.Join(filepath.Dir(path), "worker.log"))
		return err == nil && strings.Contains(string(log), "the log level was changed")
	}, patience, tick)
	require.Equal(t, 0, d.quit())
	require.NoDirExists(t, filepath.Dir(path))
}

func TestDemoCommandLine(t *testing.T) {
	t.Parallel()
	require.Equal(t, 2, newProgram(t).run("", "demo", "--http-addr", "nowhere").code)
	w := embedded(t).start()
	taken := newProgram(t).run("", "demo", "--http-addr", strings.TrimPrefix(w.url, "http://"))
	require.Equal(t, 1, taken.code)
	require.Contains(t, taken.err, "address already in use")
}

func TestTrace(t *testing.T) {
	t.Parallel()
	bothDefaults(t, func(p *program) {
		t := p.t
		p.start("--chaos", "--retry-attempts", "2", "--retry-initial", "1ms")
		e := p.append(registration(uuid.NewString(), `{"name":"Ana"}`, `,"correlation_id":"import-`+uuid.NewString()+`"`))[0]
		follow := p.awaitFollowUp(e, "WelcomeMessageRequested")
		failing := p.append(registration(e.TenantID, `{"name":"Ben"}`,
			`,"correlation_id":"`+e.CorrelationID+`","causation_id":"`+follow.EventID+`","metadata":{"fail_times":9}`))[0]
		letter := p.awaitLetters(1)[0]

		want := `(?s)began .*3 events in .*, 1 dead letter\n\n *\+0ms  PatientRegistered .*` + e.EventID +
			`.*✓ welcome-patient after .*└─ WelcomeMessageRequested .*└─ PatientRegistered .*` + failing.EventID +
			`.*✗ welcome-patient \(2 attempts, dead letter ` + letter.ID + `\): chaos: failure 2 of 9\n$`
		for _, id := range []string{e.CorrelationID, "import-" + e.CorrelationID, follow.EventID, failing.EventID} {
			require.Regexp(t, want, p.must("", "trace", id))
		}
		require.Contains(t, p.must("", "trace", e.CorrelationID, "--format", "dot"), "n1 -> n2")
		object := p.must("", "trace", e.CorrelationID, "--format", "json")
		require.Contains(t, object, `"dead_letters":1`)
		require.NotRegexp(t, "Ana|Ben", object)
		require.Contains(t, object, `"letter_id":"`+letter.ID+`"`)
		p.must("", "dlq", "archive", letter.ID, "--reason", "sent twice")
		require.Regexp(t, `– welcome-patient \(2 attempts, archived letter `+letter.ID+`\)`, p.must("", "trace", e.CorrelationID))
		require.Equal(t, exitNotFound, p.run("", "trace", uuid.NewString()).code)
		require.Equal(t, 2, p.run("", "trace", "Ana").code)
		require.Equal(t, 2, p.run("", "trace", e.EventID, "--format", "svg").code)
		require.Equal(t, 2, p.run("", "trace").code)
	})
}

// A trace needs only the store.
func TestTraceWithoutABroker(t *testing.T) {
	t.Parallel()
	p := embedded(t)
	p.start("--chaos", "--retry-attempts", "1")
	e := p.append(registration(uuid.NewString(), `{"name":"Ana"}`, `,"metadata":{"fail_times":9}`))[0]
	p.must("", "dlq", "archive", p.awaitLetters(1)[0].ID, "--reason", "sent twice")
	p.env = append(p.env, "RABBITMQ_URL=amqp://guest:secret@127.0.0.1:1/")
	r := p.run("", "trace", e.EventID)
	require.Equal(t, 0, r.code)
	require.Contains(t, r.out, "1 event in")
	require.Contains(t, r.out, "archived letter")
	require.Empty(t, r.err)
}

func TestTail(t *testing.T) {
	t.Parallel()
	bothDefaults(t, func(p *program) {
		t := p.t
		tenant := uuid.NewString()
		p.must("", "migrate", "up")
		first := p.append(registration(tenant, `{"name":"Ana"}`, `,"metadata":{"room":"Ben"}`))[0]
		p.append(registration(uuid.NewString(), `{"name":"Cleo"}`, ""))
		table := p.follow("tail", "--tenant", tenant, "--since", "1h")
		lines := p.follow("tail", "--aggregate", "Message", "--format", "json", "--since", "1h")
		revealed := p.follow("tail", "--correlation", first.CorrelationID, "--format", "json", "--reveal", "--since", "1h")
		withData := p.follow("tail", "--type", "PatientRegistered", "--reveal", "--since", "1h")
		table.await(`PatientRegistered +` + first.EventID + `  Patient/` + first.AggregateID + ` v1`)
		w := p.start()
		follow := p.awaitFollowUp(first, "WelcomeMessageRequested")
		table.await("WelcomeMessageRequested +" + follow.EventID)
		lines.await(`"event_id":"` + follow.EventID + `".*"tenant_id":"` + tenant + `".*"correlation_id":"` + follow.CorrelationID + `"`)
		revealed.await(`Ana.*Ben`)
		withData.await(`event_data .*Cleo`)
		for _, f := range []*following{table, lines, revealed, withData} {
			require.Equal(t, 0, f.quit())
		}
		require.NotRegexp(t, "Ana|Ben|Cleo", table.out.String()+lines.out.String())
		require.NotContains(t, lines.out.String(), "PatientRegistered")
		w.stop()
	})
}

func TestTailCommandLine(t *testing.T) {
	t.Parallel()
	p := embedded(t)
	require.Equal(t, exitNotFound, p.run("", "tail").code, "there is no database")
	for _, args := range [][]string{
		{"--tenant", "Ana"}, {"--correlation", "Ana"}, {"--aggregate", "Patient/Ana"}, {"--since", "-1s"}, {"--since", "soon"}, {"more"},
	} {
		r := p.run("", append([]string{"tail"}, args...)...)
		require.Equal(t, 2, r.code, args)
	}
}

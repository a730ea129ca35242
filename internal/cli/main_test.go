package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/test/testservers"
)

const (
	patience = 90 * time.Second
	tick     = 100 * time.Millisecond
	// commandTick is the interval where each look is a command: a process, which costs other tests their share of the processor.
	commandTick = 500 * time.Millisecond
)

// asWorker makes the test program a worker, so that the tests run real processes.
const asWorker = "TEST_AS_WORKER"

// stubbornType is the type of events whose handler does not return, even if its context ends.
const stubbornType = "StubbornlyHandled"

func stubborn(context.Context, events.Event, json.RawMessage) ([]events.Event, error) {
	fmt.Fprintln(os.Stderr, "stubborn: begun")
	select {}
}

func TestMain(m *testing.M) {
	if which := os.Getenv(asWorker); which != "" {
		os.Exit(Main(func(reg *handlers.Registry) {
			if which != "1" {
				registerService(which, reg)
				return
			}
			clinic.Register(reg)
			handlers.On(reg, stubbornType, "stubborn", stubborn)
			handlers.On(reg, "Fragile", "fragile", fragile)
			registerMendable(reg)
		}, Demo()))
	}
	testservers.Main(m)
}

// program is the worker with the settings of one test.
type program struct {
	t    *testing.T
	path string
	env  []string
}

func newProgram(t *testing.T, env ...string) *program {
	t.Helper()
	path, err := os.Executable()
	require.NoError(t, err)
	return &program{t: t, path: path, env: env}
}

// embedded is a program on a SQLite file of its own.
func embedded(t *testing.T) *program {
	t.Helper()
	return newProgram(t, "WORKER_SQLITE_PATH="+filepath.Join(t.TempDir(), "test.db"))
}

// onServers is a program on a database and a vhost of its own.
func onServers(t *testing.T) *program {
	t.Helper()
	return newProgram(t, "DATABASE_URL="+testservers.Postgres(t), "RABBITMQ_URL="+testservers.RabbitMQ(t))
}

type platform struct {
	name string
	open func(*testing.T) *program
}

// platforms are the combinations of store and bus.
func platforms(t *testing.T, test func(*program)) {
	t.Helper()
	bothDefaults(t, test)
	on(t, test, platform{"Postgres and in-process", func(t *testing.T) *program {
		t.Helper()
		return newProgram(t, "DATABASE_URL="+testservers.Postgres(t))
	}}, platform{"SQLite and RabbitMQ", func(t *testing.T) *program {
		t.Helper()
		p := embedded(t)
		p.env = append(p.env, "RABBITMQ_URL="+testservers.RabbitMQ(t))
		return p
	}})
}

// bothDefaults are each store and each bus once, for commands that do not depend on the combination.
func bothDefaults(t *testing.T, test func(*program)) {
	t.Helper()
	on(t, test, platform{"embedded", embedded}, platform{"Postgres and RabbitMQ", onServers})
}

func on(t *testing.T, test func(*program), platforms ...platform) {
	t.Helper()
	for _, p := range platforms {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			test(p.open(t))
		})
	}
}

func (p *program) command(ctx context.Context, in string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, p.path, args...)
	c.Stdin = strings.NewReader(in)
	// By default, a program with the race detector waits a second at its end.
	c.Env = append([]string{asWorker + "=1", "HOME=" + p.t.TempDir(), "GORACE=atexit_sleep_ms=20"}, p.env...)
	c.Dir = p.t.TempDir()
	return c
}

// result is the result of a command.
type result struct {
	code     int
	out, err string
}

// run runs a command to its end.
func (p *program) run(in string, args ...string) result {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	c := p.command(ctx, in, args...)
	var out, errOut bytes.Buffer
	c.Stdout, c.Stderr = &out, &errOut
	err := c.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); !exited {
		require.NoError(p.t, err)
	}
	require.NotContains(p.t, errOut.String(), "panic:")
	return result{c.ProcessState.ExitCode(), out.String(), errOut.String()}
}

// must runs a command that succeeds, and returns its output.
func (p *program) must(in string, args ...string) string {
	p.t.Helper()
	r := p.run(in, args...)
	require.Equal(p.t, 0, r.code, "%v: %s%s", args, r.out, r.err)
	return r.out
}

// running is a running worker.
type running struct {
	*program
	cmd  *exec.Cmd
	url  string
	log  *logBuffer
	done chan struct{}
}

type logBuffer struct {
	mu    sync.Mutex
	lines strings.Builder
}

func (l *logBuffer) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines.WriteString(line + "\n")
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.String()
}

// start starts `worker run` on a free port and waits until it is ready.
func (p *program) start(args ...string) *running {
	p.t.Helper()
	r := p.launch(args...)
	require.Eventually(p.t, func() bool { return r.ready() == http.StatusOK }, patience, tick, "not ready")
	return r
}

// launch is start without waiting until the worker is ready.
func (p *program) launch(args ...string) *running {
	p.t.Helper()
	c := p.command(context.WithoutCancel(p.t.Context()), "", append([]string{"run", "--http-addr", "127.0.0.1:0"}, args...)...)
	stderr, err := c.StderrPipe()
	require.NoError(p.t, err)
	require.NoError(p.t, c.Start())
	r := &running{program: p, cmd: c, log: &logBuffer{}, done: make(chan struct{})}
	address := make(chan string, 1)
	go func() {
		defer close(r.done)
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			r.log.add(lines.Text())
			if _, url, found := strings.Cut(lines.Text(), "address="); found {
				address <- url
			}
		}
		_ = c.Wait()
	}()
	p.t.Cleanup(func() {
		_ = c.Process.Kill()
		<-r.done
		require.NotContains(p.t, r.log.String(), "DATA RACE")
		if p.t.Failed() {
			p.t.Log(r.log.String())
		}
	})
	select {
	case r.url = <-address:
	case <-r.done:
		require.Fail(p.t, "the worker ended at once", r.log.String())
	case <-time.After(patience):
		require.Fail(p.t, "the worker did not start", r.log.String())
	}
	return r
}

func (r *running) ready() int {
	status, _ := r.get("/readyz")
	return status
}

func (r *running) get(path string) (int, string) {
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, r.url+path, nil)
	require.NoError(r.t, err)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(r.t, err)
	return resp.StatusCode, string(body)
}

// stop sends SIGTERM and expects a graceful stop.
func (r *running) stop() {
	r.t.Helper()
	require.NoError(r.t, r.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-r.done:
	case <-time.After(patience):
		require.Fail(r.t, "the worker did not stop", r.log.String())
	}
	require.Equal(r.t, 0, r.cmd.ProcessState.ExitCode(), r.log.String())
}

func (r *running) kill() {
	r.t.Helper()
	require.NoError(r.t, r.cmd.Process.Kill())
	<-r.done
}

// wire is an event in the format of the contract.
type wire struct {
	EventID       string `json:"event_id"`
	EventType     string `json:"event_type"`
	AggregateType string `json:"aggregate_type"`
	AggregateID   string `json:"aggregate_id"`
	Version       int    `json:"aggregate_version"`
	TenantID      string `json:"tenant_id"`
	CorrelationID string `json:"correlation_id"`
	CausationID   string `json:"causation_id"`
}

func decodeLines[T any](t *testing.T, lines string) []T {
	t.Helper()
	var all []T
	for d := json.NewDecoder(strings.NewReader(lines)); ; {
		var v T
		err := d.Decode(&v)
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err, lines)
		all = append(all, v)
	}
}

// registration is a PatientRegistered as a line of input.
func registration(tenant, data, more string) string {
	return fmt.Sprintf(`{"event_type":"PatientRegistered","aggregate_type":"Patient","aggregate_id":%q,"tenant_id":%q,"event_data":%s%s}`+"\n",
		uuid.NewString(), tenant, data, more)
}

// append appends lines and returns the events.
func (p *program) append(lines string) []wire {
	p.t.Helper()
	// An older version knows only the former name of -o.
	return decodeLines[wire](p.t, p.must(lines, "append", "--format", "json"))
}

func (p *program) chain(correlation string) []wire {
	p.t.Helper()
	return decodeLines[wire](p.t, p.must("", "events", "--correlation", correlation, "--format", "json"))
}

// awaitFollowUp waits for the event of a type that e caused.
func (p *program) awaitFollowUp(e wire, eventType string) wire {
	p.t.Helper()
	var found wire
	require.Eventually(p.t, func() bool {
		for _, f := range p.chain(e.CorrelationID) {
			if f.EventType == eventType && f.CausationID == e.EventID {
				found = f
				return true
			}
		}
		return false
	}, patience, commandTick, "no %s follows", eventType)
	return found
}

type letter struct {
	ID        string `json:"id"`
	EventID   string `json:"event_id"`
	EventType string `json:"event_type"`
	Handler   string `json:"handler"`
	Reason    string `json:"reason"`
	Attempts  int    `json:"attempts"`
}

func (p *program) letters() []letter {
	p.t.Helper()
	return decodeLines[letter](p.t, p.must("", "dlq", "list", "--letters", "--format", "json"))
}

func (p *program) awaitLetters(n int) []letter {
	p.t.Helper()
	var found []letter
	require.Eventually(p.t, func() bool {
		found = p.letters()
		return len(found) == n
	}, patience, commandTick, "waiting for %d dead letters", n)
	return found
}

func TestAnAppendedEventReachesItsHandler(t *testing.T) {
	t.Parallel()
	platforms(t, func(p *program) {
		t := p.t
		w := p.start()
		tenant := uuid.NewString()
		appended := p.append(registration(tenant, `{"name":"Ana","visits":9007199254740993,"fee":12.10}`, ""))
		require.Len(t, appended, 1)
		e := appended[0]
		require.Equal(t, 1, e.Version)

		welcome := p.awaitFollowUp(e, "WelcomeMessageRequested")
		require.Equal(t, "Message", welcome.AggregateType)
		require.Equal(t, 1, welcome.Version)
		require.Equal(t, tenant, welcome.TenantID)
		require.Equal(t, e.CorrelationID, welcome.CorrelationID)
		require.Equal(t, uuid.Version(5), uuid.MustParse(welcome.AggregateID).Version())

		table := p.must("", "events", "--tenant", tenant, "-o", "wide")
		require.Contains(t, table, "WelcomeMessageRequested")
		require.NotContains(t, table, "Ana", "the table leaves the data out")
		require.Contains(t, p.must("", "events", "--aggregate", "Patient/"+e.AggregateID, "-o", "json", "--reveal"), "9007199254740993")
		require.Empty(t, p.letters())

		status, body := w.get("/healthz")
		require.Equal(t, http.StatusOK, status, body)
		_, body = w.get("/readyz")
		require.Contains(t, body, `"ready":true`)
		w.stop()
		require.NotContains(t, w.log.String(), "Ana", "no log line quotes an event")
		require.NotContains(t, w.log.String(), "level=ERROR", "a stop is no error")
	})
}

func TestAnAppointmentGetsAReminder(t *testing.T) {
	t.Parallel()
	p := embedded(t)
	p.start()
	e := p.append(fmt.Sprintf(`{"event_type":"AppointmentScheduled","aggregate_type":"Appointment","aggregate_id":%q,"tenant_id":%q,`+
		`"event_data":{"patient_id":%q,"starts_at":"2027-01-02T09:00:00Z"}}`, uuid.NewString(), uuid.NewString(), uuid.NewString()))[0]
	p.awaitFollowUp(e, "ReminderScheduled")
	require.Contains(t, p.must("", "events", "--type", "ReminderScheduled", "--reveal"), "2027-01-01T09:00:00Z")
}

func TestDeadLettersAreLookedAtAndReplayed(t *testing.T) {
	t.Parallel()
	platforms(t, func(p *program) {
		t := p.t
		w := p.start("--chaos", "--retry-attempts", "2", "--retry-initial", "1ms")
		tenant := uuid.NewString()
		sent := p.append(registration(tenant, `{"name":"Ana"}`, `,"metadata":{"fail_times":1}`) +
			registration(tenant, `{"name":"Ben"}`, `,"metadata":{"fail_times":3}`) +
			registration(tenant, `{"name":""}`, ""))
		retried, failing, nameless := sent[0], sent[1], sent[2]
		p.awaitFollowUp(retried, "WelcomeMessageRequested")

		letters := p.awaitLetters(2)
		byEvent := map[string]letter{}
		for _, l := range letters {
			byEvent[l.EventID] = l
		}
		require.Equal(t, 2, byEvent[failing.EventID].Attempts)
		require.Equal(t, "chaos: failure 2 of 3", byEvent[failing.EventID].Reason)
		require.Equal(t, "welcome-patient", byEvent[failing.EventID].Handler)
		require.Equal(t, 1, byEvent[nameless.EventID].Attempts, "a permanent error is not retried")
		require.Equal(t, letters, p.letters(), "looking changes nothing")

		shown := p.must("", "dlq", "show", failing.EventID)
		require.Contains(t, shown, "chaos: failure 2 of 3")
		require.NotContains(t, shown, "Ben")
		require.Contains(t, p.must("", "dlq", "show", failing.EventID, "--reveal"), "Ben")
		require.Equal(t, letters, p.letters())

		p.must("", "dlq", "replay", "--id", byEvent[failing.EventID].ID)
		p.awaitFollowUp(failing, "WelcomeMessageRequested")
		require.Equal(t, nameless.EventID, p.awaitLetters(1)[0].EventID)
		require.Regexp(t, `state +handled\n(.*\n)*decided by +replay `, p.must("", "dlq", "show", failing.EventID))

		p.must("", "dlq", "replay", "--type", "PatientRegistered") // it fails again, and comes back
		require.Eventually(t, func() bool {
			return strings.Count(w.log.String(), "patient has no name") >= 2
		}, patience, tick)
		failedAgain := p.awaitLetters(1)[0]
		require.Equal(t, byEvent[nameless.EventID].ID, failedAgain.ID, "a letter keeps its id")
		require.Contains(t, p.must("", "dlq", "show", failedAgain.ID), "Before its last failure:")
		require.Equal(t, 2, p.run("", "dlq", "purge").code, "not without --yes")
		require.Contains(t, p.must("", "dlq", "purge", "--yes"), "purged: 1")
		require.Empty(t, p.letters())
		require.Equal(t, exitNotFound, p.run("", "dlq", "show", nameless.EventID).code)
		require.Equal(t, exitNotFound, p.run("", "dlq", "replay", "--id", "01ARZ3NDEKTSV4RRFFQ69G5FAV").code)
		w.stop()
		require.NotRegexp(t, regexp.MustCompile(`Ana|Ben`), w.log.String())
	})
}

// Events that were appended while the worker was down, killed or stopping take effect once.
func TestNothingIsLostOrDoubledByAnEnd(t *testing.T) {
	t.Parallel()
	platforms(t, func(p *program) {
		t := p.t
		p.must("", "migrate", "up")
		const rounds, each = 4, 40
		var sent []wire
		for round := range rounds {
			w := p.start()
			var lines strings.Builder
			tenant := uuid.NewString()
			for i := range each {
				lines.WriteString(registration(tenant, fmt.Sprintf(`{"name":"N%d"}`, i), ""))
			}
			sent = append(sent, p.append(lines.String())...)
			if round%2 == 0 {
				w.kill()
			} else {
				w.stop()
			}
		}
		w := p.start()
		effects := func() map[string]int {
			counts := map[string]int{}
			out := p.must("", "events", "--type", "WelcomeMessageRequested", "--limit", "1000", "--format", "json")
			for _, f := range decodeLines[wire](t, out) {
				counts[f.CausationID]++
			}
			return counts
		}
		require.Eventually(t, func() bool { return len(effects()) == len(sent) }, patience, commandTick)
		w.stop()
		for id, n := range effects() {
			require.Equal(t, 1, n, "effects of event %s", id)
		}
		require.Empty(t, p.letters())
	})
}

func TestPublishGoesStraightToTheBus(t *testing.T) {
	t.Parallel()
	p := onServers(t)
	p.start()
	line := registration(uuid.NewString(), `{"name":"Ana"}`, `,"aggregate_version":1`)
	published := decodeLines[wire](t, p.must(line, "publish", "--format", "json"))
	p.awaitFollowUp(published[0], "WelcomeMessageRequested")
	require.Len(t, p.chain(published[0].CorrelationID), 1, "the event itself is not in the store")

	require.Equal(t, 2, embedded(t).run(line, "publish").code, "there is no bus to publish to")
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	p := embedded(t)
	directory := t.TempDir()
	garbage := filepath.Join(directory, "garbage.db")
	require.NoError(t, os.WriteFile(garbage, bytes.Repeat([]byte("no database "), 1000), 0o600))
	id, nowhere := uuid.NewString(), filepath.Join(directory, "nowhere.db")
	p.must("", "migrate", "up")
	t.Cleanup(func() { require.NoFileExists(t, nowhere) })
	for name, test := range map[string]struct {
		args []string
		in   string
		env  []string
		code int
		want string
	}{
		"help":                     {args: []string{"--help"}, want: "worker [command]"},
		"run's help":               {args: []string{"run", "--help"}, want: "[$WORKER_GRACE_PERIOD]"},
		"no command":               {args: nil, want: "Available Commands"},
		"module of no name":        {args: []string{"new", "../Billing"}, code: 2, want: "like example.org/billing"},
		"completion":               {args: []string{"completion", "bash"}, want: "worker"},
		"unknown command":          {args: []string{"walk"}, code: 2, want: `unknown command "walk"`},
		"unknown command of group": {args: []string{"dlq", "walk"}, code: 2, want: `unknown command "dlq walk"`},
		"unknown flag":             {args: []string{"run", "--fast"}, code: 2, want: "--fast"},
		"flag of no number":        {args: []string{"run", "--concurrency", "many"}, code: 2, want: "concurrency"},
		"variable of no number":    {args: []string{"run"}, env: []string{"WORKER_CONCURRENCY=many"}, code: 2, want: "WORKER_CONCURRENCY"},
		"no concurrency":           {args: []string{"run", "--concurrency", "0"}, code: 2, want: "concurrency must be at least 1"},
		"negative prefetch":        {args: []string{"run", "--prefetch", "-1"}, code: 2, want: "prefetch must be from"},
		"negative partitions":      {args: []string{"run", "--partitions", "-1"}, code: 2, want: "partitions must be from"},
		"partitions in process":    {args: []string{"run", "--partitions", "2"}, code: 2, want: "partitions need RabbitMQ"},
		"retry later in process":   {args: []string{"run", "--retry-later", "10s"}, code: 2, want: "retry-later needs RabbitMQ"},
		"retry later of no time":   {args: []string{"run", "--retry-later", "10s,0s"}, code: 2, want: "retry-later must be from"},
		"unknown queue type":       {args: []string{"run", "--queue-type", "stream"}, code: 2, want: "queue-type must be"},
		"negative time":            {args: []string{"run", "--grace-period", "-1s"}, code: 2, want: "grace-period must be positive"},
		"negative retention":       {args: []string{"run", "--inbox-retention", "-1h"}, code: 2, want: "inbox-retention must be 0, or more than 1h0m0s, but is -1h"},
		"short retention":          {args: []string{"run", "--inbox-retention", "1h"}, code: 2, want: "inbox-retention must be 0, or more than 1h"},
		"unknown fate":             {args: []string{"run", "--after-dead-letter", "stop"}, code: 2, want: "after-dead-letter must be"},
		"unknown start":            {args: []string{"run", "--relay-start", "middle"}, code: 2, want: "relay-start must be"},
		"unknown level":            {args: []string{"run", "--log-level", "loud"}, code: 2, want: "log-level"},
		"unknown log format":       {args: []string{"run", "--log-format", "xml"}, code: 2, want: "log-format"},
		"too many arguments":       {args: []string{"run", "now"}, code: 2, want: "takes no arguments"},
		"unknown format":           {args: []string{"events", "--type", "T", "--format", "xml"}, code: 2, want: "table or wide or json"},
		"a selection twice":        {args: []string{"events", "--type", "S", "--type", "T"}, want: "no events"},
		"aggregate without id":     {args: []string{"events", "--aggregate", "Patient"}, code: 2, want: "TYPE/ID"},
		"aggregate of bad id":      {args: []string{"events", "--aggregate", "Patient/7"}, code: 2, want: "not a UUID"},
		"bad correlation":          {args: []string{"events", "--correlation", "7"}, code: 2, want: "not a UUID"},
		"bad tenant":               {args: []string{"events", "--tenant", "7"}, code: 2, want: "not a UUID"},
		"negative limit":           {args: []string{"events", "--type", "T", "--limit", "-1"}, code: 2, want: "limit must be from 0"},
		"huge limit":               {args: []string{"events", "--type", "T", "--limit", "10001"}, code: 2, want: "limit must be from 0"},
		"negative offset":          {args: []string{"events", "--type", "T", "--offset", "-1"}, code: 2, want: "offset must not be negative"},
		"bad cursor":               {args: []string{"events", "--type", "T", "--after", "x"}, code: 2, want: "after"},
		"unknown id is no error":   {args: []string{"events", "--correlation", id}, want: "no events"},
		"empty batch":              {args: []string{"append", "--batch", "0"}, code: 2, want: "--batch"},
		"no such file":             {args: []string{"append", "nowhere.jsonl"}, code: 2, want: "nowhere.jsonl"},
		"append of no JSON":        {args: []string{"append"}, in: "Ana Kovač\n", code: 7, want: "line 1"},
		"append of nothing":        {args: []string{"append"}},
		"bad database URL":         {args: []string{"migrate", "up"}, env: []string{"WORKER_SQLITE_PATH=", "DATABASE_URL=postgres://u:s3cret@:x/"}, code: 2, want: "database-url is not a Postgres URL"},
		"database not up":          {args: []string{"migrate", "up"}, env: []string{"WORKER_SQLITE_PATH= ", "DATABASE_URL=postgres://u:s3cret@127.0.0.1:1/db"}, code: 6, want: "unavailable"},
		"bad broker URL":           {args: []string{"dlq", "list"}, env: []string{"RABBITMQ_URL=http://u:s3cret@127.0.0.1/"}, code: 2, want: "rabbitmq-url is not amqp"},
		"broker not up":            {args: []string{"dlq", "ingest"}, env: []string{"RABBITMQ_URL=amqp://u:s3cret@127.0.0.1:1/"}, code: 6, want: "unavailable"},
		"letters without a broker": {args: []string{"dlq", "list"}, env: []string{"RABBITMQ_URL=amqp://u:s3cret@127.0.0.1:1/"}, want: "the number of dead letters in queue healz.events.failed is unknown"},
		"nothing to ingest from":   {args: []string{"dlq", "ingest"}, code: 2, want: "this needs RabbitMQ"},
		"purge of no age":          {args: []string{"dlq", "purge", "--yes", "--older-than", "0d"}, code: 2, want: "must be a positive duration"},
		"purge of a negative age":  {args: []string{"dlq", "purge", "--yes", "--older-than", "-1h"}, code: 2, want: "must be a positive duration"},
		"purge of an endless age":  {args: []string{"dlq", "purge", "--yes", "--older-than", "99999999d"}, code: 2, want: "must be a positive duration"},
		"purge of a strange age":   {args: []string{"dlq", "purge", "--yes", "--older-than", "old"}, code: 2, want: "must be a positive duration"},
		"purge by age without yes": {args: []string{"dlq", "purge", "--older-than", "90d"}, code: 2, want: "--yes"},
		"replay to nobody":         {args: []string{"dlq", "replay", "--all", "--to", "nobody"}, code: 2, want: `no handler has the name "nobody"`},
		"unknown state":            {args: []string{"dlq", "list", "--state", "lost"}, code: 2, want: "--state must be one of waiting, "},
		"negative letter age":      {args: []string{"run", "--dead-letter-retention", "-1h"}, code: 2, want: "dead-letter-retention must not"},
		"a variable for letters":   {args: []string{"run"}, env: []string{"WORKER_INGEST_DEAD_LETTERS=perhaps"}, code: 2, want: "WORKER_INGEST_DEAD_LETTERS"},
		"SQLite path is a folder":  {args: []string{"events", "--type", "T"}, env: []string{"WORKER_SQLITE_PATH=" + directory}, code: 1, want: "it is not a regular file"},
		"SQLite file is none":      {args: []string{"events", "--type", "T"}, env: []string{"WORKER_SQLITE_PATH=" + garbage}, code: 1, want: "not an SQLite database"},
		"no port":                  {args: []string{"run", "--http-addr", "8080"}, code: 2, want: "http-addr must be"},
		"negative wait":            {args: []string{"run", "--wait", "-1s"}, code: 2, want: "wait must not be negative"},
		"blank path":               {args: []string{"events", "--type", "T", "--sqlite-path", " "}, code: 4, want: "/healz.db (`worker run`"},
		"blank variables":          {args: []string{"events", "--type", "T"}, env: []string{"DATABASE_URL= ", "WORKER_SQLITE_PATH=\t", "RABBITMQ_URL= "}, code: 4, want: "/healz.db (`worker run`"},
		"blank URL":                {args: []string{"dlq", "ingest", "--rabbitmq-url", " "}, code: 2, want: "this needs RabbitMQ"},
		"two stores by variables":  {args: []string{"dlq", "list"}, env: []string{"DATABASE_URL=postgres://u:s3cret@127.0.0.1:1/db"}, code: 2, want: "database-url and sqlite-path contradict each other"},
		"two stores by flags":      {args: []string{"run", "--database-url", "postgres://u:s3cret@127.0.0.1:1/db", "--sqlite-path", "healz.db"}, code: 2, want: "contradict each other"},
		"a file and a variable":    {args: []string{"append", "--sqlite-path", "healz.db"}, env: []string{"DATABASE_URL=postgres://u:s3cret@127.0.0.1:1/db"}, code: 2, want: "contradict each other"},
		"doctor of two stores":     {args: []string{"doctor"}, env: []string{"DATABASE_URL=postgres://u:s3cret@127.0.0.1:1/db"}, code: 2, want: "contradict each other"},
		"an empty flag overrides":  {args: []string{"events", "--type", "T", "--database-url", ""}, env: []string{"DATABASE_URL=postgres://u:s3cret@127.0.0.1:1/db"}, want: "no events"},
		"no database to read":      {args: []string{"events", "--type", "T"}, env: []string{"WORKER_SQLITE_PATH=" + nowhere}, code: 4, want: "there is no database"},
		"no dead letters to read":  {args: []string{"dlq", "list"}, env: []string{"WORKER_SQLITE_PATH=" + nowhere}, code: 4, want: "there is no database"},
		"another's variable":       {args: []string{"events", "--tenant", id}, env: []string{"WORKER_TYPE=T"}, want: "no events"},
		"a command's variable":     {args: []string{"events"}, env: []string{"WORKER_EVENTS_TYPE=T"}, want: "no events"},
		"version":                  {args: []string{"--version"}, want: "schema   Postgres "},
		"no address":               {args: []string{"run", "--http-addr", "nowhere:-1"}, code: 2, want: "nowhere:-1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := *p
			q.t = t
			q.env = append(q.env[:len(q.env):len(q.env)], test.env...)
			r := q.run(test.in, test.args...)
			require.Equal(t, test.code, r.code, "%s%s", r.out, r.err)
			require.Contains(t, r.out+r.err, test.want)
			require.NotContains(t, r.out+r.err, "s3cret")
			require.NotContains(t, r.out+r.err, "Kovač")
		})
	}
}

// Two workers share the partitions; one is killed, and the other consumes its partitions.
func TestPartitions(t *testing.T) {
	t.Parallel()
	p := onServers(t)
	if r := p.run("", "dlq", "ingest", "--partitions", "4"); strings.Contains(r.err, "rabbitmq_consistent_hash_exchange") {
		testservers.Skip(t, r.err)
	}
	survivor := p.start("--partitions", "4")
	victim := p.start("--partitions", "4")
	appendTen := func() []wire {
		var lines strings.Builder
		for range 10 {
			lines.WriteString(registration(uuid.NewString(), `{"name":"Ana"}`, ""))
		}
		return p.append(lines.String())
	}
	require.Eventually(t, func() bool { // under load the first hands some on
		for _, e := range appendTen() {
			p.awaitFollowUp(e, "WelcomeMessageRequested")
		}
		return strings.Contains(victim.log.String(), "outcome=handled")
	}, patience, tick)
	events := appendTen()
	victim.kill()
	for _, e := range append(events, appendTen()...) {
		p.awaitFollowUp(e, "WelcomeMessageRequested")
	}
	r := p.run("", "dlq", "ingest")
	require.Equal(t, 1, r.code, "a command without the setting must not change the topology")
	require.Contains(t, r.err, "--partitions")
	r = p.run("", "dlq", "list", "--partitions", "4")
	require.Equal(t, 0, r.code, r.err)
	require.Equal(t, "no dead letters\n", r.err)
	survivor.stop()

	left := p.start("--leave-partitions")
	p.awaitFollowUp(appendTen()[0], "WelcomeMessageRequested")
	p.must("", "dlq", "list")
	left.stop()
}

func TestTLS(t *testing.T) {
	t.Parallel()
	database, ofDatabase := testservers.PostgresTLS(t)
	broker, ofBroker := testservers.RabbitMQTLS(t)
	client := "&certfile=" + filepath.Join(ofBroker, "client.pem") + "&keyfile=" + filepath.Join(ofBroker, "client.key")
	p := newProgram(t, "DATABASE_URL="+database+"&sslrootcert="+filepath.Join(ofDatabase, "ca.pem"),
		"RABBITMQ_URL="+broker+"?cacertfile="+filepath.Join(ofBroker, "ca.pem")+client)
	w := p.start()
	p.awaitFollowUp(p.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0], "WelcomeMessageRequested")
	w.stop()
	p.env[1] = "RABBITMQ_URL=" + broker + "?cacertfile=" + filepath.Join(ofBroker, "other-ca.pem") + client
	r := p.run("", "run", "--http-addr", "127.0.0.1:0", "--wait", "20s")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.err, "unknown authority")
	require.NotContains(t, r.err, "waiting for a server")
}

func TestServersThatRefuse(t *testing.T) {
	t.Parallel()
	database, broker := testservers.Postgres(t), testservers.RabbitMQ(t)
	t.Run("a database without the schema", func(t *testing.T) {
		t.Parallel()
		p := newProgram(t, "DATABASE_URL="+database)
		for _, args := range [][]string{{"events", "--type", "T"}, {"run", "--migrate=false", "--http-addr", "127.0.0.1:0"}} {
			r := p.run("", args...)
			require.Equal(t, exitNotFound, r.code)
			require.Contains(t, r.err, "migrate up")
		}
	})
	t.Run("a wrong password", func(t *testing.T) {
		t.Parallel()
		wrong := regexp.MustCompile(`//[^@]*@`).ReplaceAllString(broker, "//guest:s3cret@")
		p := embedded(t)
		p.must("", "migrate", "up")
		p.env = append(p.env, "RABBITMQ_URL="+wrong)
		r := p.run("", "dlq", "ingest")
		require.Equal(t, 1, r.code)
		require.Contains(t, r.err, "refused")
		list := p.run("", "dlq", "list")
		require.Equal(t, 0, list.code)
		require.Contains(t, list.err, "refused")
		require.NotContains(t, r.err+list.err, "s3cret")
	})
	t.Run("no rights on the vhost", func(t *testing.T) {
		t.Parallel()
		p := embedded(t)
		p.must("", "migrate", "up")
		p.env = append(p.env, "RABBITMQ_URL="+withUserWhoMay(t, broker, "^$"))
		for _, args := range [][]string{{"dlq", "ingest"}, {"run", "--http-addr", "127.0.0.1:0", "--wait", "1m"}} {
			r := p.run("", args...)
			require.Equal(t, 1, r.code, "it does not wait for what time does not heal")
			require.Contains(t, r.err, "access to exchange")
			require.NotContains(t, r.err, planted)
		}
	})
	t.Run("the schema of a newer version", func(t *testing.T) {
		t.Parallel()
		url := testservers.Postgres(t)
		p := newProgram(t, "DATABASE_URL="+url)
		p.must("", "migrate", "up")
		conn, err := pgx.Connect(t.Context(), url)
		require.NoError(t, err)
		_, err = conn.Exec(t.Context(), `INSERT INTO worker_migrations (version_id, is_applied) VALUES (999, true);
			COMMENT ON TABLE worker_migrations IS 'breaking: 999'`)
		require.NoError(t, err)
		require.NoError(t, conn.Close(t.Context()))
		for _, args := range [][]string{{"migrate", "up"}, {"run", "--http-addr", "127.0.0.1:0"}, {"run", "--migrate=false", "--http-addr", "127.0.0.1:0"}} {
			r := p.run("", args...)
			require.Equal(t, 1, r.code)
			require.Contains(t, r.err, "newer version of the worker")
		}
	})
	t.Run("no such vhost", func(t *testing.T) {
		t.Parallel()
		p := embedded(t)
		p.must("", "migrate", "up")
		p.env = append(p.env, "RABBITMQ_URL="+broker+"-nowhere")
		r := p.run("", "dlq", "ingest")
		require.Equal(t, 1, r.code)
		require.Contains(t, r.err, "refused")
	})
}

func TestAPortInUse(t *testing.T) {
	t.Parallel()
	p := embedded(t)
	w := p.start()
	r := p.run("", "run", "--http-addr", strings.TrimPrefix(w.url, "http://"))
	require.Equal(t, 1, r.code)
	require.Contains(t, r.err, "address already in use")
}

func TestMigrations(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T) *program{"embedded": embedded, "servers": onServers} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := open(t)
			p.must("", "migrate", "up")
			p.must("", "migrate", "up")
			statuses := decodeLines[struct {
				Version int64 `json:"version"`
			}](t, p.must("", "migrate", "status", "--format", "json"))
			require.Equal(t, int64(1), statuses[0].Version)
			known := decodeLines[map[string]any](t, p.must("", "version", "--format", "json"))[0]
			require.EqualValues(t, statuses[len(statuses)-1].Version,
				known[map[string]string{"embedded": "schema_sqlite", "servers": "schema_postgres"}[name]])
			p.must("", "migrate", "down", "--yes")
			p.must("", "migrate", "up")
			p.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))
			r := p.run("", "migrate", "down", "--yes")
			for r.code == 0 {
				r = p.run("", "migrate", "down", "--yes")
			}
			require.Equal(t, 1, r.code)
			require.Contains(t, r.err, "would be lost")
			require.Contains(t, p.must("", "events", "--type", "PatientRegistered"), "PatientRegistered")
		})
	}
}

// A database is restored from the dump of another cluster, under a running worker.
func TestRestored(t *testing.T) {
	t.Parallel()
	p := newProgram(t, "DATABASE_URL="+testservers.Postgres(t))
	worker := p.start()
	p.awaitFollowUp(p.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0], "WelcomeMessageRequested")
	require.Contains(t, p.must("", "migrate", "restored"), "nothing to do")
	conn, err := pgx.Connect(t.Context(), strings.TrimPrefix(p.env[0], "DATABASE_URL="))
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), `SET session_replication_role = replica;
		UPDATE events SET transaction_id = '1000000000000';
		UPDATE relay_position SET transaction_id = '1000000000000', id = (SELECT max(id) FROM events)`)
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
	later := p.append(registration(uuid.NewString(), `{"name":"Ben"}`, ""))[0]

	require.Eventually(t, func() bool {
		status, body := worker.get("/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "worker migrate restored")
	}, patience, 10*time.Millisecond)
	require.Contains(t, p.run("", "doctor").out, "run `worker migrate restored`")
	r := p.run("", "run")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.err, "worker migrate restored")
	require.Regexp(t, `^restored events: \d+, of which 0 are not relayed yet; appended since: 1\n$`, p.must("", "migrate", "restored"))

	p.awaitFollowUp(later, "WelcomeMessageRequested")
	require.Eventually(t, func() bool { return worker.ready() == http.StatusOK }, patience, 10*time.Millisecond)
	require.Contains(t, p.must("", "migrate", "restored"), "nothing to do")
}

// A stop waits at most the grace period for a handler; a second SIGTERM ends the worker at once.
func TestStoppingWhileAHandlerDoesNotReturn(t *testing.T) {
	t.Parallel()
	line := strings.Replace(registration(uuid.NewString(), "{}", ""), "PatientRegistered", stubbornType, 1)
	begin := func(args ...string) *running {
		p := embedded(t)
		w := p.start(args...)
		p.append(line)
		require.Eventually(t, func() bool { return strings.Contains(w.log.String(), "stubborn: begun") }, patience, tick)
		return w
	}
	begin("--grace-period", "1s").stop()

	w := begin("--grace-period", "10m")
	require.NoError(t, w.cmd.Process.Signal(syscall.SIGTERM))
	require.Eventually(t, func() bool { return strings.Contains(w.log.String(), "worker is stopping") }, patience, tick)
	require.NoError(t, w.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-w.done:
	case <-time.After(patience):
		require.Fail(t, "it waits for its handler")
	}
	require.Equal(t, -1, w.cmd.ProcessState.ExitCode(), "ended by the signal")
}

// With --wait, a worker without its servers is alive, not ready, and can be stopped.
func TestWaiting(t *testing.T) {
	t.Parallel()
	p := newProgram(t, "DATABASE_URL=postgres://u:p@127.0.0.1:1/db")
	w := p.launch("--wait", "1m")
	status, _ := w.get("/healthz")
	require.Equal(t, http.StatusOK, status)
	status, body := w.get("/readyz")
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.Contains(t, body, "starting")
	require.Eventually(t, func() bool { return strings.Contains(w.log.String(), "waiting for a server") }, patience, tick)
	w.stop()
}

func TestDemo(t *testing.T) {
	t.Parallel()
	out := newProgram(t).must("", "demo", "--once")
	for _, want := range []string{"WelcomeMessageRequested", "ReminderScheduled", "refused", "chaos: failure", "dlq replay", "No event was lost"} {
		require.Contains(t, strings.ToLower(out), strings.ToLower(want))
	}
}

// With a JSON log each line of a worker that cannot start is JSON, and a duration says its unit.
func TestAFatalErrorIsJSONInAJSONLog(t *testing.T) {
	t.Parallel()
	p := embedded(t)
	p.env = append(p.env, "WORKER_LOG_FORMAT=json")
	for _, args := range [][]string{
		{"--rabbitmq-url", "amqp://guest:guest@127.0.0.1:1/"}, {"--http-addr", "nowhere"}, {"--no-such-flag"}, {"--log-level", "loud"},
	} {
		r := p.run("", append([]string{"run"}, args...)...)
		require.NotZero(t, r.code)
		lines := decodeLines[map[string]any](t, r.err)
		require.NotEmpty(t, lines)
		last := lines[len(lines)-1]
		require.Equal(t, "ERROR", last["level"])
		require.NotEmpty(t, last["error"])
	}
	require.Regexp(t, `"wait_ms":\d`, p.run("", "run", "--rabbitmq-url", "amqp://guest:guest@127.0.0.1:1/", "--wait", "3s").err)

	p = embedded(t)
	worker := p.start()
	p.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))
	worker.stop()
	require.Contains(t, worker.log.String(), "grace_period_ms=20000")
	require.NotContains(t, worker.log.String(), "level=ERROR")
}

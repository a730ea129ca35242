package console_test

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/cli"
	"github.com/healz/worker/internal/console"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/test/testservers"
)

// patience bounds the time that a test waits.
const patience = 90 * time.Second

// asWorker makes the test program the worker.
const asWorker = "TEST_AS_WORKER"

func TestMain(m *testing.M) {
	if os.Getenv(asWorker) != "" {
		os.Exit(cli.Main(clinic.Register, cli.Demo()))
	}
	flag.String("screenshots", "", "folder for the screenshots that the tests take")
	testservers.Main(m)
}

// demo is a live demo of the real program, with a browser.
type demo struct {
	url, guide string
	allocator  context.Context
}

// startDemo starts the program's demo, and returns when the failing appointment is in the dead letters.
func startDemo(t *testing.T) demo {
	t.Helper()
	d := newDemo(t)
	output := d.start(t, (*exec.Cmd).StdoutPipe, "demo", "--http-addr", "127.0.0.1:0")
	for output.Scan() && !strings.Contains(output.Text(), "worker doctor") {
		d.guide += output.Text() + "\n"
	}
	require.NoError(t, output.Err())
	d.url = d.find(t, `clinics: (\S+)`)
	return d
}

func newDemo(t *testing.T) demo {
	t.Helper()
	return demo{allocator: newBrowser(t)}
}

func newBrowser(t *testing.T) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(testservers.Chromium(t)), chromedp.NoSandbox,
		chromedp.Flag("disable-dev-shm-usage", true))
	allocator, end := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(end)
	return allocator
}

// start starts the program, and returns what it writes.
func (d demo) start(t *testing.T, pipe func(*exec.Cmd) (io.ReadCloser, error), args ...string) *bufio.Scanner {
	t.Helper()
	return d.scan(t, d.command(t, args...), pipe)
}

// command is a command of the program, without servers.
func (demo) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	command := exec.Command(os.Args[0], args...)
	command.Dir = t.TempDir()
	command.Env = append(os.Environ(), asWorker+"=1", "TMPDIR="+command.Dir, "DATABASE_URL=", "RABBITMQ_URL=")
	return command
}

// scan starts a command that runs until the end of the test, and returns what it writes.
func (demo) scan(t *testing.T, command *exec.Cmd, pipe func(*exec.Cmd) (io.ReadCloser, error)) *bufio.Scanner {
	t.Helper()
	output, err := pipe(command)
	require.NoError(t, err)
	require.NoError(t, command.Start())
	t.Cleanup(func() {
		require.NoError(t, command.Process.Signal(syscall.SIGTERM))
		require.NoError(t, command.Wait())
	})
	return bufio.NewScanner(output)
}

// find returns a match in the guide of the demo.
func (d demo) find(t *testing.T, pattern string) string {
	t.Helper()
	found := regexp.MustCompile(pattern).FindStringSubmatch(d.guide)
	require.Len(t, found, 2, "%s in %s", pattern, d.guide)
	return found[1]
}

// tab is a page in a browser. Errors in it fail the test.
type tab struct {
	context.Context //nolint:containedctx // a tab is a context to chromedp
	t               *testing.T
	demo            demo
	// expected are texts of errors that are expected.
	expected []string
}

// screen is the screen of a browser.
type screen struct {
	width, height int64
	scheme        string
	noScript      bool
}

func desktop() screen { return screen{width: 1180, height: 940, scheme: "light"} }

func (d demo) open(t *testing.T, s screen) *tab {
	t.Helper()
	ctx, end := chromedp.NewContext(d.allocator)
	t.Cleanup(end)
	ctx, cancel := context.WithTimeout(ctx, 4*patience)
	t.Cleanup(cancel)
	b := &tab{Context: ctx, t: t, demo: d}
	var mu sync.Mutex
	var problems []string
	require.NoError(t, chromedp.Listen(ctx, func(event any) {
		mu.Lock()
		defer mu.Unlock()
		switch e := event.(type) {
		case *log.EventEntryAdded:
			problems = append(problems, e.Entry.Text)
		case *runtime.EventExceptionThrown:
			problems = append(problems, e.ExceptionDetails.Text)
		case *network.EventRequestWillBeSent:
			if !strings.HasPrefix(e.Request.URL, d.url) && !strings.HasPrefix(e.Request.URL, "data:") {
				problems = append(problems, "a request to "+e.Request.URL)
			}
		}
	}))
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		require.Empty(t, slices.DeleteFunc(problems, func(p string) bool {
			return slices.ContainsFunc(b.expected, func(text string) bool { return strings.Contains(p, text) })
		}))
	})
	call(b, log.Enable, cdp.Empty{})
	call(b, network.Enable, network.EnableParams{})
	call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: s.width, Height: s.height, DeviceScaleFactor: 1, Mobile: s.width < 600,
	})
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: s.scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
	}})
	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: s.noScript})
	return b
}

// call runs a command of the browser's protocol.
func call[P, R any](b *tab, command cdp.Command[P, R], params P) {
	b.t.Helper()
	_, err := chromedp.Call(b, command, params)
	require.NoError(b.t, err, command.Method)
}

// run runs an action in a tab, and returns its result.
func run[T any](b *tab, a chromedp.Action[T]) T {
	b.t.Helper()
	result, err := chromedp.Run(b, a)
	require.NoError(b.t, err)
	return result
}

// visit opens a page of the console.
func (b *tab) visit(path string) {
	b.t.Helper()
	run(b, chromedp.Navigate(b.demo.url+path))
	b.sound()
}

// click clicks an element, and waits for the next page.
func (b *tab) click(selector string) {
	b.t.Helper()
	_, err := chromedp.RunResponse(b, chromedp.Click(chromedp.CSS(selector)))
	require.NoError(b.t, err, selector)
	b.sound()
}

// text is the text of an element.
func (b *tab) text(selector string) string {
	b.t.Helper()
	return run(b, textOf(selector))
}

func textOf(selector string) chromedp.Action[string] {
	return chromedp.Evaluate[string](fmt.Sprintf(`(document.querySelector(%q)?.textContent ?? "").trim()`, selector))
}

// waitFor waits until the text of an element matches.
func (b *tab) waitFor(selector, pattern string) {
	b.t.Helper()
	var last string
	require.Eventually(b.t, func() bool {
		text, err := chromedp.Run(b, textOf(selector)) // fails while the page is loaded again
		last = text
		return err == nil && regexp.MustCompile(pattern).MatchString(last)
	}, patience, 100*time.Millisecond, "%s in %s", pattern, selector)
}

// waitForPage reloads the page until its text matches.
func (b *tab) waitForPage(selector, pattern string) {
	b.t.Helper()
	require.Eventually(b.t, func() bool {
		run(b, chromedp.Reload())
		return regexp.MustCompile(pattern).MatchString(b.text(selector))
	}, patience, 200*time.Millisecond, "%s in %s", pattern, selector)
}

// sound checks that a page fits its screen, and is accessible to a screen reader.
func (b *tab) sound() {
	b.t.Helper()
	problems := run(b, chromedp.Evaluate[[]string](`(() => {
		const wrong = [], is = (bad, what) => { if (bad) wrong.push(what) };
		is(document.documentElement.scrollWidth > innerWidth, "it is wider than the screen: " + document.documentElement.scrollWidth);
		is(document.querySelectorAll("h1").length !== 1, "it has not one h1");
		is(document.querySelectorAll("main, header").length < 2, "it lacks landmarks");
		is(!document.documentElement.lang, "it has no language");
		is(!document.title, "it has no title");
		for (const e of document.querySelectorAll("input:not([type=hidden]), select")) is(!e.labels.length && !e.ariaLabel, "no label: " + e.outerHTML);
		for (const e of document.querySelectorAll("button, a")) is(!(e.textContent.trim() || e.ariaLabel), "no name: " + e.outerHTML);
		for (const e of document.querySelectorAll("table")) is(!e.querySelector("th[scope=col]"), "no headers: " + e.outerHTML);
		const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
		is(new Set(ids).size !== ids.length, "ids occur twice: " + ids);
		for (const e of document.querySelectorAll("[aria-labelledby]"))
			is(!document.getElementById(e.getAttribute("aria-labelledby")), "labelled by nothing: " + e.outerHTML);
		return wrong;
	})()`))
	require.Empty(b.t, problems)
}

// shoot takes a screenshot, for the directory of the flag.
func (b *tab) shoot(name string) {
	b.t.Helper()
	image := run(b, chromedp.CaptureScreenshot())
	require.True(b.t, bytes.HasPrefix(image, []byte("\x89PNG")))
	if folder := flag.Lookup("screenshots").Value.String(); folder != "" {
		require.NoError(b.t, os.MkdirAll(folder, 0o755))
		require.NoError(b.t, os.WriteFile(filepath.Join(folder, name+".png"), image, 0o644))
	}
}

// Each page is correct on each screen.
func TestPagesInBrowser(t *testing.T) {
	t.Parallel()
	d := startDemo(t)
	trace, letter := "/traces/"+d.find(t, `worker trace (\S+)`), "/dead-letters/letter/"+d.find(t, `worker dlq show (\S+)`)
	for name, s := range map[string]screen{
		"light":      desktop(),
		"dark":       {width: 1180, height: 940, scheme: "dark"},
		"phone":      {width: 390, height: 844, scheme: "light"},
		"phone-dark": {width: 390, height: 844, scheme: "dark"},
		"no-script":  {width: 1180, height: 940, scheme: "light", noScript: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := d.open(t, s)
			b.visit("/")
			require.Contains(t, b.text("main"), "book-appointment")
			if !s.noScript {
				b.waitFor(".flow", `\d/s`)
			}
			b.shoot("overview-" + name)
			b.visit("/events")
			require.Contains(t, b.text("main"), "PatientRegistered")
			b.shoot("events-" + name)
			b.visit("/dead-letters")
			require.Contains(t, b.text("main"), "patient has no name")
			b.shoot("dead-letters-" + name)
			b.visit(letter)
			require.Contains(t, b.text(".failure"), "has no opening hours")
			b.shoot("dead-letter-" + name)
			b.click(".ids a[href^='/aggregates/']")
			b.shoot("aggregate-" + name)
			b.click(".history a.strong")
			require.Contains(t, b.text("h1"), "AppointmentRequested")
			require.Equal(t, "ClinicOpened", b.text(".causes li:first-child"))
			b.shoot("event-" + name)
			b.visit(trace)
			require.Contains(t, b.text("main"), "has no opening hours")
			b.shoot("trace-" + name)
			dark := run(b, chromedp.Evaluate[string](`getComputedStyle(document.body).backgroundColor`)) == "rgb(14, 17, 22)"
			require.Equal(t, s.scheme == "dark", dark)
			if !s.noScript {
				return
			}
			// The theme is a form, and needs no script.
			b.click(".to-dark")
			require.Contains(t, b.text("main"), "has no opening hours")
			b.shoot("trace-chosen-dark")
		})
	}
}

// A new user finds out why an appointment failed and what caused it, and replays it.
func TestFindAndReplayInBrowser(t *testing.T) {
	t.Parallel()
	d := startDemo(t)
	b := d.open(t, desktop())
	b.visit("/")
	require.Contains(t, b.text(".groups"), "has no opening hours")
	b.visit(run(b, chromedp.Evaluate[string](`[...document.querySelectorAll(".groups li")].find(
		(e) => e.textContent.includes("has no opening hours")).querySelector("a.button").getAttribute("href")`)))
	b.click(`td.act a[href^="/traces/"]`)
	require.Equal(t, "ClinicOpened", b.text(".tree td a.strong"))
	require.Contains(t, b.text(".tree .failed"), "has no opening hours")
	require.Equal(t, "✕ AppointmentRequested", b.text(".trace .failed .label"))

	b.click(".tree .failure a.button")
	b.click(`form[action^="/dead-letters/try"] button`)
	require.Contains(t, b.text("main"), "0 of 1 would pass")
	b.shoot("try")
	b.visit("/traces/" + d.find(t, `worker trace (\S+)`))
	b.click(`.tree td a[href^="/aggregates/Clinic/"]`)
	b.click(`a[href^="/append?"]`)
	for field, value := range map[string]string{"event_type": "ClinicHoursSet", "event_data": `{"opens":"08:00","closes":"17:00"}`, "reason": "they were forgotten"} {
		run(b, chromedp.SetValue(chromedp.CSS("#"+field), value))
	}
	b.click(".append button")
	require.Contains(t, b.text("main"), "not appended yet")
	b.shoot("append")
	b.click(".confirm button")
	require.Equal(t, "ClinicHoursSet", b.text("h1"))
	b.visit("/dead-letters/letter/" + d.find(t, `worker dlq show (\S+)`))
	b.click(`form[action^="/dead-letters/try"] button`)
	require.Contains(t, b.text("main"), "1 of 1 would pass")

	b.click(`a[href^="/dead-letters/replay?"]`)
	require.Equal(t, "Replay 1 dead letter?", b.text("h1"))
	b.shoot("confirm")
	b.click(`form[action="/dead-letters/replay"] .primary`)
	b.waitFor("main .state", "done")
	b.shoot("replay")
	require.Regexp(t, `1\s*handled`, b.text(".figures"))
	b.click(`td a[href^="/dead-letters/letter/"]`)
	require.Equal(t, "handled", b.text("main .state"))
	require.Empty(t, b.text(`a[href^="/dead-letters/replay?"]`))
	b.shoot("dead-letter-handled")
	b.click(`.head a[href^="/traces/"]`)
	b.waitForPage(`.tree`, "ReminderScheduled")
	require.Empty(t, run(b, chromedp.Evaluate[[]string](`[...document.querySelectorAll(".row.failed, tr.failed")].map((e) => e.outerHTML)`)))
	b.shoot("trace-mended")

	b.click(`.tree td a[href^="/aggregates/Appointment/"]`)
	b.click(`form[action$="/reveal"] button`)
	require.Contains(t, b.text(".states"), "starts_at")
	require.Contains(t, b.text("main"), `"scheduled": true`)
	b.shoot("aggregate-revealed")
}

// Lists of many letters, notices and the pages of letters in all states fit on each screen.
func TestLettersInBrowser(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, console.Config{
		Access: console.Access{Write: true}, Try: passAll, Queued: func(context.Context) (int, error) { return 12, nil },
	})
	var list []deadletter.Letter
	for i := range 60 {
		e, err := events.New(events.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, clinic.PatientRegistered{Name: secret})
		require.NoError(t, err)
		list = append(list, deadletter.Letter{ID: fmt.Sprintf("%026d", i), Body: bodyOf(t, e), Failure: deadletter.Failure{
			Handler: "welcome-patient", Reason: "the address service answers with status 503: " + strings.Repeat("unavailable, ", i%4), Attempts: 3,
		}})
	}
	s.ingest(list...)
	ctx := t.Context()
	archived := deadletter.Filter{IDs: []string{list[0].ID}}
	_, err := s.table.PutAside(ctx, archived, deadletter.Archived, audit.Actor{By: "Kim", Reason: "the patient has moved to another clinic"})
	require.NoError(t, err)
	edited, err := s.table.Edit(ctx, list[1].ID, func(body []byte, _ func([]byte) error) ([]byte, error) {
		return deadletter.Patch(body, []byte(`{"metadata": {"a": "b"}}`))
	}, audit.Actor{By: "Kim", Reason: "a typo"})
	require.NoError(t, err)
	require.NoError(t, s.table.Settled(ctx, list[2].ID, "01K0000000000000000000000A", []string{"welcome-patient"}, true))
	d := demo{url: s.URL, allocator: newBrowser(t)}
	for name, screen := range map[string]screen{"desktop": desktop(), "phone": {width: 390, height: 844, scheme: "light"}} {
		b := d.open(t, screen)
		for _, page := range []string{"/", "/dead-letters"} {
			b.visit(page)
			require.Contains(t, b.text("main"), "12 dead letters are in RabbitMQ's failed queue")
			b.shoot("letters" + strings.ReplaceAll(page, "/", "-") + "-" + name)
		}
		run(b, chromedp.Evaluate[bool](`[...document.querySelectorAll("input[name=id]")].slice(0, 2).every((e) => { e.click(); return e.checked })`))
		b.click(`button[formaction="/dead-letters/archive"]`)
		require.Equal(t, "Archive 2 dead letters?", b.text("h1"))
		b.shoot("confirm-" + name)
		b.visit("/dead-letters")
		b.click("a[rel=next]")
		require.Contains(t, b.text("main"), "Newest")
		b.shoot("letters-older-" + name)
		for state, id := range map[string]string{
			"waiting": list[3].ID, "archived": list[0].ID, "replaying": edited.LetterID, "edited": edited.OriginalID, "handled": list[2].ID,
		} {
			b.visit("/dead-letters/letter/" + id)
			require.Equal(t, state, b.text("main .state"))
			b.shoot("letter-" + state + "-" + name)
		}
	}
}

// A user signs in with a token, and out again.
func TestLoginInBrowser(t *testing.T) {
	t.Parallel()
	d := newDemo(t)
	output := d.start(t, (*exec.Cmd).StderrPipe, "run", "--http-addr", "127.0.0.1:0", "--console-token", readToken)
	for output.Scan() && !strings.Contains(output.Text(), "worker is running") {
		d.guide += output.Text() + "\n"
	}
	d.url = d.find(t, `address=(\S+)`)
	b := d.open(t, desktop())
	logIn := func(token string) {
		run(b, chromedp.SetValue(chromedp.CSS("#who"), "Kim"))
		run(b, chromedp.SetValue(chromedp.CSS("#token"), token))
		b.click(".login button")
	}
	b.visit("/dead-letters")
	require.Contains(t, b.text("h1"), "Sign in")
	b.shoot("login")
	b.expected = []string{"401"}
	logIn("not the token of it")
	require.Contains(t, b.text(".login [role=alert]"), "The token is wrong")
	logIn(readToken)
	require.Contains(t, b.text("header"), "Kim · reader")
	require.Contains(t, b.text("h1"), "Dead letters")
	b.visit("/")
	require.Contains(t, b.text("main"), "No dead letters.")
	b.shoot("overview-empty")
	require.Empty(t, b.text("#stale:not([hidden])"))
	// Another tab of the same browser signs out; this one shows that.
	b.expected = append(b.expected, "EventSource")
	run(b, chromedp.Evaluate[bool](`fetch("/logout", {
		method: "POST", body: new URLSearchParams(new FormData(document.querySelector("form[action='/logout']"))),
	}).then((response) => response.ok)`, chromedp.EvalAwaitPromise))
	b.waitFor("#stale:not([hidden])", "no longer updated")
	b.click("#stale a")
	require.Contains(t, b.text("h1"), "Sign in")
}

// The console can be used with the keyboard only.
func TestKeyboardInBrowser(t *testing.T) {
	t.Parallel()
	d := startDemo(t)
	b := d.open(t, desktop())
	b.visit("/events")
	focused := func() string {
		return run(b, chromedp.Evaluate[string](`document.activeElement.textContent.trim() || document.activeElement.id`))
	}
	run(b, chromedp.KeyEvent(kb.Tab))
	require.Equal(t, "Skip to the content", focused())
	run(b, chromedp.KeyEvent(kb.Enter))
	require.Equal(t, "main", run(b, chromedp.Evaluate[string](`document.activeElement.id`)))
	run(b, chromedp.KeyEvent(kb.Tab))
	require.Equal(t, "Append an event…", focused())
	run(b, chromedp.KeyEvent("/"))
	require.Equal(t, "find", focused())
	run(b, chromedp.KeyEvent("a/b"))
	require.Regexp(t, "a/b$", run(b, chromedp.Evaluate[string](`document.activeElement.value`)), "in a field it is a character")
	run(b, chromedp.Evaluate[bool](`document.querySelector(".head .button").focus(), true`))
	run(b, chromedp.KeyEvent(kb.Tab))
	require.Equal(t, "type", focused())
	outlined := run(b, chromedp.Evaluate[string](`getComputedStyle(document.activeElement).outlineStyle`))
	require.Equal(t, "solid", outlined)
	run(b, chromedp.KeyEvent("PatientRegistered"))
	_, err := chromedp.RunResponse(b, chromedp.KeyEvent(kb.Enter))
	require.NoError(t, err)
	b.sound()
	require.NotContains(t, b.text("tbody"), "Appointment")
	require.Contains(t, b.text("tbody"), "PatientRegistered")
}

package console_test

import (
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/test/posix"
	"github.com/healz/worker/internal/test/testservers"
)

// An operator watches the console while Postgres stops and the worker is frozen: it never says anything false.
func TestOutagesInBrowser(t *testing.T) {
	t.Parallel()
	server, err := testservers.StartPostgres(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop()) })
	d := newDemo(t)
	tenant := uuid.NewString()
	worker := d.command(t, "run", "--http-addr", "127.0.0.1:0", "--database-url", server.URL(), "--console-write")
	output := d.scan(t, worker, (*exec.Cmd).StderrPipe)
	for output.Scan() && !strings.Contains(output.Text(), "worker is running") {
		d.guide += output.Text() + "\n"
	}
	d.url = d.find(t, `address=(\S+)`)
	go func() {
		for output.Scan() { // so that the worker can write its log
		}
	}()
	appending := d.command(t, "append", "--database-url", server.URL())
	appending.Stdin = strings.NewReader(`{"event_type":"PatientRegistered","aggregate_type":"Patient","aggregate_id":"` + uuid.NewString() + `","tenant_id":"` + tenant + `","event_data":{}}`)
	said, err := appending.CombinedOutput()
	require.NoError(t, err, string(said))

	b := d.open(t, desktop())
	b.expected = []string{"503", "504"} // of pages during the outage
	b.visit("/")
	b.waitFor("#badge", `^1$`)
	b.waitFor(`[data-part="failing"]`, "patient has no name")
	pages := d.open(t, desktop())
	pages.expected = b.expected
	pages.visit("/events")

	writer := d.open(t, desktop())
	writer.expected = b.expected
	writer.visit("/append")
	for field, value := range map[string]string{
		"event_type": "ClinicOpened", "aggregate_type": "Clinic", "aggregate_id": uuid.NewString(), "tenant_id": tenant, "event_data": "{}", "reason": "it opens",
	} {
		run(writer, chromedp.SetValue(chromedp.CSS("#"+field), value))
	}
	writer.click(".append button")

	b.point(`[data-part="failing"] h3 a`) // the pointer rests on a link of a list
	require.NoError(t, server.Kill())
	b.waitFor("main .state", "^Not ready$")
	b.waitFor("#badge", `^\?$`)
	b.waitFor(".parts", `store down since [\d:]+ UTC`)
	b.waitFor(".wide", `Dead letters\s*–\s*cannot be read`)
	require.Regexp(t, `Store\s*lag –\s*down, see below`, b.text(".wide"))
	b.waitFor(`[data-part="failing"] .held:not([hidden])`, `not updated while you use this list: as of [\d:]+ UTC`)
	b.point("h1")
	b.waitFor(`[data-part="failing"]`, `The dead letters cannot be read: this is from [\d:]+ UTC, .* ago\.`)
	require.Contains(t, b.text(`[data-part="failing"]`), "patient has no name", "what was read last")
	b.waitFor(`[data-part="latest"]`, `The events cannot be read: this is from [\d:]+ UTC`)
	require.Contains(t, b.text(`[data-part="latest"]`), "PatientRegistered")
	b.shoot("overview-outage")
	pages.visit("/events")
	require.Contains(t, pages.text("main"), "The store is unavailable: nothing can be read or changed now.")
	require.Regexp(t, `search events: the store is unavailable: \S`, pages.text("main"), "the cause")
	require.NotContains(t, pages.text("main"), "No events")

	writer.click(".confirm button")
	require.Contains(t, writer.text("main"), "The store is unavailable: try again.")

	require.NoError(t, server.Start())
	b.waitFor("main .state", "^Ready$")
	b.waitFor("#badge", `^1$`)
	require.Eventually(t, func() bool { return !strings.Contains(b.text("main"), "cannot be read") }, patience, 100*time.Millisecond)
	pages.waitFor("tbody", "PatientRegistered") // the page has tried again by itself

	writer.click(".confirm button")
	require.Equal(t, "ClinicOpened", writer.text("h1"), "what was entered is not lost")

	require.NoError(t, worker.Process.Signal(posix.SIGSTOP))
	b.waitFor("#stale:not([hidden])", `no longer updated since [\d:]+ UTC`)
	at := func(selector string) time.Time {
		read, err := time.Parse(time.TimeOnly, regexp.MustCompile(`\d\d:\d\d:\d\d`).FindString(b.text(selector)))
		require.NoError(t, err)
		return read
	}
	require.WithinDuration(t, at("main .head"), at("#stale"), 3*time.Second, "since the last update")
	require.Equal(t, `"(last known)"`, run(b, chromedp.Evaluate[string](`getComputedStyle(document.querySelector("main .state"), "::after").content`)))
	require.NoError(t, worker.Process.Signal(posix.SIGCONT))
	require.Eventually(t, func() bool { return b.text("#stale:not([hidden])") == "" }, patience, 100*time.Millisecond)
}

// point moves the pointer to an element.
func (b *tab) point(selector string) {
	b.t.Helper()
	at := run(b, chromedp.Evaluate[[]float64](fmt.Sprintf(`(() => {
		const box = document.querySelector(%q).getBoundingClientRect();
		return [box.x + box.width / 2, box.y + box.height / 2];
	})()`, selector)))
	run(b, chromedp.MouseEvent("mouseMoved", at[0], at[1]))
}

// Package fleet runs workers as processes of their own, for programs that harm them and look at them from outside.
package fleet

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/healz/worker/internal/test/posix"
	"github.com/healz/worker/internal/test/wait"
)

const (
	// graceMargin is what ending takes besides the grace period.
	graceMargin = 3 * time.Second
	// StartLimit is how long a worker may take from its start until it is ready.
	StartLimit = time.Minute
	// askLimit bounds a question to a worker.
	askLimit = 3 * time.Second
	// longestLine is the longest line of a worker's log that is read.
	longestLine = 1 << 20
)

// Config says which workers to run.
type Config struct {
	// Program is the worker's program, and Folder where it runs and its logs are.
	Program, Folder string
	Env             []string
	// Args are the arguments of worker i.
	Args func(i int) []string
	// Grace is the workers' grace period.
	Grace time.Duration
	// Blame is called with what a worker does that it must not, and the promise that this breaks.
	Blame func(promise, format string, args ...any)
}

// Fleet is the workers that run, each a process of its own.
type Fleet struct {
	Config

	http http.Client

	mu      sync.Mutex
	workers []*running
}

// running is one start of a worker.
type running struct {
	name    string
	command *exec.Cmd
	done    chan struct{} // closed when it has ended and its log is complete

	mu       sync.Mutex
	url      string // "" until it serves
	expected bool   // that it ends
}

// New returns a fleet without workers.
func New(c Config) *Fleet { return &Fleet{Config: c, http: http.Client{Timeout: askLimit}} }

// Launch starts n workers and waits until they are ready.
func (f *Fleet) Launch(ctx context.Context, n int) error {
	f.workers = make([]*running, n)
	for i := range n {
		if err := f.Start(ctx, i); err != nil {
			return err
		}
	}
	if !f.AwaitReady(ctx, StartLimit) {
		return errors.New("the workers did not become ready: see their logs")
	}
	return nil
}

// Start starts worker i.
func (f *Fleet) Start(ctx context.Context, i int) error {
	name := fmt.Sprintf("worker-%d", i+1)
	log, err := os.OpenFile(filepath.Join(f.Folder, name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", name, err)
	}
	c := exec.CommandContext(context.WithoutCancel(ctx), f.Program, f.Args(i)...)
	c.Env, c.Dir = f.Env, f.Folder
	c.SysProcAttr = &syscall.SysProcAttr{}
	posix.NewGroup(c.SysProcAttr) // a Ctrl-C is the harness's to pass on
	output, err := c.StderrPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", name, err), log.Close())
	}
	w := &running{name: name, command: c, done: make(chan struct{})}
	go f.attend(w, output, log)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.workers[i] = w
	return nil
}

// attend keeps the log of a worker, and notes how it ends.
func (f *Fleet) attend(w *running, output io.Reader, log *os.File) {
	defer close(w.done)
	lines := bufio.NewScanner(output)
	lines.Buffer(nil, longestLine)
	for lines.Scan() {
		fmt.Fprintln(log, lines.Text())
		if _, url, found := strings.Cut(lines.Text(), "address="); found {
			w.mu.Lock()
			w.url = url
			w.mu.Unlock()
		}
	}
	err := w.command.Wait()
	fmt.Fprintf(log, "--- %s has ended: %v\n", w.name, w.command.ProcessState)
	_ = log.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.expected {
		f.Blame("P10", "%s ended by itself: %v", w.name, err)
	}
}

// Size is how many workers there are.
func (f *Fleet) Size() int { return len(f.workers) }

func (f *Fleet) worker(i int) *running {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.workers[i]
}

// Kill kills worker i as kill -9 does.
func (f *Fleet) Kill(i int) {
	w := f.worker(i)
	w.expectEnd()
	_ = w.command.Process.Signal(syscall.SIGKILL) // it may have ended
	<-w.done
}

// Stop stops worker i with SIGTERM, and blames it if it does not end in good order and in time.
func (f *Fleet) Stop(i int) {
	w := f.worker(i)
	w.expectEnd()
	began := time.Now()
	_ = w.command.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-w.done:
		if code := w.command.ProcessState.ExitCode(); code != 0 {
			f.Blame("P8", "%s, told to stop, ended with code %d", w.name, code)
		}
	case <-time.After(f.Grace + graceMargin):
		f.Blame("P8", "%s, told to stop, still ran after %s", w.name, time.Since(began).Round(time.Second))
		_ = w.command.Process.Signal(syscall.SIGKILL)
		<-w.done
	}
}

// Signal sends worker i a signal.
func (f *Fleet) Signal(i int, s syscall.Signal) { _ = f.worker(i).command.Process.Signal(s) }

// End kills what still runs.
func (f *Fleet) End() {
	for i := range f.Size() {
		if f.worker(i) != nil {
			f.Kill(i)
		}
	}
}

func (w *running) expectEnd() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expected = true
}

// URL is where worker i serves its pages, "" until it does.
func (f *Fleet) URL(i int) string {
	w := f.worker(i)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.url
}

// Health is what a worker says of itself.
type Health struct {
	Ready bool              `json:"ready"`
	Parts map[string]string `json:"parts"`
}

// Ask asks worker i how it is. An answer that does not come is one that says no.
func (f *Fleet) Ask(ctx context.Context, i int) (h Health, answered bool) {
	url := f.URL(i)
	if url == "" {
		return Health{}, false
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", nil)
	if err != nil {
		return Health{}, false
	}
	response, err := f.http.Do(request)
	if err != nil {
		return Health{}, false
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&h); err != nil {
		return Health{}, false
	}
	return h, true
}

// Leader is the worker that relays, or the first one if none says so.
func (f *Fleet) Leader(ctx context.Context) int {
	for i := range f.Size() {
		h, _ := f.Ask(ctx, i)
		if relay := h.Parts["relay"]; relay == "ok (relaying)" || relay == "ok (idle)" {
			return i
		}
	}
	return 0
}

// AwaitReady waits until all workers are ready.
func (f *Fleet) AwaitReady(ctx context.Context, limit time.Duration) bool {
	return wait.Until(ctx, limit, 100*time.Millisecond, func(ctx context.Context) bool { return len(f.Unready(ctx)) == 0 })
}

// Unready says which workers are not ready, and why.
func (f *Fleet) Unready(ctx context.Context) []string {
	var unready []string
	for i := range f.Size() {
		if h, answered := f.Ask(ctx, i); !h.Ready {
			unready = append(unready, fmt.Sprintf("%s (answers: %t) %v", f.worker(i).name, answered, h.Parts))
		}
	}
	return unready
}

// AwaitUnready waits until each worker has said that it is not ready, and blames those that do not in time.
func (f *Fleet) AwaitUnready(ctx context.Context, limit time.Duration, why string) {
	var asking sync.WaitGroup
	for i := range f.Size() {
		asking.Go(func() {
			said := wait.Until(ctx, limit, 100*time.Millisecond, func(ctx context.Context) bool {
				h, answered := f.Ask(ctx, i)
				return answered && !h.Ready
			})
			if !said && ctx.Err() == nil {
				f.Blame("P10", "%s did not say within %s that it is not ready: %s", f.worker(i).name, limit, why)
			}
		})
	}
	asking.Wait()
}

package torture

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
)

const (
	// grace is the workers' grace period, and graceMargin what ending takes besides.
	grace       = 10 * time.Second
	graceMargin = 3 * time.Second
	// startLimit is how long a worker may take from its start until it is ready.
	startLimit = time.Minute
	// attempts is how often a worker tries a handler.
	attempts = 12
	// longestLine is the longest line of a worker's log that is read.
	longestLine = 1 << 20
)

// fleet is the workers that run, each a process of its own.
type fleet struct {
	program string
	folder  string
	env     []string
	http    http.Client
	blame   func(promise, format string, args ...any)

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

func newFleet(program, folder string, env []string, blame func(promise, format string, args ...any)) *fleet {
	return &fleet{program: program, folder: folder, env: env, blame: blame, http: http.Client{Timeout: 3 * time.Second}}
}

// launch starts n workers and waits until they are ready.
func (f *fleet) launch(ctx context.Context, n int) error {
	f.workers = make([]*running, n)
	for i := range n {
		if err := f.start(ctx, i); err != nil {
			return err
		}
	}
	if !f.awaitReady(ctx, startLimit) {
		return errors.New("the workers did not become ready: see their logs")
	}
	return nil
}

// start starts worker i.
func (f *fleet) start(ctx context.Context, i int) error {
	name := fmt.Sprintf("worker-%d", i+1)
	log, err := os.OpenFile(filepath.Join(f.folder, name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", name, err)
	}
	c := exec.CommandContext(context.WithoutCancel(ctx), f.program, "run", "--http-addr=127.0.0.1:0", "--wait=10m", "--migrate=false",
		"--chaos", fmt.Sprintf("--retry-attempts=%d", attempts), "--retry-initial=5ms", "--retry-max=50ms", "--grace-period="+grace.String(),
		"--relay-poll=500ms", "--database-conns=8", "--rabbitmq-heartbeat=5s")
	c.Env, c.Dir = f.env, f.folder
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
func (f *fleet) attend(w *running, output io.Reader, log *os.File) {
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
		f.blame("P10", "%s ended by itself: %v", w.name, err)
	}
}

func (f *fleet) size() int { return len(f.workers) }

func (f *fleet) worker(i int) *running {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.workers[i]
}

// kill kills worker i as kill -9 does.
func (f *fleet) kill(i int) {
	w := f.worker(i)
	w.expectEnd()
	_ = w.command.Process.Signal(syscall.SIGKILL) // it may have ended
	<-w.done
}

// stop stops worker i with SIGTERM, and blames it if it does not end in good order and in time.
func (f *fleet) stop(i int) {
	w := f.worker(i)
	w.expectEnd()
	began := time.Now()
	_ = w.command.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-w.done:
		if code := w.command.ProcessState.ExitCode(); code != 0 {
			f.blame("P8", "%s, told to stop, ended with code %d", w.name, code)
		}
	case <-time.After(grace + graceMargin):
		f.blame("P8", "%s, told to stop, still ran after %s", w.name, time.Since(began).Round(time.Second))
		_ = w.command.Process.Signal(syscall.SIGKILL)
		<-w.done
	}
}

func (f *fleet) signal(i int, s syscall.Signal) { _ = f.worker(i).command.Process.Signal(s) }

// end kills what still runs.
func (f *fleet) end() {
	for i := range f.size() {
		if f.worker(i) != nil {
			f.kill(i)
		}
	}
}

func (w *running) expectEnd() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expected = true
}

// health is what a worker says of itself.
type health struct {
	Ready bool              `json:"ready"`
	Parts map[string]string `json:"parts"`
}

// ask asks worker i how it is. An answer that does not come is one that says no.
func (f *fleet) ask(ctx context.Context, i int) (h health, answered bool) {
	w := f.worker(i)
	w.mu.Lock()
	url := w.url
	w.mu.Unlock()
	if url == "" {
		return health{}, false
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", nil)
	if err != nil {
		return health{}, false
	}
	response, err := f.http.Do(request)
	if err != nil {
		return health{}, false
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&h); err != nil {
		return health{}, false
	}
	return h, true
}

// leader is the worker that relays, or the first one if none says so.
func (f *fleet) leader(ctx context.Context) int {
	for i := range f.size() {
		h, _ := f.ask(ctx, i)
		if relay := h.Parts["relay"]; relay == "ok (relaying)" || relay == "ok (idle)" {
			return i
		}
	}
	return 0
}

// awaitReady waits until all workers are ready.
func (f *fleet) awaitReady(ctx context.Context, limit time.Duration) bool {
	return until(ctx, limit, 100*time.Millisecond, func(ctx context.Context) bool { return len(f.unready(ctx)) == 0 })
}

// unready says which workers are not ready, and why.
func (f *fleet) unready(ctx context.Context) []string {
	var unready []string
	for i := range f.size() {
		if h, answered := f.ask(ctx, i); !h.Ready {
			unready = append(unready, fmt.Sprintf("%s (answers: %t) %v", f.worker(i).name, answered, h.Parts))
		}
	}
	return unready
}

// awaitUnready waits until each worker has said that it is not ready, and blames those that do not in time.
func (f *fleet) awaitUnready(ctx context.Context, limit time.Duration, why string) {
	var asking sync.WaitGroup
	for i := range f.size() {
		asking.Go(func() {
			said := until(ctx, limit, 100*time.Millisecond, func(ctx context.Context) bool {
				h, answered := f.ask(ctx, i)
				return answered && !h.Ready
			})
			if !said && ctx.Err() == nil {
				f.blame("P10", "%s did not say within %s that it is not ready: %s", f.worker(i).name, limit, why)
			}
		})
	}
	asking.Wait()
}

package console

import (
	"context"
	"crypto/rand"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/healz/worker/internal/deadletter"
)

const (
	// maxJobs and maxSteps limit the replays and the steps of each that are kept. latestJobs are listed.
	maxJobs, maxSteps, latestJobs = 50, 200, 5
)

// jobs are the replays of this console. They run in the background, and end with the console.
type jobs struct {
	ctx     context.Context //nolint:containedctx // the lifetime of the console, which bounds its replays
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu   sync.Mutex
	list []*job
}

func (j *jobs) open(ctx context.Context) {
	j.ctx, j.cancel = context.WithCancel(context.WithoutCancel(ctx))
}

func (j *jobs) close() {
	j.cancel()
	j.running.Wait()
}

func (j *jobs) closed() <-chan struct{} { return j.ctx.Done() }

type job struct {
	ID, Title, Who string
	Began          time.Time
	cancel         context.CancelFunc

	mu    sync.Mutex
	state jobState
}

type jobState struct {
	deadletter.Counts
	// Steps are the latest steps, the newest first.
	Steps   []jobStep
	Done    bool
	Stopped bool
	// Waiting says why the replay waits for a worker, "" if it does not.
	Waiting string
	Problem string
	Ended   time.Time
}

type jobStep struct {
	At     time.Time
	Step   deadletter.Step
	Letter deadletter.Letter
	Note   string
}

func (j *jobs) start(title, who string, run func(ctx context.Context, report func(deadletter.Progress)) error) *job {
	ctx, cancel := context.WithCancel(j.ctx)
	started := &job{ID: rand.Text(), Title: title, Who: who, Began: time.Now(), cancel: cancel}
	j.mu.Lock()
	if len(j.list) >= maxJobs { // running jobs stay
		j.list = slices.DeleteFunc(j.list, func(old *job) bool { return old.page().State.Done })
	}
	j.list = append(j.list, started)
	j.mu.Unlock()
	j.running.Go(func() {
		defer cancel()
		err := run(ctx, started.report)
		started.mu.Lock()
		defer started.mu.Unlock()
		s := &started.state
		s.Done, s.Ended, s.Stopped, s.Waiting = true, time.Now(), ctx.Err() != nil, ""
		if err != nil && !s.Stopped {
			s.Problem = err.Error()
		}
	})
	return started
}

func (j *jobs) latest() []jobPage {
	j.mu.Lock()
	defer j.mu.Unlock()
	var list []jobPage
	for _, job := range slices.Backward(j.list[max(0, len(j.list)-latestJobs):]) {
		list = append(list, job.page())
	}
	return list
}

func (j *job) report(p deadletter.Progress) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.state.Counts, j.state.Waiting = p.Counts, ""
	if p.Step == deadletter.NoWorker {
		j.state.Waiting = p.Problem.Error()
		return
	}
	if p.Step == deadletter.Begun || p.Step == deadletter.Done {
		return
	}
	s := jobStep{At: time.Now(), Step: p.Step, Letter: p.Letter}
	s.Letter.Body, s.Letter.Event.Data, s.Letter.Event.Metadata = nil, nil, nil
	switch {
	case p.Problem != nil:
		s.Note = p.Problem.Error()
	case p.Step == deadletter.FailedAgain:
		s.Note = p.Letter.Reason
	}
	j.state.Steps = slices.Insert(j.state.Steps, 0, s)
	j.state.Steps = j.state.Steps[:min(len(j.state.Steps), maxSteps)]
}

type jobPage struct {
	*job
	State jobState
}

// Settled is the share of the letters with an outcome, in percent.
func (p jobPage) Settled() int {
	switch {
	case p.State.Done && !p.State.Stopped && p.State.Problem == "":
		return 100
	case p.State.Chosen == 0:
		return 0
	default:
		s := p.State
		return 100 * (s.Handled + s.FailedAgain + s.Kept + s.Unknown) / s.Chosen
	}
}

// jobOf returns the job in the path of a request.
func (c *Console) jobOf(r *http.Request) (jobPage, error) {
	c.jobs.mu.Lock()
	defer c.jobs.mu.Unlock()
	for _, j := range c.jobs.list {
		if j.ID == r.PathValue("id") {
			return j.page(), nil
		}
	}
	return jobPage{}, refusal{http.StatusNotFound, "This replay does not exist, or is no longer kept."}
}

func (j *job) page() jobPage {
	j.mu.Lock()
	defer j.mu.Unlock()
	p := jobPage{job: j, State: j.state}
	p.State.Steps = slices.Clone(j.state.Steps)
	return p
}

func (c *Console) job(w http.ResponseWriter, r *http.Request) error {
	p, err := c.jobOf(r)
	if err != nil {
		return err
	}
	return c.render(w, r, http.StatusOK, "job", "Replay", p)
}

func (c *Console) liveJob(w http.ResponseWriter, r *http.Request) error {
	p, err := c.jobOf(r)
	if err != nil {
		return err
	}
	return c.stream(w, r, func(ctx context.Context) ([]byte, bool, error) {
		p = p.page()
		part, err := c.fragment(ctx, "job", "main", p)
		return part, p.State.Done, err
	})
}

func (c *Console) stopJob(w http.ResponseWriter, r *http.Request) error {
	p, err := c.jobOf(r)
	if err != nil {
		return err
	}
	v := viewerOf(r.Context())
	c.logger.InfoContext(r.Context(), "console: a replay is stopped", "who", v.Who, "client", v.Client.String())
	p.cancel()
	return redirect(w, r, "/replays/"+p.ID)
}

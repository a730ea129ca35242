// Package reports compares what a worker reports with the truth. It runs real workers on servers of their own, with a
// Prometheus and a receiver of traces, and plays scenarios: load, handlers that fail, outages of each server, workers that
// are killed. In each it compares metrics, traces, readiness and doctor with the database and the broker, and the alerts
// that fire with those that must.
//
// The alerts are those of deploy/prometheus at a tenth of their durations; see faster.
package reports

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/healz/worker/internal/test/testservers"
)

const (
	// alertsFile is in the root of the repository, where this runs.
	alertsFile = "deploy/prometheus/alerts.yaml"
	// rolesFile grants the worker its rights; a psql script, with one variable.
	rolesFile = "migrations/postgres/roles.sql"
	// workerRole is the workers' account in Postgres.
	workerRole = "healz_worker"
)

// ErrFalse says that at least one report was false.
var ErrFalse = errors.New("reports were false")

// Config is what to run.
type Config struct {
	// Prometheus is the path of its program.
	Prometheus string
	// Parallel is how many scenarios run at a time; those that harm a server run alone.
	Parallel int
	// Names, if it is not nil, is what the names of the scenarios must match.
	Names *regexp.Regexp
}

// rig is what the scenarios share.
type rig struct {
	config   Config
	folder   string
	worker   string // the program
	alerts   string // at the rig's pace
	postgres *testservers.Server
	admin    *sql.DB // of Postgres
	broker   *testservers.Server
	out      io.Writer

	mu     sync.Mutex
	judged map[string]bool // metrics, and whether they were compared with the truth
}

// Run plays the scenarios. The program that calls it must call testservers.Supervise first, in the root of the repository.
func Run(ctx context.Context, c Config, out io.Writer) (result Result, err error) {
	alerts, err := os.ReadFile(alertsFile)
	if err != nil {
		return Result{}, fmt.Errorf("run this in the root of the repository: %w", err)
	}
	result.Alerts = alertNames(string(alerts))
	folder, err := os.MkdirTemp("", "observe-")
	if err != nil {
		return Result{}, fmt.Errorf("make a folder for the logs: %w", err)
	}
	r := &rig{config: c, folder: folder, alerts: faster(string(alerts)), out: out, judged: map[string]bool{}}
	if r.worker, err = buildWorker(ctx, folder); err != nil {
		return Result{}, err
	}
	var starts sync.WaitGroup
	var errPostgres, errBroker error
	starts.Go(func() { r.postgres, errPostgres = testservers.StartPostgres(ctx) })
	starts.Go(func() { r.broker, errBroker = testservers.StartRabbitMQ(ctx) })
	starts.Wait()
	for _, s := range []*testservers.Server{r.postgres, r.broker} {
		if s != nil {
			defer func() { err = errors.Join(err, s.Stop()) }()
		}
	}
	if err := errors.Join(errPostgres, errBroker); err != nil {
		return Result{}, err
	}
	if r.admin, err = sql.Open("pgx", r.postgres.URL()); err != nil {
		return Result{}, fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { err = errors.Join(err, r.admin.Close()) }()
	r.admin.SetMaxIdleConns(0) // it outlives outages
	if _, err := r.admin.ExecContext(ctx, "CREATE ROLE "+workerRole+" LOGIN"); err != nil {
		return Result{}, fmt.Errorf("make the workers' account: %w", err)
	}
	fmt.Fprintf(out, "servers are up; logs in %s\n", folder)
	result.Scenarios = r.playAll(ctx)
	if c.Names == nil {
		result.Unjudged = r.unjudged()
	}
	return result, ctx.Err()
}

// playAll plays the harmless scenarios side by side, and then the others one by one.
func (r *rig) playAll(ctx context.Context) (played []Played) {
	var mu sync.Mutex
	all := scenarios()
	found := make([]*Played, len(all))
	for _, harmful := range []bool{false, true} {
		places := 1
		if !harmful {
			places = r.config.Parallel
		}
		free := make(chan struct{}, places)
		var playing sync.WaitGroup
		for i, s := range all {
			if s.harmful != harmful || r.config.Names != nil && !r.config.Names.MatchString(s.name) {
				continue
			}
			free <- struct{}{}
			playing.Go(func() {
				defer func() { <-free }()
				if ctx.Err() != nil {
					return
				}
				p := r.play(ctx, s)
				mu.Lock()
				defer mu.Unlock()
				found[i] = &p
				p.print(r.out)
			})
		}
		playing.Wait()
	}
	for _, p := range found {
		if p != nil {
			played = append(played, *p)
		}
	}
	return played
}

// judge notes the metrics in an expression, which is compared with the truth or not.
func (r *rig) judge(expression string, compared bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range regexp.MustCompile(`worker_\w+`).FindAllString(expression, -1) {
		name = regexp.MustCompile("_(count|sum|bucket)$").ReplaceAllString(name, "")
		r.judged[name] = r.judged[name] || compared
	}
}

// unjudged are the metrics that there are and that were compared with nothing.
func (r *rig) unjudged() (names []string) {
	for name, compared := range r.judged {
		if _, excused := beyond()[name]; !compared && !excused {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// buildWorker builds the worker's program.
func buildWorker(ctx context.Context, folder string) (string, error) {
	program := filepath.Join(folder, "worker")
	output, err := exec.CommandContext(ctx, "go", "build", "-o", program, "./internal/test/reports/cmd/worker").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the worker: %w\n%s", err, output)
	}
	return program, nil
}

// manage changes something through the broker's management API.
func (r *rig) manage(ctx context.Context, method, path, body string) error {
	return testservers.Manage(ctx, r.broker.ManagementURL(), method, path, body)
}

const (
	// quietLimit is how long all that was begun may take to be done, and reportLimit how long until a metric says so: it
	// is polled each 5 s and scraped each second.
	quietLimit, reportLimit = 90 * time.Second, 30 * time.Second
	// alertLimit is how long an alert that must fire may take to do so.
	alertLimit = 80 * time.Second
	interval   = 250 * time.Millisecond
)

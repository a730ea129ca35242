// Package torture runs real workers on real servers of their own, under traffic of all kinds of writers, harms all of
// them at random, heals everything, waits for quiet, and checks from outside what the worker promises: nothing lost,
// nothing doubled, nothing out of order.
//
// The traces that it compares are the writers' own notes of what they were told, the table, a second queue that is bound
// to the exchange like the worker's, the dead letters, and the workers' logs, exit codes and /readyz.
//
// It has two rigs with one table of faults: a Postgres and a broker, or a cluster of each.
//
// One thing cannot be promised, and is not asked for. What lies in a queue that somebody deletes is lost by RabbitMQ,
// which tells nobody; so queues are deleted when they are empty.
package torture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/healz/worker/internal/test/wait"
)

const (
	// longRun is from when on a run has time for long harm.
	longRun = 5 * time.Minute
	// recoveryLimit is how long after the end of a fault all must work again. A worker that waits for an answer of a
	// Postgres that is gone without a word takes a minute to find out.
	recoveryLimit = 2 * time.Minute
	// finalLimit is how long after the end of all faults and all traffic everything must be done.
	finalLimit = 3 * time.Minute
	// settle is how long the last effects may take to show that were not to come.
	settle = 3 * time.Second
)

// Config is what to run.
type Config struct {
	// Seed decides all choices.
	Seed uint64
	// Duration is how long faults are injected. Starting before and healing and checking after them take a minute or two.
	Duration time.Duration
	// Workers is how many workers run.
	Workers int
	// Worker is the path of the worker's program.
	Worker string
	// Cluster makes the broker one of three nodes with quorum queues, and Postgres a primary with a synchronous standby,
	// behind a pooler.
	Cluster bool
	// Kinds, if it is not nil, is what the kinds of faults must match.
	Kinds *regexp.Regexp
}

func (c Config) long() bool { return c.Duration >= longRun }

// ErrBroken says that at least one promise was broken.
var ErrBroken = errors.New("promises were broken")

// Run does one run and prints its course. The error says why the run could not be done. The program that calls it must
// call testservers.Supervise first, in the root of the repository.
func Run(ctx context.Context, c Config, out io.Writer) (result Result, err error) {
	if c.Worker, err = filepath.Abs(c.Worker); err != nil {
		return Result{}, fmt.Errorf("find the worker: %w", err)
	}
	folder, err := os.MkdirTemp("", "torture-")
	if err != nil {
		return Result{}, fmt.Errorf("make a folder for the logs: %w", err)
	}
	r := &rig{config: c, folder: folder, planted: plantedValue(c.Seed), ledger: newLedger(), known: map[string]letter{}}
	began := time.Now()
	report := newReport(out, c, began)
	report.say("seed %d, %s, %d workers; logs in %s", c.Seed, c.Duration, c.Workers, folder)
	err = r.open(ctx)
	if err == nil {
		report.say("servers, workers and witness are up")
		result, err = r.torture(ctx, report)
	}
	if closing := r.close(); closing != nil {
		err = errors.Join(err, fmt.Errorf("end the run: %w", closing))
	}
	if err != nil || result.Err() != nil {
		report.say("the logs are in %s", folder)
		return result, err
	}
	return result, os.RemoveAll(folder)
}

// torture does the harm and the checks. The writers end with it.
func (r *rig) torture(ctx context.Context, report *report) (Result, error) {
	writing, stopWriting := context.WithCancel(ctx)
	defer stopWriting()
	written := make(chan struct{})
	go func() {
		defer close(written)
		r.load.run(writing)
	}()
	err := r.harm(ctx, report)
	stopWriting()
	<-written
	if err != nil {
		return Result{}, err
	}
	if ctx.Err() != nil {
		return Result{}, context.Cause(ctx)
	}
	report.say("all is healed and nothing new is written")
	servers, err := r.versions(ctx)
	if err != nil {
		return Result{}, err
	}
	v, err := r.settle(ctx)
	if err != nil {
		return Result{}, err
	}
	return report.result(r, v, servers), nil
}

// harm injects one fault after another, in rounds of all kinds, each in an order of its own.
func (r *rig) harm(ctx context.Context, report *report) error {
	a := newAuthor(r.config.Seed, "faults")
	kinds := faults(r.config)
	if len(kinds) == 0 {
		return fmt.Errorf("no kind of fault matches %q", r.config.Kinds)
	}
	end := time.Now().Add(r.config.Duration)
	for round := 0; ; round++ {
		a.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
		for i, f := range kinds {
			if !wait.Sleep(ctx, a.between(200*time.Millisecond, time.Second)) || time.Now().After(end) {
				return nil
			}
			began := time.Now()
			choices := newAuthor(r.config.Seed, fmt.Sprintf("fault %d.%d", round, i))
			if err := f.inject(ctx, r, choices); err != nil {
				return fmt.Errorf("%s: %w", f.kind, err)
			}
			healed := time.Now()
			r.recover(ctx, f.kind)
			report.fault(f.kind, healed.Sub(began), time.Since(healed))
		}
	}
}

// recover returns when all works again: every worker is ready, and an event that is written now takes effect.
func (r *rig) recover(ctx context.Context, kind string) {
	r.probes++
	a := newAuthor(r.config.Seed, fmt.Sprintf("probe %d", r.probes))
	var probe entry
	for probe.fate != handled {
		probe.event, probe.fate = a.next(a.newStream(), 0)
	}
	stored := false
	works := wait.Until(ctx, recoveryLimit, 50*time.Millisecond, func(ctx context.Context) bool {
		if !stored {
			stored = r.load.appendOnce(ctx, []entry{probe}, false) == kept
			if !stored {
				probe.event.ID, probe.event.AggregateID = a.id(), a.id()
				return false
			}
		}
		var follows bool
		const sql = "SELECT EXISTS (SELECT FROM events WHERE causation_id = $1)"
		return r.admin.QueryRow(ctx, sql, probe.event.ID).Scan(&follows) == nil && follows && len(r.fleet.Unready(ctx)) == 0 &&
			each(r.brokers, answers) == nil
	})
	if !works && ctx.Err() == nil {
		r.blame("P10", "%s after the end of %q not all works (probe %s, written: %t): %s", recoveryLimit, kind, probe.event.ID,
			stored, strings.Join(r.fleet.Unready(ctx), "; "))
	}
}

// settle waits until all is done, stops the workers, and returns the last verdict.
func (r *rig) settle(ctx context.Context) (verdict, error) {
	wait.Until(ctx, finalLimit, time.Second, func(ctx context.Context) bool {
		v, err := r.judge(ctx)
		return err == nil && len(v.lost) == 0 && r.emptied()
	})
	if unready := r.fleet.Unready(ctx); len(unready) > 0 {
		r.blame("P10", "not ready in the end: %s", strings.Join(unready, "; "))
	}
	if err := r.mend(ctx); err != nil {
		return verdict{}, err
	}
	wait.Sleep(ctx, settle)
	for i := range r.fleet.Size() {
		r.fleet.Stop(i)
	}
	if !r.emptied() {
		r.blame("P5", "something is left in the queues of the workers")
	}
	if err := errors.Join(r.checkRights(ctx), r.checkLogs()); err != nil {
		return verdict{}, err
	}
	v, err := r.judge(ctx)
	if v.unmended > 0 {
		v.lost = append(v.lost, fmt.Sprintf("P6: %d events that a replay was to handle were not handled, or their dead letters do "+
			"not say so", v.unmended))
	}
	if err == nil && v.handledOrder > 0 {
		v.misordered = append(v.misordered, fmt.Sprintf("P4: %d events were handled before an earlier one of their aggregate",
			v.handledOrder))
	}
	return v, err
}

// mend replays the dead letters until all are handled that are to be. A worker that has not tried an event yet may fail
// again on it, as each counts for itself.
func (r *rig) mend(ctx context.Context) error {
	for range r.config.Workers + 1 {
		if err := r.load.replay(ctx); err != nil {
			return err
		}
		var v verdict
		wait.Until(ctx, finalLimit, time.Second, func(ctx context.Context) bool {
			var err error
			v, err = r.judge(ctx)
			return err == nil && len(v.lost) == 0 && r.emptied()
		})
		if v.unmended == 0 {
			break
		}
	}
	return nil
}

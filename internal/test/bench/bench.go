// Package bench measures what the worker's promises cost: each of its ways beside the raw clients doing the least that
// is correct, and beside Watermill's own parts with their defaults.
//
// All figures of a row come from one run on the same servers, in short rounds that take turns, so that whatever else the
// machine does harms all alike: only ratios mean something. The servers are the run's own, Postgres with fsync on,
// unless the environment names others. Nothing of the worker is switched off: it validates, writes its headers, keeps
// its inbox, and logs at info, to a writer that discards.
package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/pprof"
	"time"
)

// Config is what to run.
type Config struct {
	// DatabaseURL and BrokerURL are servers to use; a private one is started for each that is empty.
	DatabaseURL, BrokerURL string
	// Rounds is how many figures a row has of each contender.
	Rounds int
	// Turn is about how long a contender works in a round.
	Turn time.Duration
	// Backlog is how many events the relay has before it.
	Backlog int
	// MemoryBacklog is how many events are in the store when the worker's memory is measured.
	MemoryBacklog int
	// Letters is how many dead letters the table has when it is read, and LargeLetters how many of the largest there are when
	// the memory for them is measured.
	Letters, LargeLetters int
	// Growth adds the rows that compare a table of ten million events with one of ten thousand, which take minutes to make.
	Growth bool
	// Rows, when set, matches the names of the rows to measure.
	Rows *regexp.Regexp
	// Worker is the path of the worker's program, for its memory.
	Worker string
	// Profiles, when set, is a folder for CPU profiles of what is ours, one a row.
	Profiles string
}

// Default is the run whose results are kept.
func Default() Config {
	return Config{
		Rounds: 5, Turn: 700 * time.Millisecond, Backlog: 100_000, MemoryBacklog: 1_000_000, Letters: 1_000_000, LargeLetters: 60,
		Worker: "bin/worker",
	}
}

// Quick is a run that only shows that everything runs.
func Quick() Config {
	c := Default()
	c.Rounds, c.Turn, c.Backlog, c.MemoryBacklog = 1, 50*time.Millisecond, 2_000, 2_000
	c.Letters, c.LargeLetters = 2_000, 3
	return c
}

// group measures one or several rows that share what they need.
type group struct {
	name    string
	measure func(context.Context, *stage) error
	growth  bool
}

func groups() []group {
	return []group{
		{name: "append", measure: measureAppends},
		{name: "read", measure: measureRead},
		{name: "publish", measure: measurePublish},
		{name: "relay", measure: measureRelay},
		{name: "consume", measure: measureConsume},
		{name: "latency", measure: measureLatency},
		{name: "sustained", measure: measureSustained},
		{name: "letters", measure: measureLetters},
		{name: "many letters", measure: measureManyLetters},
		{name: "memory", measure: measureMemory},
		{name: "large letters", measure: measureLargeLetters},
		{name: "growth", measure: measureGrowth, growth: true},
	}
}

// Run measures, and prints the course and the result. The program that calls it must call testservers.Supervise first.
func Run(ctx context.Context, c Config, out io.Writer) (_ *Result, err error) {
	r := &rig{config: c, out: out}
	defer func() { err = errors.Join(err, r.close()) }()
	began := time.Now()
	if err := r.open(ctx); err != nil {
		return nil, fmt.Errorf("prepare the run: %w", err)
	}
	result, err := r.describe(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the servers for their versions: %w", err)
	}
	for _, g := range groups() {
		if g.growth && !c.Growth {
			continue
		}
		s := &stage{rig: r, result: result}
		err := g.measure(ctx, s)
		if err := errors.Join(err, s.end()); err != nil {
			return nil, fmt.Errorf("%s: %w", g.name, err)
		}
	}
	if len(result.Rows) == 0 {
		return nil, fmt.Errorf("no row's name matches %q (those of growth are measured only where growth is)", c.Rows)
	}
	result.Took = time.Since(began).Round(time.Second).String()
	return result, nil
}

// contender does a row's work n times and says what that has used; what it prepares before does not count.
type contender func(ctx context.Context, n int) (spent, error)

// contenders are those of a row that measures events per second. There may be no stock.
type contenders struct{ raw, stock, ours contender }

// rate is a row that measures events per second.
type rate struct {
	name, what string
	// unit is events/s if it is empty.
	unit string
	// against is what ours is compared with, where it is not the raw client.
	against string
	// reach and limit are as in [Row].
	reach, limit float64
	// step is what the number of events is a multiple of; stock's may be another, where it is not 0.
	step, stockStep int
	// least and most are how many events a turn has at least and at the most, if there is such a limit. The first ones may
	// take longer.
	least, most int
}

// measureRate warms the contenders up, from which it knows how much each can do in a turn, and lets them take turns.
func (s *stage) measureRate(ctx context.Context, row rate, c contenders) error {
	if !s.wants(row.name) {
		return nil
	}
	r := &Row{Name: row.name, What: row.what, Unit: cmp.Or(row.unit, "events/s"), Against: row.against, Reach: row.reach, Limit: row.limit}
	type entry struct {
		does   contender
		into   *Series
		cpu    *Series
		step   int
		amount int
		ours   bool
	}
	var entries []*entry
	for _, e := range []*entry{
		{does: c.raw, into: &r.Raw, cpu: &r.CPU.Raw, step: row.step},
		{does: c.stock, into: &r.Stock, cpu: &r.CPU.Stock, step: cmp.Or(row.stockStep, row.step)},
		{does: c.ours, into: &r.Ours, cpu: &r.CPU.Ours, step: row.step, ours: true},
	} {
		if e.does == nil {
			continue
		}
		// Twice, as the first time plans statements, opens connections and grows the heap.
		e.amount = row.amount(warmUp, e.step)
		for _, part := range []int{2, 1} {
			took, err := e.does(ctx, e.amount)
			if err != nil {
				return fmt.Errorf("%s: warm up: %w", row.name, err)
			}
			e.amount = row.amount(int(float64(e.amount)*s.config.Turn.Seconds()/took.time.Seconds())/part, e.step)
		}
		entries = append(entries, e)
	}
	for round := range s.config.Rounds {
		for i := range entries {
			e := entries[(i+round)%len(entries)]
			runtime.GC()
			stop := func() error { return nil }
			if e.ours && round == s.config.Rounds-1 {
				var err error
				if stop, err = s.profile(row.name); err != nil {
					return err
				}
			}
			took, err := e.does(ctx, e.amount)
			if err := errors.Join(err, stop()); err != nil {
				return fmt.Errorf("%s: %w", row.name, err)
			}
			*e.into = append(*e.into, float64(e.amount)/took.time.Seconds())
			if took.processors > 0 {
				*e.cpu = append(*e.cpu, float64(took.processors)/float64(time.Microsecond)/float64(e.amount))
			}
		}
	}
	s.add(r)
	return nil
}

// warmUp is about how many events the first turn of a contender has.
const warmUp = 50

// amount is n as the row can have it.
func (r rate) amount(n, step int) int {
	n = max(n, r.least)
	if r.most > 0 {
		n = min(n, r.most)
	}
	return max(1, n/step) * step
}

// profile begins a CPU profile, if the run is to have some.
func (s *stage) profile(name string) (stop func() error, err error) {
	if s.config.Profiles == "" {
		return func() error { return nil }, nil
	}
	if err := os.MkdirAll(s.config.Profiles, 0o750); err != nil {
		return nil, fmt.Errorf("make the folder for profiles: %w", err)
	}
	file, err := os.Create(filepath.Join(s.config.Profiles, name+".pprof"))
	if err != nil {
		return nil, fmt.Errorf("make a profile: %w", err)
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		return nil, errors.Join(fmt.Errorf("make a profile: %w", err), file.Close())
	}
	return func() error { pprof.StopCPUProfile(); return file.Close() }, nil
}

// wants tells whether a row is to be measured.
func (s *stage) wants(row string) bool { return s.config.Rows == nil || s.config.Rows.MatchString(row) }

func (s *stage) wantsAny(rows ...string) bool {
	for _, row := range rows {
		if s.wants(row) {
			return true
		}
	}
	return false
}

// add adds a row to the result and prints it.
func (s *stage) add(r *Row) {
	r.Date = s.result.Date
	s.result.Rows = append(s.result.Rows, r)
	fmt.Fprintln(s.out, r)
}

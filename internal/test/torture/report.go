package torture

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// shown is how many of the violations of one kind are printed.
const shown = 10

// report tells the course of a run, and its result.
type report struct {
	out    io.Writer
	config Config
	began  time.Time
	kinds  []string // in the order in which they first came
	times  map[string]int
	worst  map[string]time.Duration // the longest recovery from each
}

func newReport(out io.Writer, c Config, began time.Time) *report {
	return &report{out: out, config: c, began: began, times: map[string]int{}, worst: map[string]time.Duration{}}
}

func (p *report) say(format string, args ...any) {
	fmt.Fprintf(p.out, "%6.1fs  %s\n", time.Since(p.began).Seconds(), fmt.Sprintf(format, args...))
}

func (p *report) fault(kind string, took, recovery time.Duration) {
	if p.times[kind]++; p.times[kind] == 1 {
		p.kinds = append(p.kinds, kind)
	}
	p.worst[kind] = max(p.worst[kind], recovery)
	p.say("%-36s for %5.1fs, recovered in %5.1fs", kind, took.Seconds(), recovery.Seconds())
}

// print prints the result, and returns [ErrBroken] if it is not what it must be.
func (p *report) print(r *rig, v verdict) error {
	total, longest := 0, time.Duration(0)
	w := tabwriter.NewWriter(p.out, 0, 8, 2, ' ', 0)
	line := func(what string, cells ...any) {
		fmt.Fprintf(w, "%s", what)
		for _, c := range cells {
			fmt.Fprintf(w, "\t%v", c)
		}
		fmt.Fprintln(w)
	}
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }
	line("\nfault", "times", "longest recovery")
	for _, kind := range p.kinds {
		line(kind, p.times[kind], seconds(p.worst[kind]))
		total += p.times[kind]
		longest = max(longest, p.worst[kind])
	}
	line("")
	line("seed", p.config.Seed)
	line("faults injected", fmt.Sprintf("%d of %d kinds, in %s, with %d workers", total, len(p.kinds), p.config.Duration, p.config.Workers))
	var by []string
	for writer, n := range v.appended {
		by = append(by, fmt.Sprintf("%s %d", writer, n))
	}
	slices.Sort(by)
	line("events appended", fmt.Sprintf("%d (%s)", v.appendedInAll(), strings.Join(by, ", ")))
	line("appends refused", v.refused)
	line("outcome unknown", v.unknown)
	line("events delivered", v.delivered)
	line("duplicates on the wire", v.duplicates)
	all := 0
	var states []string
	for state, n := range v.letters {
		states = append(states, fmt.Sprintf("%s %d", state, n))
		all += n
	}
	slices.Sort(states)
	line("dead letters", fmt.Sprintf("%d (%s)", all, strings.Join(states, ", ")))
	line("effects doubled", len(v.doubled))
	line("lost", len(v.lost))
	line("out of order", len(v.misordered))
	line("handled out of order", v.handledOrder)
	line("longest recovery", seconds(longest))
	r.mu.Lock()
	violations := slices.Concat(v.other, r.violations)
	r.mu.Unlock()
	line("other promises broken", len(violations))
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}

	var other []string
	for _, broken := range violations {
		other = append(other, broken.promise+": "+broken.text)
	}
	broken := false
	for _, all := range [][]string{v.doubled, v.lost, v.misordered, other} {
		broken = broken || len(all) > 0
		for _, one := range all[:min(shown, len(all))] {
			fmt.Fprintln(p.out, "  BROKEN ", one)
		}
		if len(all) > shown {
			fmt.Fprintf(p.out, "  … and %d more\n", len(all)-shown)
		}
	}
	if broken {
		return fmt.Errorf("%w: to do the same again, set SEED=%d", ErrBroken, p.config.Seed)
	}
	return nil
}

package torture

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/healz/worker/internal/deadletter"
)

// shown is how many of the violations of one kind are printed.
const shown = 10

// Result is what one run or several came to.
type Result struct {
	// Faults is the number of faults injected.
	Faults int

	seeds      []string
	kinds      map[string]tally
	took       time.Duration
	workers    int
	servers    string
	v          verdict // its violations are in broken
	doubled    int
	lost       int
	misordered int
	other      int
	broken     []string // some of what is wrong
}

// tally is what is known of one kind of fault.
type tally struct {
	times int
	worst time.Duration // the longest recovery
}

// Add adds another run's result.
func (r *Result) Add(other Result) {
	if r.v.appended == nil {
		r.kinds, r.v.appended, r.v.letters = map[string]tally{}, map[writer]int{}, map[deadletter.State]int{}
	}
	r.workers, r.servers = other.workers, other.servers
	r.Faults += other.Faults
	r.seeds = append(r.seeds, other.seeds...)
	r.took += other.took
	for kind, t := range other.kinds {
		r.kinds[kind] = tally{r.kinds[kind].times + t.times, max(r.kinds[kind].worst, t.worst)}
	}
	for writer, n := range other.v.appended {
		r.v.appended[writer] += n
	}
	for state, n := range other.v.letters {
		r.v.letters[state] += n
	}
	r.v.refused += other.v.refused
	r.v.unknown += other.v.unknown
	r.v.delivered += other.v.delivered
	r.v.duplicates += other.v.duplicates
	r.v.handledOrder += other.v.handledOrder
	r.doubled += other.doubled
	r.lost += other.lost
	r.misordered += other.misordered
	r.other += other.other
	r.broken = append(r.broken, other.broken...)
}

// rows are the two tables that tell a result, each with its head.
func (r Result) rows() (faults, sums [][]string) {
	faults = [][]string{{"fault", "times", "longest recovery"}}
	longest := time.Duration(0)
	for _, kind := range slices.Sorted(maps.Keys(r.kinds)) {
		t := r.kinds[kind]
		longest = max(longest, t.worst)
		faults = append(faults, []string{kind, fmt.Sprint(t.times), seconds(t.worst)})
	}
	sums = [][]string{
		{"result", ""},
		{"seeds", strings.Join(r.seeds, ", ")},
		{"faults injected", fmt.Sprintf("%d of %d kinds, in %s, with %d workers", r.Faults, len(r.kinds), r.took, r.workers)},
		{"servers", r.servers},
		{"events appended", sum(r.v.appended)},
		{"appends refused", fmt.Sprint(r.v.refused)},
		{"outcome unknown", fmt.Sprint(r.v.unknown)},
		{"events delivered", fmt.Sprint(r.v.delivered)},
		{"duplicates on the wire", fmt.Sprint(r.v.duplicates)},
		{"dead letters", sum(r.v.letters)},
		{"effects doubled", fmt.Sprint(r.doubled)},
		{"lost", fmt.Sprint(r.lost)},
		{"out of order", fmt.Sprint(r.misordered)},
		{"handled out of order", fmt.Sprint(r.v.handledOrder)},
		{"longest recovery", seconds(longest)},
		{"other promises broken", fmt.Sprint(r.other)},
	}
	return faults, sums
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// sum tells how many there are in all, and of each kind.
func sum[K ~string](counts map[K]int) string {
	all := 0
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		all += counts[kind]
		parts = append(parts, fmt.Sprintf("%s %d", kind, counts[kind]))
	}
	return fmt.Sprintf("%d (%s)", all, strings.Join(parts, ", "))
}

// Print writes the result as text.
func (r Result) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	faults, sums := r.rows()
	for _, table := range [][][]string{faults, sums} {
		fmt.Fprintln(w)
		for _, cells := range table {
			fmt.Fprintln(w, strings.Join(cells, "\t"))
		}
	}
	for _, one := range r.broken {
		fmt.Fprintln(w, "  BROKEN  "+one)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return nil
}

// Markdown writes the result, and the command that it is of, to a file.
func (r Result) Markdown(path, title, command string) error {
	var text strings.Builder
	fmt.Fprintf(&text, "# %s\n\nWritten by `%s` on %s. The package documentation says what a run does and checks.\n",
		title, command, time.Now().UTC().Format(time.DateOnly))
	faults, sums := r.rows()
	for _, table := range [][][]string{faults, sums} {
		text.WriteString("\n")
		for i, cells := range table {
			fmt.Fprintf(&text, "| %s |\n", strings.Join(cells, " | "))
			if i == 0 {
				fmt.Fprintf(&text, "| ---%s |\n", strings.Repeat(" | ---:", len(cells)-1))
			}
		}
	}
	for _, one := range r.broken {
		fmt.Fprintf(&text, "\nBroken: %s\n", one)
	}
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// report tells the course of a run.
type report struct {
	out    io.Writer
	config Config
	began  time.Time
	kinds  map[string]tally
}

func newReport(out io.Writer, c Config, began time.Time) *report {
	return &report{out: out, config: c, began: began, kinds: map[string]tally{}}
}

func (p *report) say(format string, args ...any) {
	fmt.Fprintf(p.out, "%6d %6.1fs  %s\n", p.config.Seed, time.Since(p.began).Seconds(), fmt.Sprintf(format, args...))
}

func (p *report) fault(kind string, took, recovery time.Duration) {
	p.kinds[kind] = tally{p.kinds[kind].times + 1, max(p.kinds[kind].worst, recovery)}
	p.say("%-42s for %5.1fs, recovered in %5.1fs", kind, took.Seconds(), recovery.Seconds())
}

// result is what the run came to, by its verdict and by what was blamed during it.
func (p *report) result(r *rig, v verdict, servers string) Result {
	r.mu.Lock()
	violations := slices.Concat(v.other, r.violations)
	r.mu.Unlock()
	var other []string
	for _, broken := range violations {
		other = append(other, broken.promise+": "+broken.text)
	}
	result := Result{
		seeds: []string{fmt.Sprint(p.config.Seed)}, kinds: p.kinds, took: p.config.Duration, workers: p.config.Workers,
		servers: servers, v: v, doubled: len(v.doubled), lost: len(v.lost), misordered: len(v.misordered), other: len(other),
	}
	for _, t := range p.kinds {
		result.Faults += t.times
	}
	for _, all := range [][]string{v.doubled, v.lost, v.misordered, other} {
		result.broken = append(result.broken, all[:min(shown, len(all))]...)
		if len(all) > shown {
			result.broken = append(result.broken, fmt.Sprintf("… and %d more", len(all)-shown))
		}
	}
	return result
}

// Err is [ErrBroken] if the result is not what it must be.
func (r Result) Err() error {
	if len(r.broken) > 0 {
		return fmt.Errorf("%w: to do the same again, set SEED=%s", ErrBroken, strings.Join(r.seeds, " or "))
	}
	return nil
}

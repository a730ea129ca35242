package reports

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// Result is what a run has found.
type Result struct {
	Alerts    []string
	Scenarios []Played
	// Unjudged are metrics that were compared with nothing, if all scenarios were played.
	Unjudged []string
}

// Played is a scenario that was played.
type Played struct {
	Name string
	// Must are the alerts that must fire, and Fired those that did.
	Must  []string
	Fired map[string]float64
	// Compared counts the reports that were compared with the truth.
	Compared int
	Problems []string
	Took     time.Duration
}

// problems are those of the alerts, and all others.
func (p Played) problems() []string {
	problems := slices.Clone(p.Problems)
	for _, name := range p.Must {
		if p.Fired[name] == 0 {
			problems = append(problems, name+" has not fired")
		}
	}
	for name := range p.Fired {
		if !slices.Contains(p.Must, name) {
			problems = append(problems, name+" has fired")
		}
	}
	return problems
}

func (p Played) print(w io.Writer) {
	problems := p.problems()
	fmt.Fprintf(w, "%-32s %4.0f s  %3d reports compared, %d false\n", p.Name, p.Took.Seconds(), p.Compared, len(problems))
	for _, problem := range problems {
		fmt.Fprintln(w, "    "+strings.ReplaceAll(strings.TrimSpace(problem), "\n", "\n      "))
	}
}

// Err is ErrFalse if a report was false.
func (r Result) Err() error {
	if len(r.Unjudged) > 0 {
		return fmt.Errorf("%w: no scenario compares with the truth: %s", ErrFalse, strings.Join(r.Unjudged, ", "))
	}
	if slices.ContainsFunc(r.Scenarios, func(p Played) bool { return len(p.problems()) > 0 }) {
		return ErrFalse
	}
	return nil
}

// Markdown writes the table of scenarios and alerts.
func (r Result) Markdown(path string) error {
	var b strings.Builder
	b.WriteString("# The alerts of each scenario\n\nWritten by `make observe`. **fires**: it must, and did. –: it must not, and did " +
		"not. MISSING, FALSE: the opposite.\nThe last columns count the metrics, parts of `/readyz`, lines of doctor and logs " +
		"that were compared with the truth.\n\n| scenario |")
	for _, alert := range r.Alerts {
		b.WriteString(" " + strings.TrimPrefix(alert, "Worker") + " |")
	}
	b.WriteString(" compared | false |\n|" + strings.Repeat(" --- |", len(r.Alerts)+3) + "\n")
	for _, p := range r.Scenarios {
		b.WriteString("| " + p.Name + " |")
		for _, alert := range r.Alerts {
			cell := "–"
			switch must, fired := slices.Contains(p.Must, alert), p.Fired[alert] > 0; {
			case must && fired:
				cell = "**fires**"
			case must:
				cell = "MISSING"
			case fired:
				cell = "FALSE"
			}
			b.WriteString(" " + cell + " |")
		}
		fmt.Fprintf(&b, " %d | %d |\n", p.Compared, len(p.problems()))
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

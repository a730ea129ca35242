// Package doctor checks the settings, the store and the broker of a worker. It reports problems with advice, and changes
// nothing.
package doctor

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/healz/worker/internal/worker"
)

// Timeout bounds one check.
const Timeout = 10 * time.Second

// Status is the result of a check.
type Status string

// The statuses.
const (
	OK Status = "ok"
	// Unknown: it could not be found out. That is no problem by itself.
	Unknown Status = "unknown"
	// Warning: it works, but needs attention.
	Warning Status = "warning"
	// Wrong: the worker cannot work, or cannot keep its guarantees.
	Wrong Status = "wrong"
	// Skipped: a check that it depends on is wrong.
	Skipped Status = "skipped"
)

// Finding is a result of a check, in one line. It contains nothing about a patient, and no secret.
type Finding struct {
	// Check is the name of the check.
	Check  string `json:"check"`
	Status Status `json:"status"`
	// What is the state or the problem.
	What string `json:"what"`
	// Advice says how to fix the problem; "" if there is none.
	Advice string `json:"advice,omitempty"`
}

// Check is one check.
type Check struct {
	Name string
	// Needs names an earlier check. If that is [Wrong], this one is skipped. It may be "".
	Needs string
	// Causes names earlier checks. What they found wrong explains what this one finds.
	Causes []string
	// Run adds its findings to the report. An error is one more, [Wrong]. Run returns when ctx ends.
	Run func(ctx context.Context, r *Report) error
}

// Report collects the findings of one check.
type Report []Finding

func (r *Report) add(f Finding) { *r = append(*r, f) }

func (r *Report) fine(format string, args ...any) { r.add(fine(format, args...)) }

func (r *Report) unknown(what, advice string) {
	r.add(Finding{Status: Unknown, What: what, Advice: advice})
}

func (r *Report) warn(what, advice string) { r.add(warning(what, advice)) }

func (r *Report) wrong(what, advice string) { r.add(wrongly(what, advice)) }

// otherwise is fine for a check without findings.
func (r *Report) otherwise(format string, args ...any) {
	if len(*r) == 0 {
		r.fine(format, args...)
	}
}

// Checks returns the checks for a worker with these settings, whose events have at most so many handlers.
func Checks(s worker.Settings, handlers int) []Check {
	of := postgresChecks
	if s.Embedded() {
		of = sqliteChecks
	}
	server, store := of(s)
	checks := append(settingsChecks(s, handlers), server)
	if s.AMQP.URL == "" {
		return append(checks, store...)
	}
	// Whether the servers work comes first: that explains what else is found.
	broker, queues := rabbitMQChecks(s)
	return slices.Concat(checks, broker, store, queues)
}

// Examine runs the checks one after another and yields their findings. It does not wait longer than the timeout for a check.
func Examine(ctx context.Context, checks []Check, timeout time.Duration) iter.Seq[Finding] {
	return func(yield func(Finding) bool) {
		wrong, found := map[string]bool{}, map[string]bool{} // the latter without those that are skipped
		for _, c := range checks {
			if ctx.Err() != nil {
				return
			}
			findings := Report{{Status: Skipped, What: c.Needs + " is wrong"}}
			if c.Needs == "" || !wrong[c.Needs] {
				findings = c.run(ctx, timeout)
			} else {
				wrong[c.Name] = true
			}
			for _, f := range findings {
				f.Check = c.Name
				f.Advice = c.advice(f, found)
				wrong[c.Name] = wrong[c.Name] || f.Status == Wrong
				found[c.Name] = found[c.Name] || f.Status == Wrong
				if !yield(f) {
					return
				}
			}
		}
	}
}

// run runs a check, and does not wait longer than the timeout.
func (c Check) run(ctx context.Context, timeout time.Duration) Report {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	found := make(chan Report, 1)
	go func() {
		defer cancel()
		var r Report
		if err := c.Run(ctx, &r); err != nil {
			r.wrong(oneLine(err), "")
		}
		found <- r
	}()
	select {
	case findings := <-found:
		return findings
	case <-ctx.Done():
	}
	select {
	case findings := <-found:
		return findings
	case <-time.After(grace):
		return Report{wrongly(fmt.Sprintf("no answer within %s", timeout),
			"check whether the server hangs, or the network drops packets")}
	}
}

// advice is that of a finding: what is to be fixed first, if its cause was found.
func (c Check) advice(f Finding, found map[string]bool) string {
	if f.Status != Wrong && f.Status != Warning {
		return f.Advice
	}
	var first []string
	for _, cause := range c.Causes {
		if found[cause] {
			first = append(first, cause)
		}
	}
	if len(first) == 0 {
		return f.Advice
	}
	return "fix " + strings.Join(first, " and ") + " first, and run doctor again"
}

// grace is how long a check may take to return after the timeout.
const grace = 500 * time.Millisecond

// Worst returns the worse status; [Unknown] is not worse than [OK].
func Worst(a, b Status) Status {
	for _, s := range []Status{Wrong, Skipped, Warning} {
		if a == s || b == s {
			return s
		}
	}
	return OK
}

func fine(format string, args ...any) Finding {
	return Finding{Status: OK, What: fmt.Sprintf(format, args...)}
}

func warning(what, advice string) Finding {
	return Finding{Status: Warning, What: what, Advice: advice}
}

func wrongly(what, advice string) Finding { return Finding{Status: Wrong, What: what, Advice: advice} }

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func ago(d time.Duration) string { return d.Round(time.Second).String() }

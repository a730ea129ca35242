// Package doctor examines what a worker runs on: its settings, its store and its broker. It says what is wrong and what
// to do about it, and changes nothing.
package doctor

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/healz/worker/internal/worker"
)

// Timeout is how long one check may take.
const Timeout = 10 * time.Second

// Status is how a thing is.
type Status string

// The statuses.
const (
	OK Status = "ok"
	// Warning: it works, but somebody should look at it.
	Warning Status = "warning"
	// Wrong: the worker cannot work, or something of what it promises does not hold.
	Wrong Status = "wrong"
	// Skipped: it could not be looked at, as something that it needs is wrong.
	Skipped Status = "skipped"
)

// Finding is what a check has found, one line each. Nothing of it is about a patient, or a secret.
type Finding struct {
	// Check is the name of the check.
	Check  string `json:"check"`
	Status Status `json:"status"`
	// What is how the thing is, or what is wrong with it.
	What string `json:"what"`
	// Advice is what to do; "" where nothing is to be done.
	Advice string `json:"advice,omitempty"`
}

// Check looks at one thing.
type Check struct {
	Name string
	// Needs names an earlier check without which this one is skipped, if that has found something [Wrong]; it may be "".
	Needs string
	// Look returns what it finds, without the name. An error is [Wrong]. It is to return when ctx ends.
	Look func(ctx context.Context) ([]Finding, error)
}

// Checks are those of what the settings name: run by a worker that has the same.
func Checks(s worker.Settings) []Check {
	checks := settingsChecks(s)
	if s.Embedded() {
		checks = append(checks, sqliteChecks(s)...)
	} else {
		checks = append(checks, postgresChecks(s)...)
	}
	if s.AMQP.URL != "" {
		checks = append(checks, rabbitMQChecks(s)...)
	}
	return checks
}

// Examine makes the checks one after another and yields what they find. One that takes longer than the timeout is left
// behind.
func Examine(ctx context.Context, checks []Check, timeout time.Duration) iter.Seq[Finding] {
	return func(yield func(Finding) bool) {
		wrong := map[string]bool{}
		for _, c := range checks {
			if ctx.Err() != nil {
				return
			}
			findings := []Finding{{Status: Skipped, What: c.Needs + " is wrong"}}
			if c.Needs == "" || !wrong[c.Needs] {
				findings = c.look(ctx, timeout)
			} else {
				wrong[c.Name] = true
			}
			for _, f := range findings {
				f.Check = c.Name
				wrong[c.Name] = wrong[c.Name] || f.Status == Wrong
				if !yield(f) {
					return
				}
			}
		}
	}
}

// look makes a check, and does not wait longer than the timeout.
func (c Check) look(ctx context.Context, timeout time.Duration) []Finding {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	found := make(chan []Finding, 1)
	go func() {
		defer cancel()
		findings, err := c.Look(ctx)
		if err != nil {
			findings = append(findings, wrongly(oneLine(err), ""))
		}
		found <- findings
	}()
	select {
	case findings := <-found:
		return findings
	case <-ctx.Done():
	}
	select {
	case findings := <-found: // it had just ended
		return findings
	case <-time.After(grace):
		return []Finding{wrongly(fmt.Sprintf("no answer within %s", timeout),
			"look whether the server is frozen, or the network drops packets")}
	}
}

// grace is how long a check may take to notice that its time is over.
const grace = 500 * time.Millisecond

// Worst is the worst status of some.
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

// oneLine is an error's text, which may have several lines.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func ago(d time.Duration) string { return d.Round(time.Second).String() }

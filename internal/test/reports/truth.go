package reports

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/healz/worker/internal/test/wait"
)

// truth is a number that does not come from the worker.
type truth func(ctx context.Context, s *stage) (float64, error)

func exactly(n float64) truth {
	return func(context.Context, *stage) (float64, error) { return n, nil }
}

func rows(query string) truth {
	return func(ctx context.Context, s *stage) (float64, error) { return s.rows(ctx, query) }
}

// metric is what an expression over the metrics says.
func metric(expression string) truth {
	return func(ctx context.Context, s *stage) (float64, error) { return s.prometheus.value(ctx, expression) }
}

const (
	inbox   = "SELECT count(*) FROM handled"
	letters = "SELECT count(*) FROM dead_letters WHERE state IN ('waiting', 'replaying')"
)

// attemptSpan is how the names of the spans of a handler's attempts begin.
const attemptSpan = "handle "

// claim is an expression over the metrics, and what it must be when all is done.
type claim struct {
	says string
	want truth
	// exact: only if nothing was delivered twice and no worker ended.
	exact bool
	// broker: only with a broker.
	broker bool
}

func claims() []claim {
	return []claim{
		{says: "sum(worker_handler_handled_total)", want: rows(inbox)},
		{says: `sum(worker_messages_total{outcome="handled"})`, want: rows(inbox), exact: true},
		{says: `sum(worker_store_duration_seconds_count{operation="record"})`, want: rows(inbox), exact: true},
		{
			says: "sum(worker_handler_duration_seconds_count)",
			want: metric("sum(worker_handler_handled_total) + sum(worker_handler_failures_total)"),
		},
		{says: "sum(worker_handler_dead_letters_total)", want: rows("SELECT count(*) FROM dead_letters"), exact: true},
		{says: "sum(worker_handler_duplicates_total)", want: exactly(0), exact: true},
		{says: `max(worker_dead_letters{place="store"})`, want: rows(letters)},
		{says: `max(worker_dead_letters{place="queue"})`, want: exactly(0), broker: true},
		{says: "sum(worker_relay_events_total)", want: rows("SELECT count(*) FROM events"), exact: true},
		{says: "sum(worker_relay_failures_total)", want: exactly(0), exact: true},
		{says: "max(worker_relay_lag_events)", want: exactly(0)},
		{says: "max(worker_relay_lag_seconds)", want: exactly(0)},
		{says: "sum(worker_relay_leads)", want: exactly(1)},
		{says: "sum(worker_relay_publishing)", want: exactly(1)},
		{says: "sum(worker_handler_event_age_seconds_count)", want: rows(inbox)},
		{says: "sum(worker_messages_in_flight)", want: exactly(0)},
		{says: "max(worker_oldest_in_flight_seconds)", want: exactly(0)},
		{says: "sum(worker_rabbitmq_connection_up) - 2 * count(up)", want: exactly(0), broker: true},
		{says: "sum(sum by (queue) (worker_queue_consumed) > bool 1)", want: exactly(0), broker: true},
		{says: "sum(max by (queue) (worker_queue_consumed)) > bool 0", want: exactly(1), broker: true},
		{says: "sum(worker_rabbitmq_connections_lost_total)", want: exactly(0), exact: true, broker: true},
		{says: "sum(worker_part_up == bool 0)", want: exactly(0)},
		{says: "sum(worker_publish_confirm_duration_seconds_count) - sum(worker_handler_postponed_total)", want: rows("SELECT (SELECT count(*) FROM events) + " +
			"(SELECT count(*) FROM dead_letters)"), exact: true, broker: true},
		{says: "sum(worker_store_conflicts_total)", want: exactly(0)},
		{says: "sum(worker_trace_spans_dropped_total)", want: exactly(0)},
	}
}

// beyond are the metrics of whose values there is no truth here, and why.
func beyond() map[string]string {
	return map[string]string{
		"worker_build_info":                          "1",
		"worker_store_connections":                   "changes at any time",
		"worker_store_connections_limit":             "a setting",
		"worker_store_connection_waits_total":        "depends on the load of this machine",
		"worker_store_connection_wait_seconds_total": "depends on the load of this machine",
		"worker_look_errors_total":                   "depends on when servers are polled",
	}
}

// same waits until two truths are the same.
func (s *stage) same(ctx context.Context, says string, want truth) {
	s.within(ctx, says, want, func(got, wanted float64) bool { return got == wanted })
}

// atLeast waits until a metric is as great.
func (s *stage) atLeast(ctx context.Context, says string, want truth) {
	s.within(ctx, says, want, func(got, wanted float64) bool { return got >= wanted })
}

func (s *stage) within(ctx context.Context, says string, want truth, fits func(got, wanted float64) bool) {
	s.compared++
	s.judge(says, true)
	last := "no answer"
	if !wait.Until(ctx, reportLimit, interval, func(bounded context.Context) bool {
		got, err := s.prometheus.value(bounded, says)
		wanted, errTruth := want(bounded, s)
		if bounded.Err() == nil {
			last = fmt.Sprintf("%v, but the truth is %v", got, wanted)
			if err := errors.Join(err, errTruth); err != nil {
				last += ": " + err.Error()
			}
		}
		return err == nil && errTruth == nil && fits(got, wanted)
	}) {
		s.blame("%s is %s", says, last)
	}
}

// done waits until each event is handled or a dead letter, and compares the metrics and the readiness with the truth.
// It is exact if nothing was delivered twice and no worker ended.
func (s *stage) done(ctx context.Context, exact bool) {
	var handled, failed float64
	var err error
	if !wait.Until(ctx, quietLimit, interval, func(ctx context.Context) bool {
		if handled, err = s.rows(ctx, inbox); err != nil {
			return false
		}
		failed, err = s.rows(ctx, letters)
		return err == nil && int(handled+failed) == s.appended
	}) {
		s.blame("of %d events %v were handled and %v are dead letters (%v)", s.appended, handled, failed, err)
	}
	s.ready(ctx)
	for _, c := range claims() {
		if (exact || !c.exact) && (!s.embedded || !c.broker) {
			s.same(ctx, c.says, c.want)
		}
	}
	if exact {
		s.same(ctx, "sum(worker_handler_duration_seconds_count)", func(context.Context, *stage) (float64, error) {
			n := 0
			for _, span := range s.traces.Spans() {
				if strings.HasPrefix(span.GetName(), attemptSpan) {
					n++
				}
			}
			return float64(n), nil
		})
	}
	if !s.embedded {
		s.queues(ctx)
	}
}

// queues compares all queues that the workers report with the broker.
func (s *stage) queues(ctx context.Context) {
	reported, err := s.prometheus.query(ctx, "max by (queue) (worker_queue_consumers)", "queue")
	if err != nil || len(reported) == 0 {
		s.blame("no queues are reported: %v", err)
	}
	for queue := range reported {
		of := fmt.Sprintf("{queue=%q}", queue)
		s.same(ctx, "max(worker_queue_messages"+of+")", func(_ context.Context, s *stage) (float64, error) {
			messages, _, err := s.queue(queue)
			return messages, err
		})
		s.same(ctx, "max(worker_queue_consumers"+of+")", func(_ context.Context, s *stage) (float64, error) {
			_, consumers, err := s.queue(queue)
			return consumers, err
		})
	}
	reported, err = s.prometheus.query(ctx, "sum by (queue) (worker_queue_unacked)", "queue")
	if err != nil || len(reported) == 0 {
		s.blame("of no queue the messages in flight are reported: %v", err)
	}
	for queue := range reported {
		s.same(ctx, fmt.Sprintf("sum(worker_queue_unacked{queue=%q})", queue), func(_ context.Context, s *stage) (float64, error) {
			return s.unacked(queue)
		})
	}
}

// ready waits until each worker reports, by /readyz and by its metrics, that all of its parts are well but some: the server
// that those need is away. A part with a question mark may be well.
func (s *stage) ready(ctx context.Context, away ...string) {
	var seen []string
	s.compared += len(s.addresses)
	s.judge("worker_part_up", true)
	isAway := func(down []string) bool {
		return !slices.ContainsFunc(away, func(part string) bool { return !strings.HasSuffix(part, "?") && !slices.Contains(down, part) }) &&
			!slices.ContainsFunc(down, func(part string) bool { return !slices.Contains(away, part) && !slices.Contains(away, part+"?") })
	}
	wantReady := len(away) == 0 || slices.Equal(away, []string{"dead_letters"}) || slices.Equal(away, []string{"queue"}) // a worker can work
	if !wait.Until(ctx, reportLimit, interval, func(ctx context.Context) bool {
		seen = nil
		for i, address := range s.addresses {
			h, answered := s.fleet.Ask(ctx, i)
			var down []string
			for part, state := range h.Parts {
				if state != "ok" && !strings.HasPrefix(state, "ok (") && !strings.HasPrefix(state, "unknown") {
					down = append(down, part)
				}
			}
			up, err := s.prometheus.query(ctx, fmt.Sprintf("worker_part_up{instance=%q} == 0", address), "part")
			scraped := slices.Collect(maps.Keys(up))
			if !answered || err != nil || h.Ready != wantReady || !isAway(down) || !isAway(scraped) {
				seen = append(seen, fmt.Sprintf("%s says by /readyz %t %v, and by worker_part_up that %v are away (%v)",
					address, h.Ready, h.Parts, scraped, err))
			}
		}
		return len(seen) == 0
	}) {
		s.blame("away is %v, but %s", away, strings.Join(seen, "; "))
	}
}

// doctor compares what doctor finds: its exit code, and lines that must be there and must not. A line is the status, the
// name of the check, and what it says.
func (s *stage) doctor(ctx context.Context, code int, must, mustNot string) {
	s.compared += 3
	got, output := s.command(ctx, "", "doctor")
	shown := regexp.MustCompile("(?m)^ok .*\n").ReplaceAllString(output, "")
	if got != code {
		s.blame("doctor exits with %d, not with %d:\n%s", got, code, shown)
	}
	if must != "" && !regexp.MustCompile("(?m)"+must).MatchString(output) {
		s.blame("doctor does not say %q:\n%s", must, shown)
	}
	if mustNot != "" {
		if said := regexp.MustCompile("(?m)^.*?(?:" + mustNot + ").*$").FindString(output); said != "" {
			s.blame("doctor says %q", said)
		}
	}
}

// maxRepeats is how often a worker may log the same message in a scenario with one outage, but the one of each event.
const maxRepeats = 3

// quietLogs checks that an outage has not flooded the logs.
func (s *stage) quietLogs() error {
	message := regexp.MustCompile(`level=(?:INFO|WARN|ERROR) msg=("(?:[^"\\]|\\.)*"|\S+)`)
	for i := range s.addresses {
		s.compared++
		log, err := os.Open(filepath.Join(s.folder, fmt.Sprintf("worker-%d.log", i+1)))
		if err != nil {
			return fmt.Errorf("read the log of a worker: %w", err)
		}
		times := map[string]int{}
		lines := bufio.NewScanner(log)
		for lines.Scan() {
			if found := message.FindStringSubmatch(lines.Text()); found != nil && found[1] != "event" {
				times[found[1]]++
			}
		}
		if err := errors.Join(lines.Err(), log.Close()); err != nil {
			return fmt.Errorf("read the log of a worker: %w", err)
		}
		for text, n := range times {
			if n > maxRepeats {
				s.blame("worker %d has logged %s %d times", i+1, text, n)
			}
		}
	}
	return nil
}

// awaitAlerts waits once until the alerts of the scenario have fired.
func (s *stage) awaitAlerts(ctx context.Context) {
	if s.awaited {
		return
	}
	s.awaited = true
	wait.Until(ctx, alertLimit, interval, func(ctx context.Context) bool {
		fired, err := s.prometheus.fired(ctx)
		return err == nil && !slices.ContainsFunc(s.fires, func(name string) bool { return fired[name] == 0 })
	})
}

package metrics_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/metrics"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/store"
)

// scrape is what Prometheus gets.
func scrape(t *testing.T, m *metrics.Metrics) string {
	t.Helper()
	recorded := httptest.NewRecorder()
	m.Handler().ServeHTTP(recorded, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(t, http.StatusOK, recorded.Code)
	return recorded.Body.String()
}

func samples() metrics.Sources {
	return metrics.Sources{
		Backlog: func(context.Context) (store.Backlog, error) {
			return store.Backlog{Events: 7, Last: store.Position{ID: 7}}, nil
		},
		Letters: func(context.Context) (int, error) { return 2, nil },
		Queues: func(context.Context) ([]amqp.QueueDepth, error) {
			return []amqp.QueueDepth{{Queue: "healz.events.consumer", Messages: 5, Consumers: 1}, {Queue: "healz.events.failed", Messages: 3}}, nil
		},
		Parts: func(context.Context) map[string]error {
			return map[string]error{"store": nil, "bus": errors.New("away")}
		},
		Connections: func() map[string]bool { return map[string]bool{"publish": true, "consume": false} },
		Pools: func() []store.Pool {
			return []store.Pool{{Name: "store", InUse: 1, Idle: 2, Max: 20, Waits: 4, Waited: 2 * time.Second}}
		},
		Shares: func() []amqp.Share {
			return []amqp.Share{{Queue: "healz.events.consumer", Consumes: true, Unacked: 300}}
		},
		Leads:     func() bool { return true },
		Publishes: func() bool { return false },
		Outcomes:  func() map[observe.Outcome]int64 { return map[observe.Outcome]int64{observe.Handled: 9} },
	}
}

// poll lets m poll the sources once.
func poll(ctx context.Context, m *metrics.Metrics, s metrics.Sources) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	m.Poll(ctx, s)
}

func messageOf(eventType string) *message.Message {
	m := message.NewMessage("id", nil)
	m.Metadata.Set(bus.EventTypeKey, eventType)
	return m
}

func TestMetricsKeepToPrometheusRules(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := metrics.New("v1")
		m.Handlers(map[string][]string{"welcome-patient": {"PatientRegistered"}})
		m.Traces(func() int64 { return 0 })
		poll(t.Context(), m, samples())
		problems, err := promlint.New(strings.NewReader(scrape(t, m))).Lint()
		require.NoError(t, err)
		require.Empty(t, problems)
	})
}

func TestHandlersAreCountedByTypesThatAreKnown(t *testing.T) {
	t.Parallel()
	m := metrics.New("v1")
	m.Handlers(map[string][]string{"witness": nil, "welcome-patient": {"PatientRegistered"}})
	attempt := func(eventType string, attempt int, err error) {
		_, end := m.Attempt(t.Context(), "witness", events.Event{Type: eventType}, attempt)
		end(err)
	}
	attempt("PatientRegistered", 1, errors.New("no"))
	attempt("PatientRegistered", 2, nil)
	attempt("PatientRegistered", 1, observe.ErrDuplicate)
	attempt("PatientRegistered", 1, observe.ErrInterrupted)
	m.Duplicate("witness", events.Event{Type: "PatientRegistered"})
	attempt("Ana Kovačević", 1, nil)
	text := scrape(t, m)
	for _, line := range []string{
		`worker_handler_handled_total{event_type="PatientRegistered",handler="witness"} 1`,
		`worker_handler_failures_total{event_type="PatientRegistered",handler="witness"} 1`,
		`worker_handler_retries_total{event_type="PatientRegistered",handler="witness"} 1`,
		`worker_handler_duplicates_total{event_type="PatientRegistered",handler="witness"} 1`,
		`worker_handler_duration_seconds_count{event_type="PatientRegistered",handler="witness"} 2`,
		`worker_handler_handled_total{event_type="other",handler="witness"} 1`,
	} {
		require.Contains(t, text, line+"\n")
	}
	require.NotContains(t, text, "Kova")
}

func TestFailedMessagesAreCounted(t *testing.T) {
	t.Parallel()
	m := metrics.New("v1")
	m.Handlers(map[string][]string{"welcome-patient": {"PatientRegistered"}})
	known, foreign := messageOf("PatientRegistered"), messageOf("Ana Kovačević")
	m.Failed(known, "welcome-patient", time.Second)
	m.Failed(known, "welcome-patient", 0)
	m.Failed(foreign, "welcome-patient", 0)
	m.Failed(foreign, "", 0)
	m.Failed(known, "gone", 0)

	text := scrape(t, m)
	for _, line := range []string{
		`worker_handler_postponed_total{event_type="PatientRegistered",handler="welcome-patient"} 1`,
		`worker_handler_dead_letters_total{event_type="PatientRegistered",handler="welcome-patient"} 1`,
		`worker_handler_dead_letters_total{event_type="other",handler="welcome-patient"} 1`,
		`worker_handler_dead_letters_total{event_type="other",handler="none"} 1`,
		`worker_handler_dead_letters_total{event_type="PatientRegistered",handler="none"} 1`,
	} {
		require.Contains(t, text, line+"\n")
	}
	require.NotContains(t, text, "Kova")
}

// A handler may have the name that stands for no handler.
func TestAHandlerNamedNone(t *testing.T) {
	t.Parallel()
	for range 20 { // the order of a map differs
		m := metrics.New("v1")
		m.Handlers(map[string][]string{"none": {"PatientRegistered"}, "welcome-patient": {"PatientRegistered"}})
		_, end := m.Attempt(t.Context(), "none", events.Event{Type: "PatientRegistered"}, 1)
		end(nil)
		require.Contains(t, scrape(t, m), `worker_handler_handled_total{event_type="PatientRegistered",handler="none"} 1`+"\n")
	}
}

func TestStoreAndBusAreMeasured(t *testing.T) {
	t.Parallel()
	m := metrics.New("v1")
	for operation, err := range map[observe.Operation]error{
		observe.Append: nil, observe.Record: fmt.Errorf("version 3: %w", events.ErrConflict),
	} {
		_, _, end := m.Append(t.Context(), operation, nil)
		end(err)
	}
	m.Confirmed(time.Second)
	m.ConnectionLost("publish")
	batch := []*message.Message{messageOf("a"), messageOf("b")}
	m.Publish(t.Context(), batch)(nil)
	m.Publish(t.Context(), batch)(errors.New("unavailable"))
	text := scrape(t, m)
	for _, line := range []string{
		`worker_store_duration_seconds_count{operation="append"} 1`,
		`worker_store_conflicts_total{operation="append"} 0`,
		`worker_store_conflicts_total{operation="record"} 1`,
		`worker_publish_confirm_duration_seconds_sum 1`,
		`worker_rabbitmq_connections_lost_total{connection="publish"} 1`,
		`worker_relay_events_total 2`,
		`worker_relay_failures_total 1`,
	} {
		require.Contains(t, text, line+"\n")
	}
}

func TestPollsAreShown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := metrics.New("v1")
		require.NotContains(t, scrape(t, m), "worker_relay_lag", "before the first poll")
		poll(t.Context(), m, samples())
		text := scrape(t, m)
		for _, line := range []string{
			`worker_relay_lag_events 7`, `worker_relay_lag_seconds 0`, `worker_relay_leads 1`, `worker_relay_publishing 0`,
			`worker_queue_consumed{queue="healz.events.consumer"} 1`, `worker_queue_unacked{queue="healz.events.consumer"} 300`,
			`worker_messages_in_flight 0`, `worker_oldest_in_flight_seconds 0`,
			`worker_dead_letters{place="store"} 2`, `worker_dead_letters{place="queue"} 3`,
			`worker_queue_messages{queue="healz.events.consumer"} 5`, `worker_queue_consumers{queue="healz.events.consumer"} 1`,
			`worker_part_up{part="store"} 1`, `worker_part_up{part="bus"} 0`,
			`worker_rabbitmq_connection_up{connection="publish"} 1`, `worker_rabbitmq_connection_up{connection="consume"} 0`,
			`worker_store_connections{pool="store",state="in_use"} 1`, `worker_store_connections_limit{pool="store"} 20`,
			`worker_store_connection_waits_total{pool="store"} 4`, `worker_store_connection_wait_seconds_total{pool="store"} 2`,
			`worker_messages_total{outcome="handled"} 9`, `worker_look_errors_total{at="queues"} 0`,
		} {
			require.Contains(t, text, line+"\n")
		}
		require.NotContains(t, text, `queue="healz.events.failed"`, "these are dead letters")
	})
}

func TestWhatCannotBePolledIsAbsent(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(ctx context.Context) error{
		"an error":  func(context.Context) error { return errors.New("away") },
		"no answer": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m, s := metrics.New("v1"), samples()
				var ill atomic.Bool
				backlog := s.Backlog
				s.Backlog = func(ctx context.Context) (store.Backlog, error) {
					if ill.Load() {
						return store.Backlog{}, answer(ctx)
					}
					return backlog(ctx)
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { defer close(done); m.Poll(ctx, s) }()
				synctest.Wait()
				require.Contains(t, scrape(t, m), "worker_relay_lag_events 7\n")

				ill.Store(true)
				<-time.After(15 * time.Second)
				text := scrape(t, m)
				require.NotContains(t, text, "worker_relay_lag")
				require.Regexp(t, `worker_look_errors_total\{at="backlog"\} [1-3]\n`, text)
				require.Contains(t, text, `worker_dead_letters{place="store"} 2`, "one part does not keep back the others")

				ill.Store(false)
				<-time.After(15 * time.Second)
				require.Contains(t, scrape(t, m), "worker_relay_lag_events 7\n")
				cancel()
				<-done
			})
		})
	}
}

func TestWhatWasSeenLongAgoIsAbsent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := metrics.New("v1")
		poll(t.Context(), m, samples())
		<-time.After(time.Minute)
		require.NotContains(t, scrape(t, m), "worker_relay_lag")
	})
}

func TestDroppedSpansAreCountedIfTracesAreOn(t *testing.T) {
	t.Parallel()
	const name = "worker_trace_spans_dropped_total"
	m := metrics.New("v1")
	require.NotContains(t, scrape(t, m), name)
	var dropped int64
	m.Traces(func() int64 { return dropped })
	require.Contains(t, scrape(t, m), name+" 0\n")
	dropped = 3
	require.Contains(t, scrape(t, m), name+" 3\n")
}

// Each metric that the dashboard, the alerts and the documentation name is one that a worker has.
func TestTheMetricsThatAreNamedExist(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := metrics.New("v1")
		m.Handlers(map[string][]string{"welcome-patient": {"PatientRegistered"}})
		m.Traces(func() int64 { return 0 })
		poll(t.Context(), m, samples())
		exist := map[string]bool{"worker_audit": true} // a table
		for _, line := range strings.Split(scrape(t, m), "\n") {
			name, _, _ := strings.Cut(line, " ")
			name, _, _ = strings.Cut(name, "{")
			exist[name] = true
			for _, part := range []string{"_bucket", "_sum", "_count"} { // of a histogram
				exist[strings.TrimSuffix(name, part)] = true
			}
		}
		for _, file := range []string{
			"docs/operations.md", "deploy/grafana/worker.json", "deploy/prometheus/alerts.yaml", "deploy/prometheus/alerts_test.yaml",
			"deploy/kubernetes/keda/scaledobject.yaml",
		} {
			text, err := os.ReadFile(filepath.Join("..", "..", file))
			require.NoError(t, err)
			named := regexp.MustCompile(`\bworker_[a-z_]+`).FindAllString(string(text), -1)
			require.NotEmpty(t, named)
			for _, name := range named {
				require.True(t, exist[name], "%s: there is no %s", file, name)
			}
		}
	})
}

// What is added to each attempt of a handler.
func BenchmarkAttempt(b *testing.B) {
	m := metrics.New("v1")
	m.Handlers(map[string][]string{"welcome-patient": {"PatientRegistered"}})
	b.ReportAllocs()
	for b.Loop() {
		_, end := m.Attempt(b.Context(), "welcome-patient", events.Event{Type: "PatientRegistered"}, 1)
		end(nil)
	}
}

func TestMessagesInFlightAreShown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := metrics.New("v1")
		poll(t.Context(), m, samples())
		_, endFirst := m.Receive(t.Context(), messageOf("a"))
		<-time.After(time.Minute)
		_, endSecond := m.Receive(t.Context(), messageOf("b"))
		<-time.After(time.Second)
		text := scrape(t, m)
		require.Contains(t, text, "worker_messages_in_flight 2\n")
		require.Contains(t, text, "worker_oldest_in_flight_seconds 61\n")
		endFirst(observe.Handled)
		text = scrape(t, m)
		require.Contains(t, text, "worker_messages_in_flight 1\n")
		require.Contains(t, text, "worker_oldest_in_flight_seconds 1\n")
		endSecond(observe.GivenBack)
		require.Contains(t, scrape(t, m), "worker_oldest_in_flight_seconds 0\n")
	})
}

// A Prometheus that asks for OpenMetrics gets the trace of an attempt as an exemplar.
func TestExemplars(t *testing.T) {
	t.Parallel()
	m := metrics.New("v1")
	trace := ""
	m.TraceOf = func(context.Context) string { return trace }
	m.Handlers(map[string][]string{"welcome-patient": {"PatientRegistered"}})
	attempt := func() {
		_, end := m.Attempt(t.Context(), "welcome-patient", events.Event{Type: "PatientRegistered", CreatedAt: time.Now()}, 1)
		end(nil)
	}
	scrapeOpen := func() string {
		recorded, request := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/metrics", nil)
		request.Header.Set("Accept", "application/openmetrics-text")
		m.Handler().ServeHTTP(recorded, request)
		return recorded.Body.String()
	}
	attempt()
	require.NotContains(t, scrapeOpen(), "trace_id")
	trace = "0af7651916cd43dd8448eb211c80319c"
	attempt()
	for _, name := range []string{"worker_handler_duration_seconds_bucket", "worker_handler_event_age_seconds_bucket"} {
		require.Regexp(t, name+`\{[^}]*\} \d+ # \{trace_id="`+trace+`"\}`, scrapeOpen())
	}
	require.NotContains(t, scrape(t, m), "trace_id", "the older format has no exemplars")
}

// An event that was created in the future, by the clock of its producer, has the age 0.
func TestAgeOfEvents(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := metrics.New("v1")
		m.Handlers(map[string][]string{"welcome-patient": {"PatientRegistered"}})
		for _, created := range []time.Duration{-40 * time.Second, time.Hour} {
			_, end := m.Attempt(t.Context(), "welcome-patient", events.Event{Type: "PatientRegistered", CreatedAt: time.Now().Add(created)}, 1)
			end(nil)
		}
		require.Contains(t, scrape(t, m), `worker_handler_event_age_seconds_sum{event_type="PatientRegistered",handler="welcome-patient"} 40`+"\n")
	})
}

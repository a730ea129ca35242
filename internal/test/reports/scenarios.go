package reports

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/test/wait"
)

// scenario is what is done to some workers, and which alerts must fire then. All others must not.
type scenario struct {
	name    string
	fires   []string
	workers int
	flags   []string
	// embedded is a SQLite file and the in-process bus.
	embedded bool
	// harmful: it harms the servers that the scenarios share.
	harmful bool
	// before is done before the workers start; it may be nil.
	before func(context.Context, *stage) error
	play   func(context.Context, *stage) error
}

// published is what doctor must not say of events that wait.
const published = "all committed events are published"

// while is how long a state lasts that must not fire an alert: longer than the longest range and the longest "for" of any.
const while = 2*longest + 5*time.Second

func scenarios() []scenario {
	const rest = "WorkerDeadLettersRest"
	return []scenario{
		{name: "load", workers: 2, play: load},
		{name: "a handler fails", workers: 2, fires: []string{"WorkerHandlerFails", "WorkerDeadLetters", rest}, play: failing},
		{name: "retries succeed", workers: 2, play: retries},
		{name: "retry later", workers: 2, flags: []string{"--retry-later=3s"}, play: retryLater},
		{name: "all postponed", workers: 2, flags: []string{"--retry-later=10m"}, fires: []string{"WorkerHandlerPostpones"}, play: allPostponed},
		{name: "three bad messages", workers: 2, fires: []string{"WorkerDeadLetters", rest}, play: threeBad},
		{name: "replay", workers: 2, fires: []string{"WorkerDeadLetters"}, before: twentyBad, play: replay},
		{name: "failed queue full", workers: 1, fires: []string{"WorkerFailedQueueRefuses", "WorkerDeadLetters", rest}, play: failedQueueFull},
		{name: "another program consumes", workers: 2, fires: []string{"WorkerEventsSplit"}, play: anotherConsumes},
		{name: "slow handler", workers: 1, fires: []string{"WorkerHandlerSlow"}, play: slowHandler},
		{
			name: "stuck handler", workers: 1, flags: []string{"--handler-timeout=5m"}, fires: []string{"WorkerQueueFull", "WorkerEventStuck"},
			play: stuckHandler,
		},
		{name: "standby", workers: 3, play: standby},
		{name: "partitions", workers: 2, flags: []string{"--partitions=4"}, play: partitions},
		{name: "import of old rows", workers: 2, play: importOld},
		{name: "embedded default", workers: 1, embedded: true, fires: []string{"WorkerDeadLetters", rest}, play: threeBad},
		{name: "worker killed", workers: 2, fires: []string{"WorkerDown"}, play: killed},
		{name: "all workers gone", workers: 2, fires: []string{"WorkerDown"}, play: allGone},
		{name: "targets lost", workers: 1, fires: []string{"WorkerAbsent"}, play: func(_ context.Context, s *stage) error { return s.prometheus.loseTargets() }},
		{name: "long transaction", workers: 2, harmful: true, fires: []string{"WorkerRelayLags"}, play: longTransaction},
		{name: "created in the future", workers: 2, harmful: true, play: future},
		{
			name: "broker down", workers: 2, harmful: true, fires: []string{"WorkerPartDown", "WorkerNobodyRelays", "WorkerRelayLags"},
			play: brokerDown,
		},
		{
			name: "memory alarm", workers: 2, harmful: true, fires: []string{"WorkerPartDown", "WorkerNobodyRelays", "WorkerRelayLags"},
			play: memoryAlarm,
		},
		{name: "connections to the broker lost", workers: 2, harmful: true, fires: []string{"WorkerRabbitMQUnsteady"}, play: unsteady},
		{name: "no right to consume", workers: 2, harmful: true, fires: []string{"WorkerPartDown", "WorkerQueueUnconsumed"}, play: unconsumed},
		{name: "Postgres down", workers: 2, harmful: true, fires: []string{"WorkerPartDown", "WorkerNobodyRelays"}, play: postgresDown},
		{name: "Postgres frozen", workers: 2, harmful: true, fires: []string{"WorkerPartDown", "WorkerNobodyRelays"}, play: postgresFrozen},
	}
}

// elsewhere are the alerts that no scenario makes fire, and why; their rules are tested in alerts_test.yaml.
func elsewhere() map[string]string {
	return map[string]string{
		"WorkerConflicts":              "needs two writers of one aggregate that never give way",
		"WorkerStoreConnectionsScarce": "needs a pool that is too small for the load of this machine",
		"WorkerBlind":                  "fires for lasting failures of single polls; an outage has an alert of its own",
	}
}

func load(ctx context.Context, s *stage) error {
	if err := s.stream(ctx, 100, "Fine", "{}"); err != nil {
		return err
	}
	s.done(ctx, true)
	s.same(ctx, "sum(up)", exactly(2))
	s.same(ctx, "sum(worker_handler_failures_total) + sum(worker_handler_retries_total)", exactly(0))
	s.doctor(ctx, 0, "^ok +relay ", "^(warning|wrong)")
	return s.quietLogs()
}

// failing: with the default there are four attempts of each event.
func failing(ctx context.Context, s *stage) error {
	if err := errors.Join(s.switchOn("broken"), s.stream(ctx, 2, "Bad", "{}")); err != nil {
		return err
	}
	s.done(ctx, true)
	s.same(ctx, "sum(worker_handler_failures_total)", exactly(4*float64(s.appended)))
	s.same(ctx, "sum(worker_handler_retries_total)", exactly(3*float64(s.appended)))
	s.doctor(ctx, 1, "^warning +dead letters ", "")
	return nil
}

func retries(ctx context.Context, s *stage) error {
	if err := s.stream(ctx, 3, "Flaky", `{"fails":2}`); err != nil {
		return err
	}
	s.done(ctx, true)
	s.same(ctx, "sum(worker_handler_failures_total)", exactly(2*float64(s.appended)))
	s.same(ctx, "sum(worker_handler_retries_total)", exactly(2*float64(s.appended)))
	return nil
}

// retryLater: the first round of four attempts fails, and one of the next round.
func retryLater(ctx context.Context, s *stage) error {
	postponed := 0
	for end := time.Now().Add(while); time.Now().Before(end); wait.Sleep(ctx, time.Second) {
		if err := errors.Join(s.append(ctx, 1, "Flaky", `{"fails":5}`), s.append(ctx, 2, "Flaky", "{}")); err != nil {
			return err
		}
		postponed++
	}
	s.done(ctx, true)
	s.same(ctx, "sum(worker_handler_postponed_total)", exactly(float64(postponed)))
	s.same(ctx, "sum(worker_handler_failures_total)", exactly(5*float64(postponed)))
	s.same(ctx, "sum(worker_handler_retries_total)", exactly(5*float64(postponed)))
	s.same(ctx, "sum(worker_handler_dead_letters_total)", exactly(0))
	return nil
}

func allPostponed(ctx context.Context, s *stage) error {
	if err := s.stream(ctx, 1, "Flaky", `{"fails":100}`); err != nil {
		return err
	}
	s.same(ctx, "sum(worker_handler_postponed_total)", exactly(float64(s.appended)))
	s.same(ctx, `max(worker_queue_messages{queue=~".*[.]retry[.].*"})`, exactly(float64(s.appended)))
	s.queues(ctx)
	return nil
}

func threeBad(ctx context.Context, s *stage) error {
	for range 3 {
		if err := errors.Join(s.switchOn("broken"), s.append(ctx, 1, "Bad", "{}"), s.append(ctx, 5, "Fine", "{}")); err != nil {
			return err
		}
		wait.Sleep(ctx, 5*time.Second)
	}
	s.done(ctx, true)
	s.same(ctx, "sum(worker_handler_dead_letters_total)", exactly(3))
	s.doctor(ctx, 1, "^warning +dead letters +3 ", "")
	return nil
}

// twentyBad become dead letters as soon as a worker runs.
func twentyBad(ctx context.Context, s *stage) error {
	return errors.Join(s.switchOn("broken"), s.append(ctx, 20, "Bad", "{}"))
}

func replay(ctx context.Context, s *stage) error {
	s.done(ctx, true)
	s.awaitAlerts(ctx)
	if err := s.switchOff("broken"); err != nil {
		return err
	}
	if code, output := s.command(ctx, "", "dlq", "replay", "--all"); code != 0 || !strings.Contains(output, "20 handled") {
		s.blame("dlq replay exits with %d: %s", code, output)
	}
	s.done(ctx, false)
	s.same(ctx, "sum(worker_handler_handled_total)", exactly(20))
	s.same(ctx, `max(worker_dead_letters{place="store"})`, exactly(0))
	return nil
}

// failedQueueFull: the broker refuses dead letters, which are written to the table.
func failedQueueFull(ctx context.Context, s *stage) error {
	policy := "/api/policies/" + s.name + "/full"
	const full = `{"pattern":"[.]failed$","definition":{"max-length":0,"overflow":"reject-publish"},"apply-to":"queues"}`
	if err := s.manage(ctx, "PUT", policy, full); err != nil {
		return err
	}
	wait.Sleep(ctx, 5*time.Second) // the policy reaches the queue
	if err := errors.Join(s.switchOn("broken"), s.append(ctx, 3, "Bad", "{}")); err != nil {
		return err
	}
	s.ready(ctx, "dead_letters")
	s.same(ctx, `max(worker_dead_letters{place="store"})`, exactly(3))
	s.awaitAlerts(ctx)
	s.doctor(ctx, 1, "^warning +worker +dead_letters degraded", "")
	return nil
}

// anotherConsumes: one that takes none of the messages, so that the truth about them is known.
func anotherConsumes(ctx context.Context, s *stage) error {
	conn, err := amqp091.Dial(s.brokerURL)
	if err != nil {
		return err
	}
	defer conn.Close()
	channel, err := conn.Channel()
	if err == nil {
		_, err = channel.Consume("healz.events.consumer", "another", false, false, false, false, nil)
	}
	if err != nil {
		return err
	}
	s.ready(ctx, "queue")
	s.same(ctx, "max(worker_queue_consumers)", exactly(2))
	s.awaitAlerts(ctx)
	s.doctor(ctx, 1, "^warning +queues .*healz.events.consumer has 1 other consumer", "")
	if err := conn.Close(); err != nil {
		return err
	}
	s.ready(ctx)
	return nil
}

func slowHandler(ctx context.Context, s *stage) error {
	if err := s.stream(ctx, 1, "Slow", "{}"); err != nil {
		return err
	}
	s.done(ctx, true)
	return nil
}

func stuckHandler(ctx context.Context, s *stage) error {
	if err := s.switchOn("stuck"); err != nil {
		return err
	}
	for range 15 {
		if err := s.append(ctx, 700, "Stuck", "{}"); err != nil {
			return err
		}
		wait.Sleep(ctx, time.Second)
	}
	s.same(ctx, "max(worker_relay_lag_events)", exactly(0))
	s.queues(ctx)
	s.same(ctx, "sum(worker_messages_in_flight)", exactly(amqp.DefaultConcurrency))
	s.same(ctx, "sum(worker_queue_unacked)", exactly(amqp.DefaultPrefetch))
	s.awaitAlerts(ctx)
	s.atLeast(ctx, "max(worker_oldest_in_flight_seconds)", exactly(longest.Seconds()))
	if err := s.switchOff("stuck"); err != nil {
		return err
	}
	s.done(ctx, true)
	return nil
}

func standby(ctx context.Context, s *stage) error {
	wait.Sleep(ctx, while/2)
	s.done(ctx, true)
	s.same(ctx, "max(worker_queue_consumers)", exactly(1))
	s.fleet.Stop(s.fleet.Leader(ctx))
	s.same(ctx, "sum(worker_relay_leads)", exactly(1))
	if err := s.append(ctx, 10, "Fine", "{}"); err != nil {
		return err
	}
	s.same(ctx, "sum(worker_handler_handled_total)", rows("SELECT count(*) FROM events"))
	return nil
}

func partitions(ctx context.Context, s *stage) error {
	if err := s.stream(ctx, 20, "Fine", "{}"); err != nil {
		return err
	}
	s.done(ctx, true)
	return s.quietLogs()
}

func importOld(ctx context.Context, s *stage) error {
	for end := time.Now().Add(while); time.Now().Before(end); wait.Sleep(ctx, time.Second) {
		if err := s.appendAt(ctx, 200, "Fine", "{}", "-400 days"); err != nil {
			return err
		}
	}
	lag, err := s.prometheus.value(ctx, "max(max_over_time(worker_relay_lag_seconds[5m]))")
	if s.compared++; err != nil || lag > while.Seconds() {
		s.blame("the lag of rows that were just imported is %v s (%v)", lag, err)
	}
	s.done(ctx, true)
	return nil
}

func killed(ctx context.Context, s *stage) error {
	if err := s.append(ctx, 100, "Fine", "{}"); err != nil {
		return err
	}
	leader := s.fleet.Leader(ctx)
	s.fleet.Kill(leader)
	s.same(ctx, "sum(worker_relay_leads)", exactly(1))
	s.same(ctx, "sum(up)", exactly(1))
	s.awaitAlerts(ctx)
	if err := errors.Join(s.fleet.Start(ctx, leader), s.append(ctx, 100, "Fine", "{}")); err != nil {
		return err
	}
	handled := "sum(max_over_time(worker_handler_handled_total[10m]))" // what the dead worker had counted is gone
	s.atLeast(ctx, handled, exactly(100))
	s.same(ctx, "sum(worker_relay_leads)", exactly(1))
	s.ready(ctx)
	return nil
}

func allGone(ctx context.Context, s *stage) error {
	for i := range s.workers {
		s.fleet.Kill(i)
	}
	s.awaitAlerts(ctx)
	return nil
}

// holding keeps a transaction open that has written.
func (s *stage) holding(ctx context.Context, do func() error) error {
	tx, err := s.database.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, "SELECT pg_current_xact_id()"); err != nil {
		return err
	}
	return do()
}

func longTransaction(ctx context.Context, s *stage) error {
	err := s.holding(ctx, func() error {
		if err := s.append(ctx, 25, "Fine", "{}"); err != nil {
			return err
		}
		s.same(ctx, "max(worker_relay_lag_events)", exactly(25))
		s.atLeast(ctx, "max(worker_relay_lag_seconds)", exactly(10))
		s.ready(ctx)
		s.awaitAlerts(ctx)
		s.doctor(ctx, 1, "^warning .*transaction", published)
		return nil
	})
	s.done(ctx, true)
	return err
}

// future: events wait that say that they were created later than now.
func future(ctx context.Context, s *stage) error {
	err := s.holding(ctx, func() error {
		if err := s.appendAt(ctx, 30, "Fine", "{}", "1 day"); err != nil {
			return err
		}
		s.atLeast(ctx, "max(worker_relay_lag_seconds)", exactly(1))
		return nil
	})
	s.same(ctx, "max(worker_relay_lag_seconds)", exactly(0))
	s.done(ctx, true)
	return err
}

// outage harms a server, sees that the workers say so and that alerts fire, heals it, and sees that all is done.
func (s *stage) outage(ctx context.Context, harm, heal func() error, during func() error) error {
	if err := s.append(ctx, 50, "Fine", "{}"); err != nil {
		return err
	}
	s.done(ctx, true)
	wait.Sleep(ctx, shortest) // a rate needs some past
	if err := harm(); err != nil {
		return err
	}
	err := during()
	if err == nil {
		s.awaitAlerts(ctx)
	}
	if err := errors.Join(err, heal()); err != nil {
		return err
	}
	s.done(ctx, false)
	return s.quietLogs()
}

func brokerDown(ctx context.Context, s *stage) error {
	return s.outage(ctx, s.broker.Shut, s.broker.Start, func() error {
		if err := s.append(ctx, 40, "Fine", "{}"); err != nil {
			return err
		}
		s.ready(ctx, "bus", "consumer", "relay?")
		s.same(ctx, "max(worker_relay_lag_events)", exactly(40))
		s.same(ctx, "sum(worker_relay_publishing)", exactly(0))
		s.same(ctx, "sum(worker_rabbitmq_connection_up)", exactly(0))
		s.doctor(ctx, 2, "^wrong +rabbitmq ", "relay-only-own")
		return nil
	})
}

// eval has the broker evaluate an expression.
func (s *stage) eval(expression string) func() error {
	return func() error {
		_, err := s.broker.Control("eval", expression+".")
		return err
	}
}

func memoryAlarm(ctx context.Context, s *stage) error {
	const limit = "vm_memory_monitor:set_vm_memory_high_watermark(%s)"
	return s.outage(ctx, s.eval(fmt.Sprintf(limit, "0.00001")), s.eval(fmt.Sprintf(limit, "0.4")), func() error {
		if err := s.append(ctx, 40, "Fine", "{}"); err != nil {
			return err
		}
		s.ready(ctx, "bus", "relay?")
		s.same(ctx, "max(worker_relay_lag_events)", exactly(40))
		s.same(ctx, "sum(worker_relay_publishing)", exactly(0))
		s.doctor(ctx, 2, "^wrong +(rabbitmq|publishing) .*memory", "^ok +(publishing|relay) ")
		return nil
	})
}

const closeConnections = `[rabbit_networking:close_connection(C, "closed by the administrator") || C <- rabbit_networking:connections()]`

func unsteady(ctx context.Context, s *stage) error {
	for range 4 {
		if err := errors.Join(s.eval(closeConnections)(), s.append(ctx, 20, "Fine", "{}")); err != nil {
			return err
		}
		wait.Sleep(ctx, 4*time.Second)
	}
	s.done(ctx, false)
	s.atLeast(ctx, "sum(worker_rabbitmq_connections_lost_total)", exactly(4))
	return nil
}

func unconsumed(ctx context.Context, s *stage) error {
	harm := func() error { return errors.Join(s.permit(ctx, ".*", "^$"), s.eval(closeConnections)()) }
	heal := func() error { return s.permit(ctx, ".*", ".*") }
	return s.outage(ctx, harm, heal, func() error {
		s.ready(ctx, "consumer")
		s.same(ctx, "max(worker_queue_consumers)", exactly(0))
		return nil
	})
}

// postgresDown: another program still holds nothing open, as its connections end with the server.
func postgresDown(ctx context.Context, s *stage) error {
	return s.outage(ctx, s.postgres.Shut, s.postgres.Start, func() error {
		s.ready(ctx, "relay?", "store")
		s.same(ctx, "sum(worker_relay_leads)", exactly(0))
		s.doctor(ctx, 2, "^wrong +postgres ", published)
		return nil
	})
}

func postgresFrozen(ctx context.Context, s *stage) error {
	return s.outage(ctx, s.postgres.Pause, s.postgres.Resume, func() error {
		s.ready(ctx, "relay?", "store")
		s.doctor(ctx, 2, "^wrong +postgres ", published)
		return nil
	})
}

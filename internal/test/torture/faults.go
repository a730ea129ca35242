package torture

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/test/fleet"
	"github.com/healz/worker/internal/test/posix"
	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/test/wait"
)

const (
	// quietLimit is how long the workers may take to finish all there is, when nothing is wrong and nothing new comes.
	quietLimit = 90 * time.Second
	// gatheredLetters is how many events become dead letters behind a lock, and gatherLimit how long that may take.
	gatheredLetters = 200
	gatherLimit     = 30 * time.Second
)

// fault is a kind of harm. inject does it and returns when it is healed; how the choices fall is the author's.
type fault struct {
	kind   string
	inject func(context.Context, *rig, *author) error
}

// faults are all kinds. No two are done at once. In a cluster "the broker" is one of its nodes, and Postgres the primary.
func faults(c Config) []fault {
	all := []fault{
		{"kill -9 of a worker", killWorker},
		{"kill -9 of the worker that relays", killLeader},
		{"kill -9 of all workers", killAll},
		{"kill -9 of a worker that starts", killStarting},
		{"kill -9 of a worker that replays", killReplayer},
		{"SIGSTOP of a worker", func(ctx context.Context, r *rig, a *author) error {
			return pauseWorker(ctx, r, a, a.IntN(r.fleet.Size()))
		}},
		{"SIGSTOP of the worker that relays", pauseLeader},
		{"SIGTERM of a worker, with a backlog", stopWorker},
		{"rolling restart", rollingRestart},

		{"kill -9 of Postgres", func(ctx context.Context, r *rig, a *author) error { return killServer(ctx, r, a, r.postgres) }},
		{"restart of Postgres", func(ctx context.Context, r *rig, a *author) error { return restart(ctx, r, a, r.postgres) }},
		{"SIGSTOP of Postgres", func(ctx context.Context, r *rig, a *author) error { return pauseServer(ctx, r, a, r.postgres, true) }},
		{"connections to Postgres cut", func(ctx context.Context, r *rig, a *author) error { return cut(ctx, a, r.toPostgres) }},
		{"connections to Postgres reset in a message", func(ctx context.Context, r *rig, a *author) error { return tear(ctx, a, r.toPostgres) }},
		{"Postgres unreachable", func(ctx context.Context, r *rig, a *author) error { return outage(ctx, r, a, r.toPostgres) }},
		{"200 ms to Postgres", func(ctx context.Context, r *rig, a *author) error { return slow(ctx, r, a, r.toPostgres) }},
		{"half-open to Postgres", func(ctx context.Context, r *rig, a *author) error { return halfOpen(ctx, r, a, r.toPostgres) }},
		{"pg_terminate_backend", terminateSessions},
		{"pg_cancel_backend", cancelStatements},
		{"foreign transaction holds an xid", holdTransactionID},
		{"table locked", lockTable},
		{"Postgres out of connections", exhaustConnections},
		{"one connection allowed", setting("ALTER ROLE "+workerRole+" CONNECTION LIMIT 1", "ALTER ROLE "+workerRole+" CONNECTION LIMIT -1", false)},
		{"login to Postgres refused", setting("ALTER ROLE "+workerRole+" NOLOGIN", "ALTER ROLE "+workerRole+" LOGIN", true)},
		{"Postgres read-only", setting("ALTER ROLE "+workerRole+" SET default_transaction_read_only = on",
			"ALTER ROLE "+workerRole+" RESET default_transaction_read_only", true)},
		{"statement_timeout of 5 ms", setting("ALTER ROLE "+workerRole+" SET statement_timeout = 5",
			"ALTER ROLE "+workerRole+" RESET statement_timeout", false)},
		{"rights to insert revoked", setting("REVOKE INSERT ON events, handled FROM "+workerRole,
			"GRANT INSERT ON events, handled TO "+workerRole, false)},
		{"rights of the leases revoked", setting("REVOKE UPDATE ON leases, relay_position FROM "+workerRole,
			"GRANT UPDATE ON leases, relay_position TO "+workerRole, false)},

		{"kill -9 of the broker", func(ctx context.Context, r *rig, a *author) error { return killServer(ctx, r, a, r.broker(a)) }},
		{"restart of the broker", func(ctx context.Context, r *rig, a *author) error { return restart(ctx, r, a, r.broker(a)) }},
		{"kill -9 of Postgres and the broker", killServers},
		{"SIGSTOP of the broker", func(ctx context.Context, r *rig, a *author) error { return pauseServer(ctx, r, a, r.broker(a), false) }},
		{"connections to the broker cut", func(ctx context.Context, r *rig, a *author) error { return cut(ctx, a, r.toRabbit) }},
		{"connections to the broker reset in a frame", func(ctx context.Context, r *rig, a *author) error { return tear(ctx, a, r.toRabbit) }},
		{"broker unreachable", func(ctx context.Context, r *rig, a *author) error { return outage(ctx, r, a, r.toRabbit) }},
		{"200 ms to the broker", func(ctx context.Context, r *rig, a *author) error { return slow(ctx, r, a, r.toRabbit) }},
		{"half-open to the broker", func(ctx context.Context, r *rig, a *author) error { return halfOpen(ctx, r, a, r.toRabbit) }},
		{"broker closes all connections", eval(closeConnections, "")},
		{"broker's memory alarm", eval("vm_memory_monitor:set_vm_memory_high_watermark(0.00001)", "vm_memory_monitor:set_vm_memory_high_watermark(0.4)")},
		{"broker's disk alarm", eval(`rabbit_disk_monitor:set_disk_free_limit("1000000GB")`, `rabbit_disk_monitor:set_disk_free_limit("50MB")`)},
		{"broker's application restarted", eval("rabbit:stop()", "rabbit:start()")},
		{"rights on the broker revoked", eval(rights("", "", "")+", "+closeConnections, rights(".*", ".*", ".*"))},
		{"rights to write to the broker revoked", eval(rights(".*", "^$", ".*"), rights(".*", ".*", ".*"))},
		{"login to the broker refused", eval(fmt.Sprintf("rabbit_auth_backend_internal:clear_permissions(<<%q>>, <<$/>>, <<>>), ", brokerUser)+
			closeConnections, rights(".*", ".*", ".*"))},
		{"failed queue full", fillFailedQueue},
		{"dead-letter exchange deleted", deleteDeadLetterExchange},
		{"replay killed half-way", killReplay},
		{"harm while dead letters are ingested", harmIngestion},
	}
	if c.Cluster {
		all = append(all, clusterFaults()...)
	} else {
		all = append(all, fault{"queue deleted", deleteQueue}, fault{"topology gone", deleteTopology})
	}
	return slices.DeleteFunc(all, func(f fault) bool { return c.Kinds != nil && !c.Kinds.MatchString(f.kind) })
}

func killWorker(ctx context.Context, r *rig, a *author) error {
	if err := r.backlog(ctx, a); err != nil {
		return err
	}
	return r.killAndStart(ctx, a, a.IntN(r.fleet.Size()))
}

func killLeader(ctx context.Context, r *rig, a *author) error {
	if err := r.backlog(ctx, a); err != nil {
		return err
	}
	return r.killAndStart(ctx, a, r.fleet.Leader(ctx))
}

// backlog lets a thousand events gather behind a foreign transaction, so that what is harmed next is busy with them.
func (r *rig) backlog(ctx context.Context, a *author) error {
	return r.holdBack(ctx, func() {
		for range 20 {
			r.load.appendOnce(ctx, a.some(a.newStream(), 50), true)
		}
	})
}

func (r *rig) killAndStart(ctx context.Context, a *author, victim int) error {
	wait.Sleep(ctx, a.between(0, 300*time.Millisecond))
	r.fleet.Kill(victim)
	wait.Sleep(ctx, a.between(0, 2*time.Second))
	return r.fleet.Start(ctx, victim)
}

func killAll(ctx context.Context, r *rig, a *author) error {
	if err := r.backlog(ctx, a); err != nil {
		return err
	}
	wait.Sleep(ctx, a.between(0, 300*time.Millisecond))
	return r.killAll(ctx)
}

func (r *rig) killAll(ctx context.Context) error {
	for i := range r.fleet.Size() {
		r.fleet.Kill(i)
	}
	for i := range r.fleet.Size() {
		if err := r.fleet.Start(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

func killStarting(ctx context.Context, r *rig, a *author) error {
	victim := a.IntN(r.fleet.Size())
	for range a.number(2, 5) {
		r.fleet.Kill(victim)
		if err := r.fleet.Start(ctx, victim); err != nil {
			return err
		}
		wait.Sleep(ctx, a.between(0, 600*time.Millisecond))
	}
	return nil
}

// killReplayer kills the leader while it publishes dead letters for a replay.
func killReplayer(ctx context.Context, r *rig, a *author) error {
	r.load.appendOnce(ctx, a.failures(100), true)
	wait.Sleep(ctx, time.Second)
	bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	replayed := make(chan error, 1)
	go func() { replayed <- r.load.replay(bounded) }()
	wait.Sleep(ctx, a.between(100*time.Millisecond, time.Second))
	err := r.killAndStart(ctx, a, r.fleet.Leader(ctx))
	return errors.Join(err, <-replayed)
}

// stopWorker stops a worker that is busy, in good order.
func stopWorker(ctx context.Context, r *rig, a *author) error {
	if err := r.backlog(ctx, a); err != nil {
		return err
	}
	wait.Sleep(ctx, a.between(0, 300*time.Millisecond))
	victim := a.IntN(r.fleet.Size())
	r.fleet.Stop(victim)
	return r.fleet.Start(ctx, victim)
}

func killServer(ctx context.Context, r *rig, a *author, s *testservers.Server) error {
	if a.chance(0.5) {
		if err := r.backlog(ctx, a); err != nil {
			return err
		}
		wait.Sleep(ctx, a.between(0, 300*time.Millisecond))
	}
	if err := s.Kill(); err != nil {
		return err
	}
	if a.chance(0.5) && (s == r.postgres || len(r.brokers) == 1) {
		r.fleet.AwaitUnready(ctx, 15*time.Second, "a server was killed")
	}
	return s.Start()
}

func killServers(ctx context.Context, r *rig, _ *author) error {
	servers := append([]*testservers.Server{r.postgres}, r.brokers...)
	if err := each(servers, (*testservers.Server).Kill); err != nil {
		return err
	}
	r.fleet.AwaitUnready(ctx, 15*time.Second, "both servers were killed")
	return each(servers, (*testservers.Server).Start)
}

// restart stops a server in good order and starts it again.
func restart(ctx context.Context, r *rig, a *author, s *testservers.Server) error {
	if a.chance(0.1) {
		if err := r.backlog(ctx, a); err != nil {
			return err
		}
	}
	if err := s.Shut(); err != nil {
		return err
	}
	return s.Start()
}

// each does something to several servers at once.
func each(servers []*testservers.Server, do func(*testservers.Server) error) error {
	var tasks sync.WaitGroup
	failures := make([]error, len(servers))
	for i, s := range servers {
		tasks.Go(func() { failures[i] = do(s) })
	}
	tasks.Wait()
	return errors.Join(failures...)
}

// pauseFor is how long a process is stopped: in a cluster, mostly until the other nodes have noticed it. In a long run it is
// now and then longer than all time limits of the workers.
func (r *rig) pauseFor(a *author) time.Duration {
	if r.config.Cluster && a.chance(0.7) {
		return 12 * time.Second
	}
	if r.config.long() && a.chance(0.2) {
		return 20 * time.Second
	}
	return 5 * time.Second
}

func pauseWorker(ctx context.Context, r *rig, a *author, victim int) error {
	r.fleet.Signal(victim, posix.SIGSTOP)
	wait.Sleep(ctx, r.pauseFor(a))
	r.fleet.Signal(victim, posix.SIGCONT)
	return nil
}

// pauseLeader stops the leader of the relay, while it is busy, for longer than its lease lasts.
func pauseLeader(ctx context.Context, r *rig, a *author) error {
	if err := r.backlog(ctx, a); err != nil {
		return err
	}
	return pauseWorker(ctx, r, a, r.fleet.Leader(ctx))
}

// pauseServer stops a server. One that the workers ask again and again they must find missing.
func pauseServer(ctx context.Context, r *rig, a *author, s *testservers.Server, asked bool) error {
	if err := s.Pause(); err != nil {
		return err
	}
	began, pause := time.Now(), r.pauseFor(a)
	if asked {
		r.fleet.AwaitUnready(ctx, pause, "a server is stopped")
	}
	wait.Sleep(ctx, pause-time.Since(began))
	return s.Resume()
}

func cut(ctx context.Context, a *author, p *proxy) error {
	p.refuse(true)
	for range a.number(1, 3) {
		p.cut()
		wait.Sleep(ctx, a.between(0, time.Second))
		p.refuse(false)
	}
	return nil
}

// tear ends connections in the middle of what is sent over them.
func tear(ctx context.Context, a *author, p *proxy) error {
	for range a.number(1, 3) {
		p.tear()
		wait.Sleep(ctx, a.between(200*time.Millisecond, time.Second))
	}
	return nil
}

// outage ends the connections to a server and refuses new ones, for so long that each worker must say so.
func outage(ctx context.Context, r *rig, a *author, p *proxy) error {
	p.refuse(true)
	p.cut()
	r.fleet.AwaitUnready(ctx, r.pauseFor(a), "a server cannot be reached")
	wait.Sleep(ctx, a.between(0, 2*time.Second))
	p.refuse(false)
	return nil
}

func slow(ctx context.Context, r *rig, a *author, p *proxy) error {
	p.slowDown(true)
	p.cut() // what connects again is slow
	wait.Sleep(ctx, r.pauseFor(a)/2)
	p.slowDown(false)
	p.cut()
	return nil
}

// halfOpen swallows what goes over the connections. In the end they are reset, or stay as they are until either end has
// found out by itself.
func halfOpen(ctx context.Context, r *rig, a *author, p *proxy) error {
	p.silence(true)
	wait.Sleep(ctx, r.pauseFor(a)/2)
	p.silence(false)
	if !r.config.long() || a.chance(0.7) {
		p.cut()
	}
	return nil
}

func terminateSessions(ctx context.Context, r *rig, a *author) error {
	for range a.number(1, 3) {
		if err := r.terminate(ctx); err != nil {
			return err
		}
		wait.Sleep(ctx, a.between(0, time.Second))
	}
	return nil
}

// terminate ends all sessions of the worker's role.
func (r *rig) terminate(ctx context.Context) error {
	return r.waiting(ctx, func(ctx context.Context) error {
		_, err := r.admin.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", workerRole)
		return err
	})
}

// cancelStatements cancels what the worker's sessions execute, again and again.
func cancelStatements(ctx context.Context, r *rig, a *author) error {
	wait.Until(ctx, a.between(time.Second, 4*time.Second), 10*time.Millisecond, func(ctx context.Context) bool {
		_, _ = r.admin.Exec(ctx, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = $1 AND state = 'active'", workerRole)
		return false
	})
	return nil
}

// lockTable takes the lock that a change of a table's columns takes.
func lockTable(ctx context.Context, r *rig, a *author) error {
	table := []string{"events", "handled", "leases", "relay_position", "dead_letters", "parked"}[a.IntN(6)]
	hold := a.between(time.Second, r.pauseFor(a))
	return r.waiting(ctx, func(context.Context) error {
		return pgx.BeginFunc(ctx, r.admin, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "LOCK TABLE "+table)
			wait.Sleep(ctx, hold)
			return err
		})
	})
}

// setting changes something in Postgres for a while. It ends the worker's sessions, as some changes are for new ones only.
// If the workers cannot work with it at all, they must say so.
func setting(harm, heal string, unready bool) func(context.Context, *rig, *author) error {
	return func(ctx context.Context, r *rig, a *author) error {
		change := func(sql string) error {
			err := r.waiting(ctx, func(ctx context.Context) error {
				_, err := r.admin.Exec(ctx, sql)
				return err
			})
			return errors.Join(err, r.terminate(ctx))
		}
		if err := change(harm); err != nil {
			return err
		}
		if unready {
			r.fleet.AwaitUnready(ctx, 10*time.Second, harm)
		}
		wait.Sleep(ctx, a.between(time.Second, r.pauseFor(a)))
		return change(heal)
	}
}

func holdTransactionID(ctx context.Context, r *rig, a *author) error {
	pause := r.pauseFor(a)
	hold := a.between(pause/2, pause*3/2)
	return r.holdBack(ctx, func() { wait.Sleep(ctx, hold) })
}

// holdBack does something while a foreign transaction holds back the horizon of all that read in commit order.
func (r *rig) holdBack(ctx context.Context, do func()) error {
	return r.waiting(ctx, func(context.Context) error {
		return pgx.BeginFunc(ctx, r.admin, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "SELECT pg_current_xact_id()"); err != nil {
				return err
			}
			do()
			return nil
		})
	})
}

func rollingRestart(ctx context.Context, r *rig, _ *author) error {
	for i := range r.fleet.Size() {
		r.fleet.Stop(i)
		if err := r.fleet.Start(ctx, i); err != nil {
			return err
		}
		if !r.fleet.AwaitReady(ctx, fleet.StartLimit) {
			r.blame("P10", "not ready %s after a restart: %s", fleet.StartLimit, strings.Join(r.fleet.Unready(ctx), "; "))
		}
	}
	return nil
}

// whileQuiet holds the writers back, waits until the workers have finished all there is, and does something. What lies in
// a queue that is deleted is lost, by RabbitMQ, and nobody is told: so a queue is deleted only when it is empty. And the
// writers are let go on only when the worker's queue is there again: until then the witness's would take the messages,
// and so nobody would be told that they reach no worker.
func whileQuiet(ctx context.Context, r *rig, do func() error) error {
	r.load.gate.Lock()
	defer r.load.gate.Unlock()
	var last verdict
	quiet := wait.Until(ctx, quietLimit, 500*time.Millisecond, func(ctx context.Context) bool {
		v, err := r.judge(ctx)
		last = v
		return err == nil && len(v.lost) == 0 && r.emptied()
	})
	if ctx.Err() != nil {
		return nil
	}
	if !quiet {
		r.blame("P1", "not all is done %s after the writers have stopped; %d events are under way, such as: %s", quietLimit,
			len(last.lost), strings.Join(last.lost[:min(3, len(last.lost))], "; "))
		return nil
	}
	if err := do(); err != nil {
		return err
	}
	if !wait.Until(ctx, fleet.StartLimit, 50*time.Millisecond, func(context.Context) bool { return r.declared() == nil }) && ctx.Err() == nil {
		return fmt.Errorf("the workers did not declare the topology again within %s: %w", fleet.StartLimit, r.declared())
	}
	return r.witness.bind()
}

// emptied tells whether nothing of the worker's queue, and no dead letter that is not in the table yet, is waiting or in
// hand.
func (r *rig) emptied() bool {
	counts := r.queued()
	for _, queue := range []string{consumerQueue, failedQueue} {
		if n, known := counts[queue]; !known || n > 0 {
			return false
		}
	}
	return true
}

// countQueues asks each queue's own node: another that once led a quorum queue goes on telling what it counted then.
const countQueues = `[{binary_to_list(Name), N} || Q <- rabbit_amqqueue:list(<<$/>>), {resource, _, _, Name} <- [amqqueue:get_name(Q)],
	Node <- [case amqqueue:get_pid(Q) of {_, Leader} -> Leader; Pid -> node(Pid) end],
	[{messages, N}] <- [rpc:call(Node, rabbit_amqqueue, info, [Q, [messages]])]].`

var queueCount = regexp.MustCompile(`\{"([^"]+)", (\d+)\}`)

// queued counts what is waiting or in hand of each queue, as far as the broker tells.
func (r *rig) queued() map[string]int {
	answer, err := r.brokers[0].Control("eval", countQueues)
	if err != nil {
		return nil
	}
	counts := map[string]int{}
	for _, one := range queueCount.FindAllStringSubmatch(answer, -1) {
		if n, err := strconv.Atoi(one[2]); err == nil {
			counts[one[1]] = n
		}
	}
	return counts
}

// declared tells what is missing of the contract's topology.
func (r *rig) declared() error {
	return r.onBroker(func(channel *amqp091.Channel) error {
		for _, name := range []string{exchange, deadLetterExchange} {
			if err := channel.ExchangeDeclarePassive(name, amqp091.ExchangeTopic, true, false, false, false, nil); err != nil {
				return err
			}
		}
		for _, name := range []string{consumerQueue, failedQueue} {
			if _, err := channel.QueueDeclarePassive(name, true, false, false, false, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

func deleteQueue(ctx context.Context, r *rig, _ *author) error {
	return whileQuiet(ctx, r, func() error {
		return r.onBroker(func(channel *amqp091.Channel) error {
			_, err := channel.QueueDelete(consumerQueue, false, true, false)
			return err
		})
	})
}

// deleteTopology deletes all that the contract names.
func deleteTopology(ctx context.Context, r *rig, _ *author) error {
	return whileQuiet(ctx, r, func() error {
		return r.onBroker(func(channel *amqp091.Channel) error {
			for _, name := range []string{exchange, deadLetterExchange} {
				if err := channel.ExchangeDelete(name, false, false); err != nil {
					return err
				}
			}
			for _, name := range []string{failedQueue, consumerQueue} {
				if _, err := channel.QueueDelete(name, false, true, false); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// closeConnections is what an administrator's program does to close all connections.
const closeConnections = `[rabbit_networking:close_connection(C, "closed by the administrator") || C <- rabbit_networking:connections()]`

// rights gives the workers' account these rights on the broker.
func rights(configure, write, read string) string {
	return fmt.Sprintf("rabbit_auth_backend_internal:set_permissions(<<%q>>, <<$/>>, <<%q>>, <<%q>>, <<%q>>, <<>>)",
		brokerUser, configure, write, read)
}

// eval does something to the broker as its administrator, and after a while what heals it, if there is something.
func eval(harm, heal string) func(context.Context, *rig, *author) error {
	return func(ctx context.Context, r *rig, a *author) error {
		if a.chance(0.1) {
			if err := r.backlog(ctx, a); err != nil {
				return err
			}
		}
		broker := r.broker(a)
		if _, err := broker.Control("eval", harm+"."); err != nil || heal == "" {
			return err
		}
		wait.Sleep(ctx, a.between(time.Second, r.pauseFor(a)))
		_, err := broker.Control("eval", heal+".")
		return err
	}
}

// fillFailedQueue makes the broker refuse dead letters, which then go to the table by themselves. The overflow is set first:
// RabbitMQ applies the max-length of a policy before its overflow, and would drop the letters that wait in the queue.
func fillFailedQueue(ctx context.Context, r *rig, a *author) error {
	const overflow = `{<<"overflow">>, <<"reject-publish">>}`
	for _, definition := range []string{overflow, `{<<"max-length">>, 0}, ` + overflow} {
		_, err := r.brokers[0].Control("eval", `rabbit_policy:set(<<$/>>, <<"full">>, <<"^`+failedQueue+`$">>,
			[`+definition+`], 0, <<"queues">>, <<>>).`)
		if err != nil {
			return err
		}
	}
	r.load.appendOnce(ctx, a.failures(40), true)
	wait.Sleep(ctx, a.between(time.Second, r.pauseFor(a)))
	_, err := r.brokers[0].Control("eval", `rabbit_policy:delete(<<$/>>, <<"full">>, <<>>).`)
	return err
}

// exhaustConnections takes all connections that Postgres has, but for those that it keeps for superusers.
func exhaustConnections(ctx context.Context, r *rig, a *author) error {
	address := mustParse(r.postgres.URL())
	address.User, address.Path = nil, "/"+database
	address.RawQuery += "&user=" + serviceRole
	var hoard []*pgx.Conn
	defer func() {
		for _, conn := range hoard {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	hold := time.Now().Add(a.between(3*time.Second, max(4*time.Second, r.pauseFor(a)/2)))
	terminated := false
	for ctx.Err() == nil && (time.Now().Before(hold) || !terminated && time.Now().Before(hold.Add(gatherLimit))) {
		conn, err := pgx.Connect(ctx, address.String())
		if err == nil {
			hoard = append(hoard, conn)
			continue
		}
		if !terminated { // there is no free one left: now those of the workers
			terminated = true
			if err := r.terminate(ctx); err != nil {
				return err
			}
		}
		wait.Sleep(ctx, 20*time.Millisecond)
	}
	if !terminated && ctx.Err() == nil {
		return errors.New("could not take all connections of Postgres in time")
	}
	return nil
}

func deleteDeadLetterExchange(ctx context.Context, r *rig, a *author) error {
	for range a.number(1, 3) {
		err := r.onBroker(func(channel *amqp091.Channel) error { return channel.ExchangeDelete(deadLetterExchange, false, false) })
		if err != nil {
			return err
		}
		r.load.appendOnce(ctx, a.failures(3), true)
		wait.Sleep(ctx, a.between(0, time.Second))
	}
	return nil
}

// harmIngestion kills the workers, or cuts their connections to the broker, or ends their sessions at the database, while
// one of them takes dead letters into the table: these gather behind a lock on it, which is released just before.
func harmIngestion(ctx context.Context, r *rig, a *author) error {
	gathered := false
	err := r.waiting(ctx, func(context.Context) error { // a machine under load takes longer than an answer may take
		return pgx.BeginFunc(ctx, r.admin, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "LOCK TABLE dead_letters IN SHARE ROW EXCLUSIVE MODE"); err != nil {
				return err
			}
			if !gathered {
				r.load.appendOnce(ctx, a.failures(gatheredLetters), true)
			}
			gathered = wait.Until(ctx, gatherLimit, 50*time.Millisecond, func(context.Context) bool {
				return r.queued()[failedQueue] >= gatheredLetters/2
			})
			return nil
		})
	})
	if err != nil {
		return err
	}
	if !gathered && ctx.Err() == nil {
		r.blame("P5", "of %d events that fail, not half were dead letters after %s", gatheredLetters, gatherLimit)
	}
	wait.Sleep(ctx, a.between(0, 30*time.Millisecond))
	switch a.IntN(3) {
	case 0:
		return r.killAll(ctx)
	case 1:
		return cut(ctx, a, r.toRabbit)
	default:
		return r.terminate(ctx)
	}
}

// killReplay lets dead letters gather, and replays all again and again with a command that it kills. Most fail again.
func killReplay(ctx context.Context, r *rig, a *author) error {
	for range 4 {
		r.load.appendOnce(ctx, a.failures(50), true)
	}
	wait.Sleep(ctx, time.Second)
	for range a.number(5, 10) {
		bounded, cancel := context.WithTimeout(ctx, a.between(30*time.Millisecond, 600*time.Millisecond))
		err := r.load.replay(bounded)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

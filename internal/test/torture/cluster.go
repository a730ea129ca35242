package torture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/test/wait"
)

// quorumLimit is how long a worker may take to say that it cannot work without the majority of the brokers or the standby.
const quorumLimit = 30 * time.Second

// clusterFaults are the kinds that only a cluster has.
func clusterFaults() []fault {
	type server = testservers.Server
	return []fault{
		{"broker partitioned from the others", partitionBroker},
		{"SIGSTOP of the broker that the consumer and the queue's leader are on", pauseConsumersBroker},
		{"brokers restarted in turn", restartBrokers},
		{"kill -9 of two brokers", killMajority},
		{"kill -9 of the primary, standby promoted", func(ctx context.Context, r *rig, a *author) error { return failover(ctx, r, a, (*server).Kill) }},
		{"SIGSTOP of the primary, standby promoted", func(ctx context.Context, r *rig, a *author) error { return failover(ctx, r, a, (*server).Pause) }},
		{"switchover to the standby", func(ctx context.Context, r *rig, a *author) error { return failover(ctx, r, a, (*server).Shut) }},
		{"kill -9 of the standby", func(ctx context.Context, r *rig, _ *author) error {
			if err := r.standby.Kill(); err != nil {
				return err
			}
			r.fleet.AwaitUnready(ctx, quorumLimit, "commits wait for the standby")
			return r.standby.Start()
		}},
		{"SIGSTOP of the standby", func(ctx context.Context, r *rig, a *author) error { return pauseServer(ctx, r, a, r.standby, false) }},
		{"kill -9 of pgbouncer", func(_ context.Context, r *rig, _ *author) error { return r.pooler.do((*server).Kill) }},
		{"SIGSTOP of pgbouncer", func(ctx context.Context, r *rig, a *author) error {
			err := r.pooler.do((*server).Pause)
			wait.Sleep(ctx, r.pauseFor(a))
			return errors.Join(err, r.pooler.do((*server).Resume))
		}},
	}
}

// startStandby starts a standby of the primary. An append returns when both have it: else a promotion loses what had been
// committed a moment before, whatever the worker does.
func (r *rig) startStandby(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, r.postgres.URL())
	if err != nil {
		return err
	}
	for _, statement := range []string{"ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return errors.Join(err, conn.Close(ctx))
		}
	}
	if err := conn.Close(ctx); err != nil {
		return err
	}
	if r.standby, err = testservers.StartStandby(ctx, r.postgres); err != nil {
		return err
	}
	standby := r.standby
	r.closers = append(r.closers, func() error {
		if standby != r.standby { // it was promoted
			return nil
		}
		return errors.Join(r.keepLog(standby, "standby"), standby.Stop())
	})
	return nil
}

// failover promotes the standby when the primary was stopped in some way, leads all to it, and makes a new standby.
func failover(ctx context.Context, r *rig, a *author, stop func(*testservers.Server) error) error {
	if a.chance(0.5) {
		if err := r.backlog(ctx, a); err != nil {
			return err
		}
	}
	old := r.postgres
	if err := stop(old); err != nil {
		return err
	}
	wait.Sleep(ctx, a.between(0, 3*time.Second))
	conn, err := pgx.Connect(ctx, r.standby.URL())
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "SELECT pg_promote()")
	if err := errors.Join(err, conn.Close(ctx)); err != nil {
		return fmt.Errorf("promote the standby: %w", err)
	}
	r.postgres = r.standby
	r.primary.lead(mustParse(r.postgres.URL()).Host)
	return errors.Join(old.Stop(), r.startStandby(ctx))
}

// partitionBroker cuts a node off from the others: it ends its connections to them, and neither side lets the other in, as
// each expects another cookie. Clients reach both sides. The node sees that it is alone, and pauses.
func partitionBroker(ctx context.Context, r *rig, a *author) error {
	i := a.IntN(len(r.brokers))
	var others []string
	for other := range r.brokers {
		if other != i {
			others = append(others, r.brokers[other].Node())
		}
	}
	onEach := func(do string) error {
		_, err := r.brokers[i].Control("eval", "[begin "+do+" end || N <- ["+strings.Join(others, ",")+"]].")
		return err
	}
	if err := onEach("erlang:set_cookie(N, partitioned), erlang:disconnect_node(N)"); err != nil {
		return err
	}
	wait.Sleep(ctx, a.between(5*time.Second, 15*time.Second))
	return onEach("erlang:set_cookie(N, erlang:get_cookie())")
}

// pauseConsumersBroker stops the node that holds the unacked messages of the workers' queue and the connection of their
// consumer, for longer than the others try to reach it before they take it for gone.
func pauseConsumersBroker(ctx context.Context, r *rig, a *author) error {
	if err := r.backlog(ctx, a); err != nil {
		return err
	}
	node, err := r.brokers[0].Control("eval", fmt.Sprintf(`{ok, Q} = rabbit_amqqueue:lookup({resource, <<$/>>, queue, <<%q>>}),
		Node = hd([node(element(1, C)) || C <- rabbit_amqqueue:consumers(Q)] ++ [node()]),
		rabbit_quorum_queue:transfer_leadership(Q, Node), Node.`, consumerQueue))
	if err != nil {
		return err
	}
	i := slices.IndexFunc(r.brokers, func(s *testservers.Server) bool { return s.Node() == node })
	if i < 0 {
		return fmt.Errorf("no broker is %q", node)
	}
	if err := r.brokers[i].Pause(); err != nil {
		return err
	}
	wait.Sleep(ctx, 20*time.Second)
	return r.brokers[i].Resume()
}

// restartBrokers is a rolling update of the brokers.
func restartBrokers(ctx context.Context, r *rig, _ *author) error {
	for _, s := range r.brokers {
		if err := errors.Join(s.Shut(), s.Start()); err != nil || ctx.Err() != nil {
			return err
		}
	}
	return nil
}

// killMajority leaves one node, which can do nothing alone.
func killMajority(ctx context.Context, r *rig, a *author) error {
	spared := a.IntN(len(r.brokers))
	var victims []*testservers.Server
	for i, s := range r.brokers {
		if i != spared {
			victims = append(victims, s)
		}
	}
	if err := each(victims, (*testservers.Server).Kill); err != nil {
		return err
	}
	r.fleet.AwaitUnready(ctx, quorumLimit, "the majority of the brokers was killed")
	return each(victims, (*testservers.Server).Start)
}

// pooler is pgbouncer, and starts it again when it has ended, as an init system does: some versions crash when a client
// cancels a statement.
type pooler struct {
	mu     sync.Mutex
	server *testservers.Server
}

func (p *pooler) do(action func(*testservers.Server) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return action(p.server)
}

func (r *rig) startPooler(ctx context.Context) error {
	behind := mustParse(r.postgres.URL())
	behind.Host = r.primary.address()
	server, err := testservers.StartPGBouncer(ctx, behind.String())
	if err != nil {
		return err
	}
	r.pooler = &pooler{server: server}
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	var watch sync.WaitGroup
	watch.Go(func() {
		for wait.Sleep(watching, time.Second) {
			conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(watching, "tcp", mustParse(server.URL()).Host)
			if err == nil {
				_ = conn.Close()
				continue
			}
			if err := r.pooler.do((*testservers.Server).Start); err != nil && watching.Err() == nil {
				r.blame("rig", "pgbouncer does not start again: %v", err)
			}
		}
	})
	r.closers = append(r.closers, func() error {
		stop()
		watch.Wait()
		return errors.Join(r.keepLog(server, "pgbouncer"), server.Stop())
	})
	return nil
}

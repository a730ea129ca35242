package torture

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/test/fleet"
	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/test/wait"
)

const (
	// grace is the workers' grace period.
	grace = 10 * time.Second
	// attempts is how often a worker tries a handler.
	attempts = 12
)

// The contract's topology.
const (
	exchange           = "healz.events"
	deadLetterExchange = "healz.events.dlx"
	consumerQueue      = "healz.events.consumer"
	failedQueue        = "healz.events.failed"
)

// The accounts: the worker's, with the rights that roles.sql gives it, and that of another program on the same table.
const (
	database    = "healz"
	workerRole  = "healz_worker"
	serviceRole = "clinic_service"
	brokerUser  = "healz"
)

// rolesFile grants the worker its rights; a psql script, with one variable.
const rolesFile = "migrations/postgres/roles.sql"

// violation is a promise that was broken.
type violation struct{ promise, text string }

// rig is all that a run needs: the servers, the proxies before them, the workers, the traffic and the witnesses.
type rig struct {
	config  Config
	folder  string
	planted string

	postgres   *testservers.Server
	brokers    []*testservers.Server
	standby    *testservers.Server // in a cluster
	pooler     *pooler             // in a cluster
	primary    *proxy              // the address of the Postgres that is written to
	anyBroker  *proxy
	toPostgres *proxy // the workers' way, which is harmed; so is toRabbit
	toRabbit   *proxy
	admin      *pgxpool.Pool // the superuser's
	fleet      *fleet.Fleet
	ledger     *ledger
	witness    *witness
	load       *load
	known      map[string]letter // the dead letters that were in the table, by their ids
	probes     int

	mu         sync.Mutex
	violations []violation
	closers    []func() error
}

// open starts everything but the traffic.
func (r *rig) open(ctx context.Context) error {
	if err := r.startServers(ctx); err != nil {
		return err
	}
	if err := r.prepareDatabase(ctx); err != nil {
		return fmt.Errorf("prepare the database: %w", err)
	}
	if err := r.prepareBroker(ctx); err != nil {
		return fmt.Errorf("prepare the broker: %w", err)
	}
	env := []string{
		"HOME=" + r.folder,
		"DATABASE_URL=" + r.databaseURL(workerRole), "RABBITMQ_URL=" + r.brokerURL(), "WORKER_QUEUE_TYPE=" + r.queueType(),
	}
	args := []string{
		"run", "--http-addr=127.0.0.1:0", "--wait=10m", "--migrate=false", "--chaos", fmt.Sprintf("--retry-attempts=%d", attempts),
		"--retry-initial=5ms", "--retry-max=50ms", "--grace-period=" + grace.String(), "--relay-poll=500ms", "--database-conns=8",
		"--rabbitmq-heartbeat=5s",
	}
	r.fleet = fleet.New(fleet.Config{
		Program: r.config.Worker, Folder: r.folder, Env: env, Args: func(int) []string { return args }, Grace: grace, Blame: r.blame,
	})
	r.closers = append(r.closers, func() error { r.fleet.End(); return nil })
	if err := r.fleet.Launch(ctx, r.config.Workers); err != nil {
		return err
	}
	return r.prepareLoad(ctx, env)
}

func (r *rig) startServers(ctx context.Context) error {
	var starts sync.WaitGroup
	var errPostgres, errRabbit error
	starts.Go(func() { errPostgres = r.startPostgres(ctx) })
	starts.Go(func() {
		if r.config.Cluster {
			r.brokers, errRabbit = testservers.StartRabbitMQCluster(ctx, 3)
			return
		}
		var broker *testservers.Server
		if broker, errRabbit = testservers.StartRabbitMQ(ctx); errRabbit == nil {
			r.brokers = append(r.brokers, broker)
		}
	})
	starts.Wait()
	for i, s := range r.brokers {
		r.closers = append(r.closers, func() error { return errors.Join(r.keepLog(s, fmt.Sprintf("broker-%d", i+1)), s.Stop()) })
	}
	if err := errors.Join(errPostgres, errRabbit); err != nil {
		return err
	}
	var brokers []string
	for _, s := range r.brokers {
		brokers = append(brokers, mustParse(s.URL()).Host)
	}
	database := r.primary.address()
	if r.config.Cluster {
		if err := r.startPooler(ctx); err != nil {
			return err
		}
		database = mustParse(r.pooler.server.URL()).Host
	}
	return errors.Join(r.newProxy(ctx, &r.anyBroker, brokers...), r.newProxy(ctx, &r.toRabbit, brokers...),
		r.newProxy(ctx, &r.toPostgres, database))
}

func (r *rig) newProxy(ctx context.Context, p **proxy, servers ...string) (err error) {
	if *p, err = newProxy(ctx, servers...); err == nil {
		r.closers = append(r.closers, (*p).close)
	}
	return err
}

func (r *rig) startPostgres(ctx context.Context) (err error) {
	if r.postgres, err = testservers.StartPostgres(ctx); err != nil {
		return err
	}
	r.closers = append(r.closers, func() error { return errors.Join(r.keepLog(r.postgres, "postgres"), r.postgres.Stop()) })
	if r.config.Cluster {
		if err := r.startStandby(ctx); err != nil {
			return err
		}
	}
	return r.newProxy(ctx, &r.primary, mustParse(r.postgres.URL()).Host)
}

// keepLog copies a server's log, which goes with the server.
func (r *rig) keepLog(s *testservers.Server, name string) error {
	log, err := os.ReadFile(s.Log())
	if err != nil {
		return fmt.Errorf("keep a server's log: %w", err)
	}
	return os.WriteFile(filepath.Join(r.folder, name+".log"), log, 0o600)
}

func (r *rig) prepareDatabase(ctx context.Context) error {
	own := mustParse(r.postgres.URL())
	own.Host = r.primary.address()
	conn, err := pgx.Connect(ctx, own.String())
	if err != nil {
		return err
	}
	for _, statement := range []string{
		"CREATE DATABASE " + database,
		"CREATE ROLE " + workerRole + " LOGIN PASSWORD '" + r.planted + "'",
		"CREATE ROLE " + serviceRole + " LOGIN PASSWORD '" + r.planted + "'",
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return errors.Join(err, conn.Close(ctx))
		}
	}
	if err := conn.Close(ctx); err != nil {
		return err
	}

	own.Path = "/" + database
	owner, err := postgres.Open(ctx, own.String(), postgres.Options{MaxConns: 2})
	if err != nil {
		return err
	}
	if err := errors.Join(owner.Migrate(ctx), owner.Close()); err != nil {
		return err
	}
	config, err := pgxpool.ParseConfig(own.String())
	if err != nil {
		return err
	}
	config.MaxConns, config.MinConns = 2, 2 // within those that Postgres keeps free for superusers
	if r.admin, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}
	r.closers = append(r.closers, func() error { r.admin.Close(); return nil })
	grants, err := os.ReadFile(rolesFile)
	if err != nil {
		return fmt.Errorf("run this in the root of the repository: %w", err)
	}
	_, err = r.admin.Exec(ctx, strings.ReplaceAll(string(grants), `:"worker"`, workerRole)+
		"GRANT SELECT, INSERT ON events TO "+serviceRole+"; GRANT USAGE ON SEQUENCE events_id_seq TO "+serviceRole)
	return err
}

func (r *rig) prepareBroker(ctx context.Context) error {
	const all = `{"configure":".*","write":".*","read":".*"}`
	err := r.put(ctx, "/api/users/"+brokerUser, fmt.Sprintf(`{"password":%q,"tags":""}`, r.planted))
	if err == nil {
		err = r.put(ctx, "/api/permissions/%2F/"+brokerUser, all)
	}
	if err != nil {
		return err
	}
	err = r.onBroker(func(channel *amqp091.Channel) error {
		return channel.ExchangeDeclare(exchange, amqp091.ExchangeTopic, true, false, false, false, nil)
	})
	if err != nil {
		return err
	}
	r.witness = newWitness(r.adminURL(), r.queueType())
	if err := r.witness.bind(); err != nil {
		return err
	}
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	var watch sync.WaitGroup
	watch.Go(func() { r.witness.watch(watching) })
	r.closers = append(r.closers, func() error { stop(); watch.Wait(); return nil })
	return nil
}

func (r *rig) prepareLoad(ctx context.Context, env []string) error {
	asWorker, err := postgres.Open(ctx, r.databaseURL(workerRole), postgres.Options{MaxConns: 4})
	if err != nil {
		return err
	}
	r.closers = append(r.closers, asWorker.Close)
	service := r.databaseURL(serviceRole)
	if r.config.Cluster { // pgx uses prepared statements, which the pooler does not support
		service = strings.Replace(service, r.toPostgres.address(), r.primary.address(), 1)
	}
	config, err := pgxpool.ParseConfig(service)
	if err != nil {
		return err
	}
	config.MaxConns = 4
	asService, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	r.closers = append(r.closers, func() error { asService.Close(); return nil })
	log, err := os.Create(filepath.Join(r.folder, "commands.log"))
	if err != nil {
		return err
	}
	r.closers = append(r.closers, log.Close)
	r.load = &load{
		seed: r.config.Seed, ledger: r.ledger, store: asWorker, service: asService, broker: r.brokerURL(),
		program: r.config.Worker, env: env, log: log,
	}
	return nil
}

// close ends everything, the last opened first.
func (r *rig) close() error {
	var errs []error
	for i := len(r.closers) - 1; i >= 0; i-- {
		errs = append(errs, r.closers[i]())
	}
	return errors.Join(errs...)
}

// databaseURL and brokerURL lead through the proxies.
func (r *rig) databaseURL(role string) string {
	return fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable", role, r.planted, r.toPostgres.address(), database)
}

func (r *rig) brokerURL() string {
	return fmt.Sprintf("amqp://%s:%s@%s/", brokerUser, r.planted, r.toRabbit.address())
}

// adminURL leads to any broker, as its administrator.
func (r *rig) adminURL() string {
	u := mustParse(r.brokers[0].URL())
	u.Host = r.anyBroker.address()
	return u.String()
}

func (r *rig) queueType() string {
	if r.config.Cluster {
		return "quorum"
	}
	return "classic"
}

// broker chooses one of the brokers.
func (r *rig) broker(a *author) *testservers.Server { return r.brokers[a.IntN(len(r.brokers))] }

// answers tells whether a broker does its work.
func answers(s *testservers.Server) error {
	return withChannel(s.URL(), func(*amqp091.Channel) error { return nil })
}

func mustParse(serversOwn string) *url.URL {
	u, err := url.Parse(serversOwn)
	if err != nil {
		panic(err) // testservers made it of an address and a port
	}
	return u
}

// onBroker does something as the broker's administrator, not through the proxy.
func (r *rig) onBroker(do func(*amqp091.Channel) error) error { return withChannel(r.adminURL(), do) }

// put changes a setting through the broker's management API.
func (r *rig) put(ctx context.Context, path, body string) error {
	return testservers.Manage(ctx, r.brokers[0].ManagementURL(), http.MethodPut, path, body)
}

// versions names the servers.
func (r *rig) versions(ctx context.Context) (string, error) {
	var database string
	err := r.waiting(ctx, func(ctx context.Context) error {
		return r.admin.QueryRow(ctx, "SELECT split_part(current_setting('server_version'), ' ', 1)").Scan(&database)
	})
	if err != nil {
		return "", err
	}
	broker, err := r.brokers[0].Control("--quiet", "version")
	servers := "Postgres " + database + ", RabbitMQ " + strings.TrimSpace(broker)
	if r.config.Cluster {
		servers += fmt.Sprintf(" (%d nodes, quorum queues), a synchronous standby, pgbouncer in transaction mode", len(r.brokers))
	}
	return servers, err
}

// blame notes that a promise was broken.
func (r *rig) blame(promise, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.violations = append(r.violations, violation{promise, fmt.Sprintf(format, args...)})
}

// waiting asks the database as long as it takes to get an answer: it may just have been harmed.
func (r *rig) waiting(ctx context.Context, ask func(context.Context) error) error {
	var last error
	if !wait.Until(ctx, time.Minute, 200*time.Millisecond, func(ctx context.Context) bool {
		bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		err := ask(bounded)
		if err != nil {
			last = err
		}
		return err == nil
	}) {
		return fmt.Errorf("no answer: %w", errors.Join(ctx.Err(), last))
	}
	return nil
}

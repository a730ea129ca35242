package reports

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver pgx
	amqp091 "github.com/rabbitmq/amqp091-go"
	_ "modernc.org/sqlite" // the driver sqlite

	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/test/fleet"
	"github.com/healz/worker/internal/test/otlp"
	"github.com/healz/worker/internal/test/wait"
)

// stage is what one scenario is played on: a database, a virtual host of the broker, workers and a Prometheus of its own.
type stage struct {
	*rig
	scenario

	name, folder string
	brokerURL    string
	addresses    []string // of the workers
	env          []string
	database     *sql.DB
	fleet        *fleet.Fleet
	prometheus   *prometheus
	traces       otlp.Receiver
	appended     int
	compared     int
	awaited      bool // that the alerts fire

	mu       sync.Mutex
	problems []string
	closers  []func()
}

// grace is the workers' grace period.
const grace = 10 * time.Second

// play plays a scenario, and compares.
func (r *rig) play(ctx context.Context, s scenario) Played {
	began := time.Now()
	st := &stage{rig: r, scenario: s, name: strings.NewReplacer(" ", "_", "/", "_", ",", "").Replace(s.name)}
	err := st.open(ctx)
	if err == nil {
		err = s.play(ctx, st)
	}
	fired := map[string]float64{}
	if err == nil {
		st.awaitAlerts(ctx)
		fired, err = st.prometheus.fired(ctx)
	}
	if err == nil {
		var names map[string]float64
		names, err = st.prometheus.query(ctx, `group by (__name__) (last_over_time({__name__=~"worker_.*"}[1h]))`, "__name__")
		for name := range names {
			st.judge(name, false)
		}
	}
	for i := len(st.closers) - 1; i >= 0; i-- {
		st.closers[i]()
	}
	if err != nil {
		st.blame("it could not be played: %s", err)
	}
	return Played{Name: s.name, Must: s.fires, Fired: fired, Compared: st.compared, Problems: st.problems, Took: time.Since(began)}
}

func (s *stage) open(ctx context.Context) (err error) {
	s.folder = filepath.Join(s.rig.folder, s.name)
	if err := os.Mkdir(s.folder, 0o700); err != nil {
		return fmt.Errorf("make the folder of a scenario: %w", err)
	}
	collector := httptest.NewServer(&s.traces)
	s.closers = append(s.closers, collector.Close)
	s.env = []string{"HOME=" + s.folder, "OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL, "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"}
	if s.embedded {
		s.database, err = sql.Open("sqlite", "file:"+filepath.Join(s.folder, "healz.db")+"?_pragma=busy_timeout(5000)")
	} else {
		err = s.openServers(ctx)
	}
	if err != nil {
		return fmt.Errorf("open the servers of a scenario: %w", err)
	}
	s.closers = append(s.closers, func() { _ = s.database.Close() })
	for range s.workers {
		address, err := freeAddress(ctx)
		if err != nil {
			return err
		}
		s.addresses = append(s.addresses, address)
	}
	s.fleet = fleet.New(fleet.Config{
		Program: s.worker, Folder: s.folder, Env: s.env, Grace: grace,
		Args: func(i int) []string {
			return append([]string{"run", "--http-addr=" + s.addresses[i], "--wait=1m", "--grace-period=" + grace.String()}, s.flags...)
		},
		Blame: func(_, format string, args ...any) { s.blame(format, args...) },
	})
	s.closers = append(s.closers, s.fleet.End)
	if s.before != nil {
		if err := s.before(ctx, s); err != nil {
			return err
		}
	}
	if s.prometheus, err = startPrometheus(ctx, s.config.Prometheus, s.folder, s.alerts, s.addresses); err != nil {
		return err
	}
	s.closers = append(s.closers, s.prometheus.stop)
	return s.fleet.Launch(ctx, s.workers)
}

func (s *stage) openServers(ctx context.Context) error {
	if _, err := s.admin.ExecContext(ctx, `CREATE DATABASE "`+s.name+`"`); err != nil {
		return err
	}
	own := at(s.postgres.URL(), s.name)
	owner, err := postgres.Open(ctx, own, postgres.Options{MaxConns: 2})
	if err != nil {
		return err
	}
	if err := errors.Join(owner.Migrate(ctx), owner.Close()); err != nil {
		return err
	}
	if s.database, err = sql.Open("pgx", own); err != nil {
		return err
	}
	s.database.SetMaxIdleConns(0) // it outlives outages
	grants, err := os.ReadFile(rolesFile)
	if err != nil {
		return err
	}
	if _, err := s.database.ExecContext(ctx, strings.ReplaceAll(string(grants), `:"worker"`, workerRole)); err != nil {
		return err
	}
	if err := s.manage(ctx, "PUT", "/api/vhosts/"+s.name, "{}"); err != nil {
		return err
	}
	if err := s.permit(ctx, ".*", ".*"); err != nil {
		return err
	}
	s.brokerURL = at(s.broker.URL(), s.name)
	s.env = append(s.env, "WORKER_MIGRATE=false", "DATABASE_URL="+strings.Replace(own, "//postgres@", "//"+workerRole+"@", 1), "RABBITMQ_URL="+s.brokerURL,
		"WORKER_RABBITMQ_MANAGEMENT_URL="+s.broker.ManagementURL(), "WORKER_RABBITMQ_HEARTBEAT=5s")
	return nil
}

// permit gives the workers' account rights on the broker.
func (s *stage) permit(ctx context.Context, write, read string) error {
	return s.manage(ctx, "PUT", "/api/permissions/"+s.name+"/guest", fmt.Sprintf(`{"configure":".*","write":%q,"read":%q}`, write, read))
}

// at is a server's URL with another path.
func at(server, path string) string {
	u, err := url.Parse(server)
	if err != nil {
		panic(err) // testservers made it of an address and a port
	}
	u.Path = "/" + path
	return u.String()
}

// blame notes that a report was false.
func (s *stage) blame(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
}

const insertSQL = `INSERT INTO events (event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, correlation_id,
	created_at, event_data)
	SELECT $1, 'Task', gen_random_uuid(), 1, gen_random_uuid(), gen_random_uuid(), now() + $2::interval, $3::jsonb
	FROM generate_series(1, $4)`

// append appends n events of a type, each of an aggregate of its own.
func (s *stage) append(ctx context.Context, n int, eventType, data string) error {
	return s.appendAt(ctx, n, eventType, data, "0")
}

// appendAt appends events that say that they were created so long after now.
func (s *stage) appendAt(ctx context.Context, n int, eventType, data, offset string) error {
	s.appended += n
	if !s.embedded {
		_, err := s.database.ExecContext(ctx, insertSQL, eventType, offset, data, n)
		return err
	}
	var lines strings.Builder
	const id = "10000000-0000-4000-8000-000000000000"
	for i := range n {
		fmt.Fprintf(&lines, `{"event_type":%q,"aggregate_type":"Task","aggregate_id":"10000000-0000-4000-8000-%012d","tenant_id":%q,"event_data":%s}`+"\n",
			eventType, s.appended+i, id, data)
	}
	code, output := s.command(ctx, lines.String(), "append")
	if code != 0 {
		return fmt.Errorf("append: exit code %d: %s", code, output)
	}
	return nil
}

// stream appends n events each second for a while.
func (s *stage) stream(ctx context.Context, n int, eventType, data string) error {
	for end := time.Now().Add(while); time.Now().Before(end); {
		if err := s.append(ctx, n, eventType, data); err != nil {
			return err
		}
		wait.Sleep(ctx, time.Second)
	}
	return nil
}

// command runs a command of the worker's, and returns its exit code and what it prints.
func (s *stage) command(ctx context.Context, input string, args ...string) (code int, output string) {
	ctx, cancel := context.WithTimeout(ctx, quietLimit)
	defer cancel()
	c := exec.CommandContext(ctx, s.worker, args...)
	c.Env, c.Dir, c.Stdin = append(slices.Clone(s.env), "HTTP_ADDR="+s.addresses[0]), s.folder, strings.NewReader(input)
	printed, err := c.CombinedOutput()
	if err != nil && c.ProcessState == nil {
		return -1, err.Error()
	}
	return c.ProcessState.ExitCode(), string(printed)
}

// switchOn makes handlers misbehave: those that are broken, or stuck; switchOff ends it.
func (s *stage) switchOn(which string) error {
	return os.WriteFile(filepath.Join(s.folder, which), nil, 0o600)
}

func (s *stage) switchOff(which string) error { return os.Remove(filepath.Join(s.folder, which)) }

// rows asks the database for a number.
func (s *stage) rows(ctx context.Context, query string) (n float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, reportLimit)
	defer cancel()
	err = s.database.QueryRowContext(ctx, query).Scan(&n)
	return n, err
}

// queue asks the broker for the ready messages and the consumers of a queue.
func (s *stage) queue(name string) (messages, consumers float64, err error) {
	conn, err := amqp091.Dial(s.brokerURL)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	channel, err := conn.Channel()
	if err != nil {
		return 0, 0, err
	}
	q, err := channel.QueueDeclarePassive(name, true, false, false, false, nil)
	return float64(q.Messages), float64(q.Consumers), err
}

// unacked asks the broker for the messages of a queue that are in flight.
func (s *stage) unacked(name string) (n float64, err error) {
	value, err := s.broker.Control("eval", fmt.Sprintf("{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<%q>>, queue, <<%q>>)), "+
		"rabbit_amqqueue:info(Q, [messages_unacknowledged]).", s.name, name))
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscanf(strings.TrimSpace(value), "[{messages_unacknowledged,%f}]", &n)
	return n, err
}

package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker"
	"github.com/healz/worker/internal/test/testservers"
)

// asWorker makes the test program a worker.
const asWorker = "TEST_AS_WORKER"

func TestMain(m *testing.M) {
	if os.Getenv(asWorker) != "" {
		Main(func(app *worker.App) {
			worker.OnAll(app, "none", nil)
		})
	}
	testservers.Main(m)
}

// fieldOf is the field of Config that is a flag of `run`; "" is none.
var fieldOf = map[string]string{ //nolint:gochecknoglobals // a constant
	"service":      "Service",
	"database-url": "DatabaseURL", "database-conns": "DatabaseConns", "sqlite-path": "SQLitePath", "migrate": "NoMigrate", "wait": "Wait",
	"rabbitmq-url": "RabbitMQURL", "rabbitmq-management-url": "RabbitMQManagementURL", "rabbitmq-prefix": "RabbitMQPrefix",
	"rabbitmq-heartbeat": "RabbitMQHeartbeat", "queue-type": "QueueType", "partitions": "Partitions", "leave-partitions": "LeavePartitions",
	"competing-consumers": "CompetingConsumers", "prefetch": "Prefetch", "concurrency": "Concurrency", "max-message": "MaxMessage",
	"retry-attempts": "RetryAttempts", "retry-initial": "RetryInitial", "retry-max": "RetryMax", "retry-later": "RetryLater",
	"handler-timeout": "HandlerTimeout", "after-dead-letter": "AfterDeadLetter", "grace-period": "GracePeriod",
	"inbox-retention": "InboxRetention", "relay-poll": "RelayPoll", "relay-batch": "RelayBatch", "relay-start": "RelayStart",
	"relay-only-own": "RelayOnlyOwn", "ingest-dead-letters": "NoIngest", "dead-letter-retention": "DeadLetterRetention",
	"console-token": "ConsoleToken", "console-write-token": "ConsoleWriteToken", "console-write": "ConsoleWrite",
	"http-addr": "", "log-level": "", "log-format": "", "chaos": "", "color": "", "help": "", "version": "",
}

func TestConfigHoldsWhatTheFlagsHold(t *testing.T) {
	t.Parallel()
	flags := map[string]bool{}
	for _, command := range []string{"", "run "} { // the global flags are explained by the first
		help := exec.CommandContext(t.Context(), os.Args[0], strings.Fields(command+"--help")...)
		help.Env = append(os.Environ(), asWorker+"=1")
		printed, err := help.Output()
		require.NoError(t, err)
		for _, flag := range regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z-]+)`).FindAllStringSubmatch(string(printed), -1) {
			require.Contains(t, fieldOf, flag[1])
			flags[flag[1]] = true
		}
	}
	require.Len(t, flags, len(fieldOf))

	config := reflect.TypeFor[Config]()
	for i := range config.NumField() {
		name := config.Field(i).Name
		if slices.Contains([]string{"Pool", "ConsoleOpen", "OTLP", "Logger"}, name) {
			continue
		}
		found := false
		for _, field := range fieldOf {
			found = found || field == name
		}
		require.True(t, found, "%s is no flag", name)
	}
	for flag, field := range fieldOf {
		_, found := config.FieldByName(field)
		require.True(t, found || field == "", flag)
	}
}

func TestEachFieldCounts(t *testing.T) {
	t.Parallel()
	outcome := func(c Config) string {
		s := c.settings()
		shared := s.Pool != nil
		s.Pool = nil
		return fmt.Sprintf("%+v %+v %t", s, c.access(), shared)
	}
	config := reflect.TypeFor[Config]()
	for i := range config.NumField() {
		name := config.Field(i).Name
		if slices.Contains([]string{"NoMigrate", "Wait", "OTLP", "Logger"}, name) { // which New reads
			continue
		}
		var c Config
		field := reflect.ValueOf(&c).Elem().Field(i)
		switch field.Interface().(type) {
		case string:
			field.SetString("other")
		case int:
			field.SetInt(7)
		case bool:
			field.SetBool(true)
		case time.Duration:
			field.SetInt(int64(7 * time.Hour))
		case []time.Duration:
			field.Set(reflect.ValueOf([]time.Duration{time.Second}))
		case *pgxpool.Pool:
			field.Set(reflect.ValueOf(&pgxpool.Pool{}))
		}
		require.NotEqual(t, outcome(Config{}), outcome(c), name)
	}
	require.Zero(t, Config{InboxRetention: Forever}.settings().InboxRetention)
	require.NoError(t, Config{Concurrency: 1000}.settings().Check(), "the default of prefetch follows")
}

// patientRegistered is the data of an event.
type patientRegistered struct {
	Name string `json:"name"`
}

func (patientRegistered) EventType() string { return "PatientRegistered" }

type welcomeRequested struct {
	By string `json:"by"`
}

func (welcomeRequested) EventType() string     { return "WelcomeRequested" }
func (welcomeRequested) AggregateType() string { return "Message" }

// welcoming registers a handler that tells by whom it was.
func welcoming(by string) func(*worker.App) {
	return func(app *worker.App) {
		worker.On(app, "PatientRegistered", "welcome", func(_ context.Context, e worker.Event, _ patientRegistered) ([]worker.Event, error) {
			return worker.Follow(e, welcomeRequested{By: by})
		})
	}
}

// runNew runs a service until the test ends.
func runNew(t *testing.T, c Config, register func(*worker.App)) *Service {
	t.Helper()
	s, err := New(t.Context(), c, register)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-done)
		require.NoError(t, s.Close())
	})
	return s
}

func get(t *testing.T, s *Service, path string) (status int, body string) {
	t.Helper()
	server := httptest.NewServer(s.Handler())
	defer server.Close()
	response, err := server.Client().Get(server.URL + path)
	require.NoError(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(content)
}

// Two workers of one program know nothing of each other.
func TestTwoServicesInOneProcess(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil)) // one lock for both
	services := map[string]*Service{}
	for _, name := range []string{"billing", "messaging"} {
		services[name] = runNew(t, Config{
			SQLitePath: filepath.Join(t.TempDir(), name+".db"), ConsoleOpen: name == "billing",
			Logger: logger.With("service", name),
		}, welcoming(name))
	}
	for name, s := range services {
		e, err := worker.NewEvent(worker.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, patientRegistered{Name: "Ana"})
		require.NoError(t, err)
		require.NoError(t, s.Append(t.Context(), e))
		var duplicate *worker.DuplicateError
		require.ErrorAs(t, s.Append(t.Context(), e), &duplicate)
		require.Eventually(t, func() bool {
			for f, err := range s.Stream(t.Context(), "Message", worker.DerivedID(e.ID, "Message"), 0) {
				return err == nil && string(f.Data) == `{"by":"`+name+`"}`
			}
			return false
		}, 30*time.Second, 20*time.Millisecond)
		status, _ := get(t, s, "/readyz")
		require.Equal(t, http.StatusOK, status)
		_, metrics := get(t, s, "/metrics")
		require.Contains(t, metrics, `worker_handler_handled_total{event_type="PatientRegistered",handler="welcome"} 1`)
	}
	require.Contains(t, log.String(), "service=billing")
	require.NotContains(t, log.String(), "the console is not served", "nobody asked for it")
	status, page := get(t, services["billing"], "/")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, page, "<html")
	status, page = get(t, services["messaging"], "/")
	require.Equal(t, http.StatusNotFound, status)
	require.Contains(t, page, "it needs a ConsoleToken")
}

// patients keeps its repository in a field, which each registration sets.
type patients struct {
	repository *worker.Repository[*patient]
}

type patient struct{ worker.Root }

func (*patient) AggregateType() string    { return "Patient" }
func (*patient) Apply(worker.Event) error { return nil }

func (p *patients) register(app *worker.App) {
	p.repository = worker.NewRepository(app, func() *patient { return &patient{} })
	worker.On(app, "PatientRegistered", "see", func(ctx context.Context, e worker.Event, _ patientRegistered) ([]worker.Event, error) {
		return p.repository.Decide(ctx, worker.CausedBy(e), e.AggregateID, func(a *patient) error {
			return worker.Raise(a, patientSeen{})
		})
	})
}

type patientSeen struct{}

func (patientSeen) EventType() string { return "PatientSeen" }

// Registering again, as for the console, and a second service take nothing from the handlers of the first.
func TestHandlersThatAreRegisteredAgain(t *testing.T) {
	t.Parallel()
	var p patients
	s := runNew(t, Config{SQLitePath: filepath.Join(t.TempDir(), "a.db"), ConsoleOpen: true}, p.register)
	runNew(t, Config{SQLitePath: filepath.Join(t.TempDir(), "b.db"), ConsoleOpen: true}, p.register)
	e, err := worker.NewEvent(worker.Origin{TenantID: uuid.New()}, "Patient", uuid.New(), 1, patientRegistered{Name: "Ana"})
	require.NoError(t, err)
	require.NoError(t, s.Append(t.Context(), e))
	require.Eventually(t, func() bool {
		n := 0
		for f, err := range s.Stream(t.Context(), "Patient", e.AggregateID, 1) {
			require.NoError(t, err)
			require.Equal(t, "PatientSeen", f.Type)
			n++
		}
		return n == 1
	}, 30*time.Second, 20*time.Millisecond)
	require.ErrorContains(t, s.Run(t.Context()), "has run already")
	require.ErrorContains(t, s.AppendTx(t.Context(), nil, e), "the store is SQLite")
}

// All mistakes are reported together, and before anything is opened.
func TestNewReportsAllMistakes(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "none.db")
	_, err := New(t.Context(), Config{SQLitePath: path, RetryAttempts: -1, ConsoleToken: "short", RabbitMQURL: "http://secret"},
		func(app *worker.App) {
			welcoming("")(app)
			welcoming("")(app)
		})
	for _, want := range []string{
		"retry-attempts must be at least 1", "console-token must have at least", "rabbitmq-url is not", `"welcome": the name is registered twice`,
	} {
		require.ErrorContains(t, err, want)
	}
	require.NotContains(t, err.Error(), "secret")
	require.NoFileExists(t, path)
	_, err = New(t.Context(), Config{Pool: &pgxpool.Pool{}, DatabaseConns: 3, Wait: -1}, welcoming(""))
	require.ErrorContains(t, err, "database-conns and a pool contradict each other")
	require.ErrorContains(t, err, "wait must not be negative")
	_, err = New(t.Context(), Config{SQLitePath: path, RabbitMQURL: "amqp://127.0.0.1:1/"}, welcoming(""))
	require.ErrorIs(t, err, ErrBrokerUnavailable)
	_, err = New(t.Context(), Config{SQLitePath: path}, nil)
	require.ErrorContains(t, err, "register is nil")
	_, err = New(t.Context(), Config{DatabaseURL: "postgres://127.0.0.1:1/none"}, welcoming(""))
	require.ErrorIs(t, err, worker.ErrUnavailable)
}

func TestMainReportsMistakes(t *testing.T) {
	t.Parallel()
	run := exec.CommandContext(t.Context(), os.Args[0], "run", "--http-addr=127.0.0.1:0", "--sqlite-path="+filepath.Join(t.TempDir(), "m.db"))
	run.Env = append(slices.DeleteFunc(os.Environ(), func(s string) bool {
		return strings.HasPrefix(s, "DATABASE_URL=") || strings.HasPrefix(s, "RABBITMQ_URL=")
	}), asWorker+"=1")
	printed, err := run.CombinedOutput()
	var exit *exec.ExitError
	require.True(t, errors.As(err, &exit), "%v", err)
	require.Equal(t, 1, exit.ExitCode())
	require.Contains(t, string(printed), `handler "none": its function is nil`)
}

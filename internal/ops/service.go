package ops

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/console"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/metrics"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/worker"
)

// consoleConns is the size of the console's own connection pool: its queries must not use up the worker's connections.
const consoleConns = 4

// Config is what a [Service] is made of.
type Config struct {
	Settings worker.Settings
	// Register registers the handlers.
	Register func(*handlers.Registry)
	// Migrate brings the schema up to date first.
	Migrate bool
	// Wait is how long to wait for servers that are not up yet.
	Wait   time.Duration
	Access console.Access
	// Listening is the address on which the handler is served; nil is that of a server of others.
	Listening net.Addr
	Metrics   *metrics.Metrics
	Observers observe.All
	Logger    *slog.Logger
}

// Service is a worker with its console, health and metrics, which one handler serves.
type Service struct {
	config Config
	health Health
	front  console.Front
	pages  *http.ServeMux

	worker  *worker.Worker
	closers []func() error
	ran     atomic.Bool
}

// New returns a service that is not open yet. Its handler says so meanwhile.
func New(c Config) *Service {
	s := &Service{config: c}
	s.pages = handler(&s.health, c.Metrics.Handler(), func(r *http.Request) bool {
		return c.Access.CheckAddress(c.Listening) == nil && c.Access.ReadsWithoutLogin(r)
	})
	s.pages.Handle("/", &s.front)
	return s
}

// ServeHTTP serves /healthz, /readyz, /metrics and the console.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.pages.ServeHTTP(w, r) }

// Open opens the worker and the console. If the console cannot be opened, the worker runs without it, and logs the reason.
func (s *Service) Open(ctx context.Context) error {
	c := s.config
	w, closeParts, err := worker.Open(ctx, c.Settings, worker.OpenOptions{
		Register: c.Register, Migrate: c.Migrate, Wait: c.Wait, Logger: c.Logger, Metrics: c.Metrics, Observers: c.Observers,
	})
	if err != nil {
		return err
	}
	s.worker, s.closers = w, append(s.closers, closeParts)
	s.health.Report(w)
	if err := c.Access.CheckAddress(c.Listening); err != nil && c.Listening == nil {
		s.front.Refuse(errors.New("the console is not served: it needs a ConsoleToken or a ConsoleWriteToken, or ConsoleOpen"))
	} else if err != nil {
		s.front.Refuse(err)
		c.Logger.WarnContext(ctx, "the console is not served", "reason", err)
	} else if err := s.openConsole(ctx); err != nil {
		s.front.Refuse(errors.New("the console could not be opened: see the log"))
		c.Logger.ErrorContext(ctx, "the console could not be opened", "error", err)
	}
	c.Logger.InfoContext(ctx, "opened", "store", c.Settings.StoreName(), "bus", c.Settings.BusName())
	return nil
}

// Streams is the store of an open service.
func (s *Service) Streams() worker.Streams { return s.worker.Streams() }

// Run works until ctx is done; see [worker.Worker.Run].
func (s *Service) Run(ctx context.Context) error {
	if !s.ran.CompareAndSwap(false, true) {
		return errors.New("the service has run already: open another one")
	}
	return s.worker.Run(ctx)
}

// Close closes what [Service.Open] has opened, after [Service.Run].
func (s *Service) Close() error {
	var errs []error
	for len(s.closers) > 0 {
		last := len(s.closers) - 1
		errs = append(errs, s.closers[last]())
		s.closers = s.closers[:last]
	}
	return errors.Join(errs...)
}

func (s *Service) openConsole(ctx context.Context) error {
	settings := s.config.Settings
	settings.MaxConns = consoleConns
	backend, err := settings.OpenStore(ctx)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, backend.Close)
	registry := settings.Registry(s.config.Register)
	types, _ := handlers.Types(registry)
	c, err := console.New(ctx, console.Config{
		Store: backend, Letters: deadletter.NewTable(backend.SQL()), Audit: audit.NewLog(backend.SQL()), Queued: settings.QueuedDeadLetters,
		Aggregates: handlers.Shown(registry), Appender: worker.Observed(backend, s.config.Observers), Types: types, Handlers: registry.Names(), Access: s.config.Access, Logger: s.config.Logger,
		Status: func(ctx context.Context) console.Status {
			return console.StatusOf(s.worker.Health(ctx), s.config.Metrics.Values(), settings.AMQP.URL == "")
		},
		Try: func(ctx context.Context, chosen deadletter.Filter, by audit.Actor) iter.Seq2[handlers.Outcome, error] {
			return settings.TryDeadLetters(ctx, chosen, worker.TryOptions{Register: s.config.Register, By: by, Logger: s.config.Logger})
		},
	})
	if err != nil {
		return err
	}
	s.front.Serve(c)
	s.closers = append(s.closers, func() error {
		s.front.Stop()
		c.Close()
		return nil
	})
	return nil
}

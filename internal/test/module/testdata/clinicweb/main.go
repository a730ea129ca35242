// Command clinicweb is an existing HTTP service that has a worker inside: its own rows and its events are one commit.
package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/healz/worker"
	"github.com/healz/worker/service"
)

// PatientRegistered says that the clinic has a new patient.
type PatientRegistered struct {
	Name string `json:"name"`
}

// EventType implements [worker.Data].
func (PatientRegistered) EventType() string { return "PatientRegistered" }

// Patient is the aggregate.
type Patient struct{ worker.Root }

// AggregateType implements [worker.Aggregate].
func (*Patient) AggregateType() string { return "Patient" }

// Apply implements [worker.Aggregate].
func (*Patient) Apply(worker.Event) error { return nil }

func welcome(ctx context.Context, e worker.Event, p PatientRegistered) ([]worker.Event, error) {
	return nil, worker.InTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "UPDATE patients SET welcomed = true WHERE id = $1", e.AggregateID)
		return err
	})
}

//go:embed migrations
var migrations embed.FS

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer pool.Close()
	config := service.Config{
		Pool: pool, RabbitMQURL: os.Getenv("RABBITMQ_URL"), Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	w, err := service.New(ctx, config, func(app *worker.App) {
		worker.On(app, "PatientRegistered", "welcome-patient", welcome)
		worker.Migrations(app, "clinicweb", migrations)
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	mux := http.NewServeMux()
	mux.Handle("/", w.Handler())
	mux.HandleFunc("POST /patients", func(rw http.ResponseWriter, r *http.Request) {
		id, err := registerPatient(r.Context(), pool, w, r.FormValue("name"))
		if err != nil {
			http.Error(rw, err.Error(), http.StatusConflict)
			return
		}
		fmt.Fprint(rw, id)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	go func() { _ = server.Serve(listener) }()
	fmt.Fprintf(os.Stderr, "serving http://%s\n", listener.Addr())
	err = w.Run(ctx)
	return errors.Join(err, server.Shutdown(context.WithoutCancel(ctx)))
}

// registerPatient writes the row and appends the event, or does neither.
func registerPatient(ctx context.Context, pool *pgxpool.Pool, w *service.Service, name string) (uuid.UUID, error) {
	id := uuid.New()
	return id, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		p := &Patient{}
		if err := worker.Begin(p, id, worker.Origin{TenantID: uuid.New()}); err != nil {
			return err
		}
		if err := worker.Raise(p, PatientRegistered{Name: name}); err != nil {
			return err
		}
		if err := w.AppendTx(ctx, tx, p.Uncommitted()...); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO patients VALUES ($1, $2, false)", id, name)
		return err
	})
}

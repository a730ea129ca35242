package worker

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/metrics"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/store/postgres"
)

// Observed is a store whose writes are observed.
func Observed(b Backend, o observe.Observer) Backend { return observed{b, o} }

type observed struct {
	Backend
	observer observe.Observer
}

// Append is AppendMany of one.
func (o observed) Append(ctx context.Context, e events.Event) error {
	return o.AppendMany(ctx, []events.Event{e})
}

func (o observed) AppendMany(ctx context.Context, batch []events.Event) error {
	ctx, batch, end := o.observer.Append(ctx, observe.Append, batch)
	err := o.Backend.AppendMany(ctx, batch)
	end(err)
	return err
}

func (o observed) AppendWith(ctx context.Context, batch []events.Event, statement string, args ...any) error {
	ctx, batch, end := o.observer.Append(ctx, observe.Append, batch)
	err := o.Backend.AppendWith(ctx, batch, statement, args...)
	end(err)
	return err
}

// AppendTx implements [Streams].
func (o observed) AppendTx(ctx context.Context, tx pgx.Tx, batch []events.Event) error {
	database, is := o.Backend.(*postgres.Store)
	if !is {
		return errors.New("append in a transaction: the store is SQLite, and the transaction Postgres's")
	}
	ctx, batch, end := o.observer.Append(ctx, observe.Append, batch)
	err := database.AppendTx(ctx, tx, batch)
	end(err)
	return err
}

func (o observed) Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error {
	ctx, followUps, end := o.observer.Append(ctx, observe.Record, followUps)
	err := o.Backend.Record(ctx, handler, e, followUps)
	end(err)
	return err
}

// sources are what the metrics poll of an opened worker.
func sources(w *Worker, backend Backend, letters *deadletter.Table, conn *amqp.Connection) metrics.Sources {
	s := metrics.Sources{
		Backlog: w.parts.Tail.Backlog, Letters: letters.Count, Pools: backend.Pools, Leads: w.lease.Held,
		Publishes: func() bool { return w.relay.Publishing() && w.parts.Bus.Ready() == nil },
		Parts:     w.check, Outcomes: w.counts.Map,
	}
	if conn != nil {
		s.Queues, s.Connections = conn.Depths, conn.Up
		s.Shares = w.parts.Bus.(broker).Shares //nolint:forcetypeassert // with a connection it is one
	}
	return s
}

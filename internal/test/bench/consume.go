package bench

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"time"

	wamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sync/errgroup"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/worker"
)

const (
	// rawPrefetch is as much as makes the raw consumer no faster when it is more.
	rawPrefetch = 256
	handlerName = "benchmark"
)

// measureConsume measures what becomes of deliveries: handed to a handler that does nothing, without a store and with the
// inbox, and handled with a follow-up.
func measureConsume(ctx context.Context, s *stage) error {
	if !s.wantsAny("consume", "consume-inbox", "consume-effect") {
		return nil
	}
	pool, err := s.rawDatabase(ctx)
	if err != nil {
		return err
	}
	db, err := s.stockDatabase(ctx)
	if err != nil {
		return err
	}
	if err := prepareStockHandle(ctx, db); err != nil {
		return err
	}
	_, backend, err := s.newStore(ctx)
	if err != nil {
		return err
	}

	nothing := func(context.Context, events.Event, booked) ([]events.Event, error) { return nil, nil }
	for _, row := range []struct {
		rate
		raw   func(context.Context, []byte) error
		stock func(context.Context, *message.Message) error
		inbox worker.Inbox
		ours  func(context.Context, events.Event, booked) ([]events.Event, error)
	}{
		{
			rate:  rate{name: "consume", what: "consume, dispatch to a no-op handler, no store", reach: 0.8},
			stock: func(context.Context, *message.Message) error { return nil },
			inbox: memory{},
			ours:  nothing,
		},
		{
			rate:  rate{name: "consume-inbox", what: "the same with the inbox in the store"},
			raw:   func(ctx context.Context, body []byte) error { return rawHandle(ctx, pool, body, rawInboxSQL) },
			stock: func(ctx context.Context, m *message.Message) error { return stockHandle(ctx, db, m, false) },
			inbox: backend,
			ours:  nothing,
		},
		{
			rate:  rate{name: "consume-effect", what: "consume with inbox and one follow-up appended", reach: 1.5},
			raw:   func(ctx context.Context, body []byte) error { return rawHandle(ctx, pool, body, rawEffectSQL) },
			stock: func(ctx context.Context, m *message.Message) error { return stockHandle(ctx, db, m, true) },
			inbox: backend,
			ours:  remind,
		},
	} {
		row.step, row.most = 1, mostQueued
		var c contenders
		if c.raw, err = s.rawConsumer(ctx, row.raw); err != nil {
			return err
		}
		if c.stock, err = s.stockConsumer(row.stock); err != nil {
			return err
		}
		if c.ours, err = s.ownConsumer(ctx, row.inbox, row.ours); err != nil {
			return err
		}
		if err := s.measureRate(ctx, row.rate, c); err != nil {
			return err
		}
	}
	return nil
}

// remind is a handler with one follow-up.
func remind(_ context.Context, e events.Event, b booked) ([]events.Event, error) {
	return events.Follow(e, reminder{PatientID: b.PatientID, At: b.StartsAt.Add(-24 * time.Hour)})
}

// fillQueue publishes n samples.
func (s *stage) fillQueue(ctx context.Context, exchange, key string, n int) error {
	list, err := samples(n)
	if err != nil {
		return err
	}
	all, err := bodies(list)
	if err != nil {
		return err
	}
	return s.onBroker(func(channel *amqp091.Channel) error {
		if err := channel.Confirm(false); err != nil {
			return err
		}
		confirms := channel.NotifyPublish(make(chan amqp091.Confirmation, len(all)))
		for i, body := range all {
			p := publishing(body)
			p.MessageId = list[i].ID.String()
			if err := channel.PublishWithContext(ctx, exchange, key, false, false, p); err != nil {
				return err
			}
		}
		for range all {
			if c, ok := <-confirms; !ok || !c.Ack {
				return errors.New("a sample got no confirm")
			}
		}
		return nil
	})
}

// rawConsumer consumes and acks each delivery, with all callers if there is something to do for it. The time is that
// from the first delivery to the last ack.
func (s *stage) rawConsumer(ctx context.Context, handle func(context.Context, []byte) error) (contender, error) {
	prefix, err := s.newTopology(ctx)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, n int) (took spent, err error) {
		if err := s.fillQueue(ctx, prefix, eventType, n); err != nil {
			return spent{}, err
		}
		err = s.onBroker(func(channel *amqp091.Channel) error {
			if err := channel.Qos(rawPrefetch, 0, false); err != nil {
				return err
			}
			deliveries, err := channel.Consume(prefix+".consumer", "", false, false, false, false, nil)
			if err != nil {
				return err
			}
			counted := newCount(n)
			work := func() error {
				for {
					select {
					case <-counted.done:
						return nil
					case d, ok := <-deliveries:
						if !ok {
							return errors.New("the raw consumer's channel was closed")
						}
						if handle != nil {
							if err := handle(ctx, d.Body); err != nil {
								return err
							}
						}
						if err := d.Ack(false); err != nil {
							return err
						}
						counted.add(1)
					}
				}
			}
			if handle == nil {
				err = work()
			} else {
				var group errgroup.Group
				for range callers {
					group.Go(work)
				}
				err = group.Wait()
			}
			took = counted.took
			return err
		})
		return took, err
	}, nil
}

// Each is one statement, and so one transaction and one round trip.
const (
	rawInboxSQL  = `INSERT INTO inbox (event_id, handler) VALUES ($1, $2) ON CONFLICT DO NOTHING`
	rawEffectSQL = `WITH seen AS (
			INSERT INTO inbox (event_id, handler) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING event_id
		)
		INSERT INTO events (event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id, causation_id,
			correlation_id, event_data)
		SELECT $3, $4, $5, $6, 1, $7, event_id, $8, $9 FROM seen`
)

// rawHandle does the least for an event: it notes that it was handled, and what follows from it.
func rawHandle(ctx context.Context, pool *pgxpool.Pool, body []byte, statement string) error {
	var e struct {
		ID            uuid.UUID `json:"event_id"`
		TenantID      uuid.UUID `json:"tenant_id"`
		CorrelationID uuid.UUID `json:"correlation_id"`
		Data          booked    `json:"event_data"`
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return err
	}
	args := []any{e.ID, handlerName}
	if statement == rawEffectSQL {
		data, err := json.Marshal(reminder{PatientID: e.Data.PatientID, At: e.Data.StartsAt.Add(-24 * time.Hour)})
		if err != nil {
			return err
		}
		args = append(args, uuid.New(), followUpType, reminder{}.AggregateType(), uuid.New(), e.TenantID, e.CorrelationID, data)
	}
	_, err := pool.Exec(ctx, statement, args...)
	return err
}

// stockConsumer consumes with Watermill's router, and with the prefetch of the others: by default it is 1.
func (s *stage) stockConsumer(handle func(context.Context, *message.Message) error) (contender, error) {
	config, queue, err := s.stockConfig()
	if err != nil {
		return nil, err
	}
	config.Consume.Qos.PrefetchCount = rawPrefetch
	return func(ctx context.Context, n int) (spent, error) {
		if err := s.fillQueue(ctx, "", queue, n); err != nil {
			return spent{}, err
		}
		subscriber, err := wamqp.NewSubscriber(config, stockLogger())
		if err != nil {
			return spent{}, err
		}
		router, err := message.NewRouter(message.RouterConfig{}, stockLogger())
		if err != nil {
			return spent{}, err
		}
		counted := newCount(n)
		//nolint:contextcheck // the message carries the context
		router.AddConsumerHandler(handlerName, queue, subscriber, func(m *message.Message) error {
			if err := handle(m.Context(), m); err != nil {
				return err
			}
			counted.add(1)
			return nil
		})
		return whileRouting(ctx, router, func(ctx context.Context) (spent, error) {
			return counted.wait(ctx)
		})
	}, nil
}

// stockHandle does in one transaction what a handler of Watermill's does that is to take effect once.
func stockHandle(ctx context.Context, db *sql.DB, m *message.Message, follows bool) error {
	e, err := events.Parse(m.Payload)
	if err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	done, err := tx.ExecContext(ctx, "INSERT INTO inbox (event_id) VALUES ($1) ON CONFLICT DO NOTHING", e.ID.String())
	if err != nil {
		return err
	}
	isNew, err := done.RowsAffected()
	if err != nil {
		return err
	}
	if follows && isNew == 1 {
		data, err := events.DataOf[booked](e)
		if err != nil {
			return err
		}
		followUps, err := remind(ctx, e, data)
		if err != nil {
			return err
		}
		messages, err := stockMessages(followUps)
		if err != nil {
			return err
		}
		publisher, err := wsql.NewPublisher(tx, wsql.PublisherConfig{SchemaAdapter: wsql.DefaultPostgreSQLSchema{}}, stockLogger())
		if err != nil {
			return err
		}
		if err := publisher.Publish(stockTopic, messages...); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// ownConsumer consumes with the worker, whose relay has nothing to do. The time is that from the first record of the
// handler to the last.
func (s *stage) ownConsumer(
	ctx context.Context, inbox worker.Inbox, handle func(context.Context, events.Event, booked) ([]events.Event, error),
) (contender, error) {
	prefix, err := s.newTopology(ctx)
	if err != nil {
		return nil, err
	}
	_, quiet, err := s.newStore(ctx)
	if err != nil {
		return nil, err
	}
	settings := worker.DefaultSettings()
	return func(ctx context.Context, n int) (_ spent, err error) {
		conn, err := amqp.Dial(ctx, amqp.Config{
			URL: s.broker, Prefix: prefix, Prefetch: settings.AMQP.Prefetch, Concurrency: settings.Tuning.Concurrency,
			Logger: logger(),
		})
		if err != nil {
			return spent{}, err
		}
		defer func() { err = errors.Join(err, conn.Close()) }()
		publisher := amqp.NewPublisher(conn)
		defer func() { err = errors.Join(err, publisher.Close()) }()
		if err := publishSamples(ctx, publisher, n); err != nil {
			return spent{}, err
		}
		tail, err := quiet.Tail(ctx, settings.Relay)
		if err != nil {
			return spent{}, err
		}
		defer func() { err = errors.Join(err, tail.Close()) }()
		counted := &countedInbox{Inbox: inbox, count: newCount(n)}
		var registry handlers.Registry
		handlers.On(&registry, eventType, handlerName, handle)
		w, err := worker.New(ctx, worker.Parts{
			Inbox: counted, Tail: tail, Bus: broker{amqp.NewSubscriber(conn), publisher, conn},
			Sink: amqp.NewFailedQueue(conn), Handlers: &registry, Letters: deadletter.NewTable(quiet.SQL()),
		}, settings.Tuning, logger())
		if err != nil {
			return spent{}, err
		}
		return whileWorking(ctx, w, func(ctx context.Context) (spent, error) {
			return counted.count.wait(ctx)
		})
	}, nil
}

// publishSamples publishes n samples as the relay does.
func publishSamples(ctx context.Context, publisher bus.BatchPublisher, n int) error {
	list, err := samples(n)
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(list, window) {
		if err := bus.New(publisher).PublishMany(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// whileWorking does something while the worker runs.
func whileWorking(
	ctx context.Context, w *worker.Worker, do func(context.Context) (spent, error),
) (spent, error) {
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		defer stop()
		ended <- w.Run(running)
	}()
	took, err := do(running)
	stop()
	return took, errors.Join(err, <-ended)
}

// broker is RabbitMQ as the worker's bus.
type broker struct {
	*amqp.Subscriber
	*amqp.Publisher
	*amqp.Connection
}

func (b broker) Close() error { return b.Subscriber.Close() }

// countedInbox counts what is recorded.
type countedInbox struct {
	worker.Inbox
	count *count
}

func (i *countedInbox) Record(ctx context.Context, handler string, e events.Event, followUps []events.Event) error {
	err := i.Inbox.Record(ctx, handler, e, followUps)
	if err == nil {
		i.count.add(1)
	}
	return err
}

// memory is an inbox that costs nothing and remembers nothing, for the cost of all but the store.
type memory struct{ worker.Inbox }

func (memory) Handled(context.Context, events.Event) ([]string, error) { return nil, nil }
func (memory) Attempt(ctx context.Context) context.Context             { return ctx }
func (memory) Ping(context.Context) error                              { return nil }

func (memory) Record(context.Context, string, events.Event, []events.Event) error { return nil }

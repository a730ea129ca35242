package bench

import (
	"context"
	"fmt"
	"slices"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
)

// stockTopic is watermill-sql's table for the rows in which nobody reads from it.
const stockTopic = "appointments"

// measureAppends measures appends of one event and of many, by one caller and by many.
func measureAppends(ctx context.Context, s *stage) error {
	if !s.wantsAny("append-1", "append-32", "append-100", "append-1000") {
		return nil
	}
	raw, err := s.rawDatabase(ctx)
	if err != nil {
		return err
	}
	db, err := s.stockDatabase(ctx)
	if err != nil {
		return err
	}
	stock, err := wsql.NewPublisher(db, wsql.PublisherConfig{
		SchemaAdapter: wsql.DefaultPostgreSQLSchema{}, AutoInitializeSchema: true,
	}, stockLogger())
	if err != nil {
		return err
	}
	_, ours, err := s.newStore(ctx)
	if err != nil {
		return err
	}
	appendStock := adder(func(_ context.Context, batch []events.Event) error {
		messages, err := stockMessages(batch)
		if err != nil {
			return err
		}
		return stock.Publish(stockTopic, messages...)
	})

	first, err := samples(1)
	if err != nil {
		return err
	}
	if err := appendStock(ctx, first); err != nil { // makes its table, which it cannot do twice at once
		return err
	}
	insert := adder(func(ctx context.Context, batch []events.Event) error {
		_, err := raw.Exec(ctx, insertSQL, insertArgs(batch[0])...)
		return err
	})
	err = s.measureRate(ctx, rate{
		name: "append-1", what: "append one event, one caller", reach: 0.9, step: streamLength,
	}, contenders{raw: appending(1, insert), stock: appending(1, appendStock), ours: appending(1, appendOne(ours))})
	if err != nil {
		return err
	}
	err = s.measureRate(ctx, rate{
		name: "append-32", what: fmt.Sprintf("append one event, %d callers", callers), reach: 1.5, step: callers * streamLength,
	}, contenders{
		raw: ofSamples(insert.fromMany), stock: ofSamples(appendStock.fromMany), ours: ofSamples(appendOne(ours).fromMany),
	})
	if err != nil {
		return err
	}
	for _, size := range []int{100, 1000} {
		err := s.measureRate(ctx, rate{
			name: fmt.Sprintf("append-%d", size), what: fmt.Sprintf("append %d events at once", size), reach: 0.9, step: size,
		}, contenders{
			raw: appending(size, func(ctx context.Context, batch []events.Event) error {
				_, err := raw.CopyFrom(ctx, pgx.Identifier{"events"}, insertColumns(),
					pgx.CopyFromSlice(len(batch), func(i int) ([]any, error) { return insertArgs(batch[i]), nil }))
				return err
			}),
			stock: appending(size, appendStock),
			ours:  appending(size, ours.AppendMany),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// adder appends a batch.
type adder func(ctx context.Context, batch []events.Event) error

// all appends the events, so many at once.
func (add adder) all(ctx context.Context, list []events.Event, size int) error {
	for batch := range slices.Chunk(list, size) {
		if err := add(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// fromMany appends the events one by one, each of all callers its share.
func (add adder) fromMany(ctx context.Context, list []events.Event) error {
	group, ctx := errgroup.WithContext(ctx)
	for i := range callers {
		group.Go(func() error { return add.all(ctx, share(list, i), 1) })
	}
	return group.Wait()
}

// ofSamples measures the work on new samples, without their making.
func ofSamples(work func(context.Context, []events.Event) error) contender {
	return func(ctx context.Context, n int) (spent, error) {
		list, err := samples(n)
		if err != nil {
			return spent{}, err
		}
		stop := spending()
		err = work(ctx, list)
		return stop(), err
	}
}

// appending appends samples, so many at once.
func appending(size int, add adder) contender {
	return ofSamples(func(ctx context.Context, list []events.Event) error { return add.all(ctx, list, size) })
}

// appendOne is a store's Append as an [adder] of batches of one.
func appendOne(s store.Store) adder {
	return func(ctx context.Context, batch []events.Event) error { return s.Append(ctx, batch[0]) }
}

// insertSQL appends an event as a program does that knows only the contract.
const insertSQL = `INSERT INTO events (event_id, event_type, aggregate_type, aggregate_id, aggregate_version, tenant_id,
	clinic_id, causation_id, correlation_id, user_id, created_at, event_data, metadata)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`

func insertColumns() []string {
	return []string{
		"event_id", "event_type", "aggregate_type", "aggregate_id", "aggregate_version", "tenant_id", "clinic_id",
		"causation_id", "correlation_id", "user_id", "created_at", "event_data", "metadata",
	}
}

func insertArgs(e events.Event) []any {
	return []any{
		e.ID, e.Type, e.AggregateType, e.AggregateID, e.AggregateVersion, e.TenantID, nullable(e.ClinicID),
		nullable(e.CausationID), e.CorrelationID, nullable(e.UserID), e.CreatedAt, e.Data, nil,
	}
}

func nullable(id uuid.NullUUID) any {
	if !id.Valid {
		return nil
	}
	return id.UUID
}

// stockMessages are the events as messages.
func stockMessages(batch []events.Event) ([]*message.Message, error) {
	all, err := bodies(batch)
	if err != nil {
		return nil, err
	}
	messages := make([]*message.Message, len(batch))
	for i, body := range all {
		messages[i] = message.NewMessage(batch[i].ID.String(), message.Payload(body))
	}
	return messages, nil
}

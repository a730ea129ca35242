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
	appendStock := func(_ context.Context, batch []events.Event) error {
		messages, err := stockMessages(batch)
		if err != nil {
			return err
		}
		return stock.Publish(stockTopic, messages...)
	}

	one := contenders{
		raw: appending(1, func(ctx context.Context, batch []events.Event) error {
			_, err := raw.Exec(ctx, insertSQL, insertArgs(batch[0])...)
			return err
		}),
		stock: appending(1, appendStock),
		ours:  appending(1, func(ctx context.Context, batch []events.Event) error { return ours.Append(ctx, batch[0]) }),
	}
	err = s.measureRate(ctx, rate{name: "append-1", what: "append one event, one caller", reach: 0.9, step: streamLength}, one)
	if err != nil {
		return err
	}
	err = s.measureRate(ctx, rate{
		name: "append-32", what: fmt.Sprintf("append one event, %d callers", callers), reach: 1.5, step: callers * streamLength,
	}, contenders{raw: fromMany(one.raw), stock: fromMany(one.stock), ours: fromMany(one.ours)})
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

// appending appends samples, so many at once.
func appending(size int, add func(context.Context, []events.Event) error) contender {
	return func(ctx context.Context, n int) (spent, error) {
		list, err := samples(n)
		if err != nil {
			return spent{}, err
		}
		stop := spending()
		for batch := range slices.Chunk(list, size) {
			if err := add(ctx, batch); err != nil {
				return spent{}, err
			}
		}
		return stop(), nil
	}
}

// fromMany lets all callers do the work of one, each its share.
func fromMany(one contender) contender {
	return func(ctx context.Context, n int) (spent, error) {
		stop := spending()
		group, ctx := errgroup.WithContext(ctx)
		for range callers {
			group.Go(func() error { _, err := one(ctx, n/callers); return err })
		}
		err := group.Wait()
		return stop(), err
	}
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

package bench

import (
	"context"
	"database/sql"
	"errors"
	"time"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/errgroup"
)

// measureSustained measures all of it at once: events are appended by many, relayed, consumed and handled, and what
// follows from them is appended, relayed and consumed in turn. The time is that from the first append to the last
// follow-up committed.
func measureSustained(ctx context.Context, s *stage) (err error) {
	if !s.wants("sustained") {
		return nil
	}
	stock, stopStock, err := s.stockSustained(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopStock()) }()
	settings, _, err := s.newStore(ctx)
	if err != nil {
		return err
	}
	pool, err := s.pool(ctx, settings.DatabaseURL)
	if err != nil {
		return err
	}
	ours, stopOurs, err := s.ownLine(ctx, settings, remind)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopOurs()) }()

	add := appendOne(ours)
	return s.measureRate(ctx, rate{
		name: "sustained", what: "all of it at once, from append to committed follow-up", step: callers * streamLength,
	}, contenders{
		stock: stock,
		ours: func(ctx context.Context, n int) (spent, error) {
			list, err := samples(n)
			if err != nil {
				return spent{}, err
			}
			followed := func() (n int, err error) {
				err = pool.QueryRow(ctx, "SELECT count(*) FROM handled").Scan(&n)
				return n, err
			}
			before, err := followed()
			if err != nil {
				return spent{}, err
			}
			stop := spending()
			if err := add.fromMany(ctx, list); err != nil {
				return spent{}, err
			}
			err = until(ctx, 10*time.Millisecond, func() (bool, error) {
				now, err := followed()
				return now >= before+n, err
			})
			return stop(), err
		},
	})
}

// stockSustained is the same of Watermill's parts. Follow-ups are put into its outbox and go nowhere.
func (s *stage) stockSustained(ctx context.Context) (contender, func() error, error) {
	db, err := s.stockDatabase(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := prepareStockHandle(ctx, db); err != nil {
		return nil, nil, err
	}
	var counted *count
	assembly, err := s.newStockAssembly(ctx, func(ctx context.Context, m *message.Message) error {
		err := stockHandle(ctx, db, m, true)
		if err == nil {
			counted.add(1)
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, n int) (spent, error) {
		list, err := samples(n)
		if err != nil {
			return spent{}, err
		}
		counted = newCount(n)
		stop := spending()
		var group errgroup.Group
		for i := range callers {
			group.Go(func() error {
				for _, e := range share(list, i) {
					if err := assembly.append(e); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			return spent{}, err
		}
		_, err = counted.wait(ctx)
		return stop(), err
	}, assembly.stop, nil
}

// prepareStockHandle makes the tables that stockHandle writes to.
func prepareStockHandle(ctx context.Context, db *sql.DB) error {
	outbox, err := wsql.NewPublisher(db, wsql.PublisherConfig{
		SchemaAdapter: wsql.DefaultPostgreSQLSchema{}, AutoInitializeSchema: true,
	}, stockLogger())
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, "CREATE TABLE inbox (event_id text PRIMARY KEY)")
	if err != nil {
		return err
	}
	probe, err := samples(1)
	if err != nil {
		return err
	}
	messages, err := stockMessages(probe)
	if err != nil {
		return err
	}
	return outbox.Publish(stockTopic, messages...)
}

package bench

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sync/errgroup"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/worker"
)

const (
	// letterBytes is about how large the body of a letter is.
	letterBytes = 1024
	// leastLetters is how many letters a turn has at least: both ways begin slowly.
	leastLetters = 10_000
	// rawBatch is how many letters the raw client copies and acks at once.
	rawBatch = 500
	// pageSize is how many letters of a group are read.
	pageSize = 100
)

// measureLetters measures how fast dead letters go from the broker's queue into the table, and from there back to the
// queue of the consumers.
func measureLetters(ctx context.Context, s *stage) error {
	if !s.wantsAny("letters-ingest", "letters-replay") {
		return nil
	}
	rawIngest, err := s.rawIngest(ctx)
	if err != nil {
		return err
	}
	box, err := s.newLetterBox(ctx)
	if err != nil {
		return err
	}
	least := min(leastLetters, s.config.Letters)
	err = s.measureRate(ctx, rate{
		name: "letters-ingest", what: "take dead letters of 1 kB from the queue into the table", unit: "letters/s", limit: 5000,
		step: 1, least: least, most: mostQueued,
	}, contenders{raw: rawIngest, ours: box.ingest})
	if err != nil {
		return err
	}
	raw, err := s.newRawPublisher(ctx)
	if err != nil {
		return err
	}
	return s.measureRate(ctx, rate{
		name: "letters-replay", what: "replay dead letters of 1 kB, nobody consumes", unit: "letters/s", reach: 0.5,
		step: 1, least: least, most: mostQueued,
	}, contenders{
		raw: func(ctx context.Context, n int) (spent, error) {
			list, err := failedEvents(n)
			if err != nil {
				return spent{}, err
			}
			messages := make([]amqp091.Publishing, n)
			for i, body := range list {
				messages[i] = publishing(body)
			}
			stop := spending()
			err = raw.publish(ctx, messages)
			return stop(), errors.Join(err, s.empty(raw.queue()))
		},
		ours: box.replay,
	})
}

// failedEvents are n events as large as the letters are to be.
func failedEvents(n int) ([]json.RawMessage, error) {
	list, err := samplesOf(n, strings.Repeat("check-up after the operation ", letterBytes/2/len("check-up after the operation ")))
	if err != nil {
		return nil, err
	}
	return bodies(list)
}

// letterBox is a failed queue and the table that its letters are put into.
type letterBox struct {
	*stage
	prefix   string
	settings worker.Settings
	table    *deadletter.Table
	conn     *amqp.Connection
	failed   *amqp.FailedQueue
}

func (s *stage) newLetterBox(ctx context.Context) (*letterBox, error) {
	b := &letterBox{stage: s}
	settings, backend, err := s.newStore(ctx)
	if err != nil {
		return nil, err
	}
	b.settings, b.table = settings, deadletter.NewTable(backend.SQL())
	if b.prefix, err = s.newTopology(ctx); err != nil {
		return nil, err
	}
	if b.conn, err = amqp.Dial(ctx, amqp.Config{URL: s.broker, Prefix: b.prefix, Logger: logger()}); err != nil {
		return nil, err
	}
	s.onEnd(b.conn.Close)
	b.failed = amqp.NewFailedQueue(b.conn)
	return b, nil
}

// put makes n events dead letters in the queue, as a worker does.
func (b *letterBox) put(ctx context.Context, bodies []json.RawMessage) error {
	var group errgroup.Group
	group.SetLimit(callers)
	for i, body := range bodies {
		group.Go(func() error {
			return b.failed.Put(ctx, bus.NewMessage(body), deadletter.Failure{
				Reason:  fmt.Sprintf("the provider answered 503 to request %d", i),
				Handler: handlerName, Attempts: 5, FirstFailed: time.Now().Add(-time.Second), LastFailed: time.Now(),
			})
		})
	}
	return group.Wait()
}

// fill puts n letters into the queue, and empties the table.
func (b *letterBox) fill(ctx context.Context, n int) error {
	list, err := failedEvents(n)
	if err != nil {
		return err
	}
	return errors.Join(execute(ctx, b.settings.DatabaseURL, "TRUNCATE dead_letters"), b.put(ctx, list))
}

// drain takes the n letters of the queue into the table. The time is that from the first batch that arrives to the last
// commit: once the queue is empty, it waits a while for more.
func (b *letterBox) drain(ctx context.Context, n int) (spent, error) {
	counted := countedTable{b.table, newCount(n)}
	taken, err := amqp.NewIngester(b.conn, counted, logger()).Drain(ctx)
	if err == nil && taken != n {
		err = fmt.Errorf("of %d dead letters %d were taken into the table", n, taken)
	}
	return counted.count.took, err
}

// countedTable counts what is put into a table.
type countedTable struct {
	*deadletter.Table
	count *count
}

func (t countedTable) Ingest(ctx context.Context, arrivals []deadletter.Arrival) error {
	t.count.add(0) // the time begins
	err := t.Table.Ingest(ctx, arrivals)
	if err == nil {
		t.count.add(len(arrivals))
	}
	return err
}

func (b *letterBox) ingest(ctx context.Context, n int) (spent, error) {
	if err := b.fill(ctx, n); err != nil {
		return spent{}, err
	}
	return b.drain(ctx, n)
}

// replay replays n letters, in replays of as many as may be in flight: nobody consumes them, so none is ever handled.
func (b *letterBox) replay(ctx context.Context, n int) (spent, error) {
	took, err := b.ingest(ctx, n)
	if err != nil {
		return spent{}, err
	}
	err = b.whileReplaying(ctx, func(ctx context.Context) error {
		stop := spending()
		for left := n; left > 0; {
			counts, err := replayAll(b.table.Replay(ctx, deadletter.Filter{Limit: deadletter.DefaultParallel},
				deadletter.ReplayOptions{MaxFailures: -1}))
			if err == nil && counts.Sent != min(left, deadletter.DefaultParallel) {
				err = fmt.Errorf("of %d dead letters %d were replayed", min(left, deadletter.DefaultParallel), counts.Sent)
			}
			if err != nil {
				return err
			}
			left -= counts.Sent
		}
		took = stop()
		return nil
	})
	return took, errors.Join(err, b.empty(b.prefix+".consumer"))
}

// whileReplaying does something while released letters are sent.
func (b *letterBox) whileReplaying(ctx context.Context, do func(context.Context) error) error {
	running, stop := context.WithCancel(ctx)
	var group errgroup.Group
	group.Go(func() error {
		deadletter.NewReplayer(b.table, b.failed, logger()).Run(running, nil)
		return nil
	})
	err := do(ctx)
	stop()
	return errors.Join(err, group.Wait())
}

// replayAll sees a replay to its end.
func replayAll(steps func(func(deadletter.Progress, error) bool)) (deadletter.Counts, error) {
	var last deadletter.Counts
	for p, err := range steps {
		if err != nil {
			return last, err
		}
		last = p.Counts
	}
	return last, nil
}

// rawLettersSQL makes a table with the columns of the worker's and no index but that of its key.
const rawLettersSQL = `CREATE TABLE raw_letters (LIKE dead_letters INCLUDING DEFAULTS INCLUDING IDENTITY, PRIMARY KEY (seq))`

// rawColumns are those that every letter has a value of.
var rawColumns = []string{ //nolint:gochecknoglobals // a constant list
	"id", "identity", "arrival", "state", "event_id", "event_type", "aggregate_type", "aggregate_id", "aggregate_version",
	"tenant_id", "correlation_id", "handler", "group_id", "reason", "attempts", "first_failed_at", "last_failed_at", "replays",
	"replay_id", "source", "raw", "body", "bytes",
}

// rawIngest takes letters with amqp091-go, copies some hundred at a time into a table, and then acks them at once. It
// compares them with nothing that is there, groups nothing, and cannot do it twice without doubling them.
func (s *stage) rawIngest(ctx context.Context) (contender, error) {
	box, err := s.newLetterBox(ctx)
	if err != nil {
		return nil, err
	}
	pool, err := s.pool(ctx, box.settings.DatabaseURL)
	if err != nil {
		return nil, err
	}
	if _, err := pool.Exec(ctx, rawLettersSQL); err != nil {
		return nil, err
	}
	return func(ctx context.Context, n int) (took spent, err error) {
		if err := errors.Join(box.fill(ctx, n), execute(ctx, box.settings.DatabaseURL, "TRUNCATE raw_letters")); err != nil {
			return spent{}, err
		}
		err = s.onBroker(func(channel *amqp091.Channel) error {
			stop := spending()
			if err := channel.Qos(2*rawBatch, 0, false); err != nil {
				return err
			}
			deliveries, err := channel.ConsumeWithContext(ctx, box.prefix+".failed", "", false, true, false, false, nil)
			if err != nil {
				return err
			}
			for left := n; left > 0; {
				batch := make([]amqp091.Delivery, 0, min(rawBatch, left))
				for d := range deliveries {
					if batch = append(batch, d); len(batch) == cap(batch) {
						break
					}
				}
				if len(batch) < cap(batch) {
					return errors.New("the raw consumer's channel was closed")
				}
				if err := copyLetters(ctx, pool, batch); err != nil {
					return err
				}
				if err := batch[len(batch)-1].Ack(true); err != nil {
					return err
				}
				left -= len(batch)
			}
			took = stop()
			return nil
		})
		return took, err
	}, nil
}

func copyLetters(ctx context.Context, pool *pgxpool.Pool, batch []amqp091.Delivery) error {
	_, err := pool.CopyFrom(ctx, pgx.Identifier{"raw_letters"}, rawColumns, pgx.CopyFromSlice(len(batch), func(i int) ([]any, error) {
		d := batch[i]
		var e events.Event
		if err := json.Unmarshal(d.Body, &e); err != nil {
			return nil, err
		}
		raw, err := json.Marshal(d.Headers)
		if err != nil {
			return nil, err
		}
		id, handler := d.Headers["dead_letter_id"], d.Headers[deadletter.HandlerKey]
		first, err := time.Parse(time.RFC3339, fmt.Sprint(d.Headers[deadletter.FirstFailedKey]))
		if err != nil {
			return nil, err
		}
		return []any{
			id, id, id, "waiting", e.ID, e.Type, e.AggregateType, e.AggregateID, e.AggregateVersion,
			e.TenantID, e.CorrelationID, handler, handler, d.Headers[deadletter.ReasonKey], 5, first, first, 0,
			"", d.Headers["source_queue"], raw, d.Body, len(d.Body),
		}, nil
	}))
	return err
}

// lettersSQL puts so many letters into a migrated database.
//
//go:embed letters.sql
var lettersSQL string

// measureManyLetters measures what the commands and the console ask of a table with very many letters: the groups, just
// after it was filled and after a vacuum, and a page of one group.
func measureManyLetters(ctx context.Context, s *stage) error {
	if !s.wantsAny("letters-groups", "letters-groups-new", "letters-page") {
		return nil
	}
	settings, backend, err := s.newStore(ctx)
	if err != nil {
		return err
	}
	if err := execute(ctx, settings.DatabaseURL, fmt.Sprintf(lettersSQL, s.config.Letters)); err != nil {
		return fmt.Errorf("fill the table of dead letters: %w", err)
	}
	table := deadletter.NewTable(backend.SQL())
	var found []deadletter.Group
	groups := func(ctx context.Context) (err error) {
		found, err = table.Groups(ctx, deadletter.Filter{})
		return err
	}
	some := thousands(int64(s.config.Letters))
	if err := s.measureTime(ctx, "letters-groups-new", "groups of "+some+" dead letters that no vacuum has seen", 200, groups); err != nil {
		return err
	}
	if err := execute(ctx, settings.DatabaseURL, "VACUUM ANALYZE dead_letters"); err != nil {
		return err
	}
	if err := s.measureTime(ctx, "letters-groups", "groups of "+some+" dead letters", 200, groups); err != nil {
		return err
	}
	if len(found) == 0 {
		if err := groups(ctx); err != nil {
			return err
		}
	}
	return s.measureTime(ctx, "letters-page", fmt.Sprintf("%d letters of one of these groups", pageSize), 50, func(ctx context.Context) error {
		read := 0
		for _, err := range table.List(ctx, deadletter.Filter{Group: found[0].ID, Limit: pageSize}) {
			if err != nil {
				return err
			}
			read++
		}
		if read != min(pageSize, found[0].Count) {
			return fmt.Errorf("a page of a group has %d letters", read)
		}
		return nil
	})
}

// measureTime measures how long one call takes, again and again for a turn a round.
func (s *stage) measureTime(ctx context.Context, name, what string, limit float64, do func(context.Context) error) error {
	if !s.wants(name) {
		return nil
	}
	r := &Row{Name: name, What: what, Unit: "ms", LessIsBetter: true, Limit: limit}
	for round := range s.config.Rounds + 1 { // the first one warms up
		var took Series
		for end := time.Now().Add(s.config.Turn); len(took) == 0 || time.Now().Before(end); {
			began := time.Now()
			if err := do(ctx); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			took = append(took, milliseconds(time.Since(began)))
		}
		if round > 0 {
			r.Ours = append(r.Ours, took.Median())
		}
	}
	s.add(r)
	return nil
}

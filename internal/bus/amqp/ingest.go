package amqp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/store"
)

const (
	// maxBatch and [store.PageBytes] bound the letters of one transaction. A letter that is larger has one alone.
	maxBatch = 200
	// linger is how long a batch waits for more letters.
	linger = 50 * time.Millisecond
	// maxAhead and maxAheadBytes bound the letters in memory: the broker only bounds their number, so that is small until
	// letters have turned out to be small. When they are larger all of a sudden, the connection is closed and made again.
	maxAhead      = 2 * maxBatch
	maxAheadBytes = 2 * store.PageBytes
	// standbyInterval is how often a worker on standby tries to become the one that ingests.
	standbyInterval = 2 * time.Second
	// refusedInterval is how often letters that the table has refused are tried again, if they have at most
	// [store.PageBytes] together; the others are tried when they are delivered again. With maxRefused of them ingestion stops.
	refusedInterval = time.Minute
	maxRefused      = 1000
	// stopTimeout bounds what is still done after the stop.
	stopTimeout = 2 * time.Second
)

// ErrIngesting says that another worker ingests the letters.
var ErrIngesting = errors.New("another worker ingests the dead letters: there is nothing to do")

// LetterTable is where an [Ingester] puts dead letters; a [deadletter.Table] is one.
type LetterTable interface {
	Ingest(ctx context.Context, arrivals []deadletter.Arrival) error
	Acked(ctx context.Context, arrivals []deadletter.Arrival) error
}

// Ingester moves the dead letters from the failed queue into a table. A letter is acked once the table has it. One that
// the table refuses stays in the queue and does not delay the others. Of several ingesters one works.
type Ingester struct {
	conn   *Connection
	table  LetterTable
	queue  *FailedQueue // to which copies of letters are published
	logger *slog.Logger
}

// NewIngester returns an ingester from the failed queue of a Connection into a table.
func NewIngester(c *Connection, table LetterTable, logger *slog.Logger) *Ingester {
	return &Ingester{conn: c, table: table, queue: NewFailedQueue(c), logger: logger}
}

// Run ingests until ctx is done or the Connection is closed. While the store or the broker is unavailable, or another worker
// ingests, it tries again.
func (i *Ingester) Run(ctx context.Context) {
	ctx, cancel := i.conn.whileOpen(ctx)
	defer cancel()
	t := &intake{Ingester: i, waits: newWaits(), outage: observe.Outage{After: observe.Moment}}
	for ctx.Err() == nil {
		err := t.connected(ctx)
		if ctx.Err() != nil || t.overflow.Swap(false) {
			continue
		}
		t.outage.Fails(ctx, i.logger, slog.LevelWarn, "cannot ingest dead letters, will try again", "error", err)
		pause(ctx, t.waits.NextBackOff())
	}
}

// Drain ingests what is in the queue until it is empty, and returns how many letters that were. The error is
// [ErrIngesting] if a worker does that already, and says if letters were refused; they stay in the queue. It does not
// wait for a store or a broker that is unavailable.
func (i *Ingester) Drain(ctx context.Context) (int, error) {
	ctx, cancel := i.conn.whileOpen(ctx)
	defer cancel()
	t := &intake{Ingester: i, drain: true, waits: newWaits()}
	for {
		err := t.connected(ctx)
		if err != nil && ctx.Err() == nil && t.overflow.Swap(false) {
			continue
		}
		if err != nil && !errors.Is(err, ErrIngesting) {
			err = fmt.Errorf("ingest dead letters: %w", err)
		}
		return t.taken, err
	}
}

// Waiting is how many letters in the failed queue are ready, which those that are being ingested are not.
func (i *Ingester) Waiting(ctx context.Context) (int, error) {
	depths, err := i.conn.inspect(ctx, i.conn.names.failedQueue)
	if err != nil {
		return 0, err
	}
	return depths[0].Messages, nil
}

func newWaits() *backoff.ExponentialBackOff {
	waits := backoff.NewExponentialBackOff()
	waits.InitialInterval, waits.MaxInterval, waits.Multiplier = 100*time.Millisecond, maxReconnectWait, 2
	return waits
}

func pause(ctx context.Context, wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// intake is one run of an ingester, over one connection after another.
type intake struct {
	*Ingester

	drain   bool
	taken   int
	standby bool // another worker ingests
	waits   *backoff.ExponentialBackOff
	outage  observe.Outage // of the connection

	session   *session
	receivers sync.WaitGroup
	held      atomic.Int64 // bytes that are in flight
	overflow  atomic.Bool  // these were too many
	refused   []inFlight
	retried   time.Time // when they were tried last
}

// consumer is one consumer of the failed queue. Its prefetch cannot be changed: another one replaces it then.
type consumer struct {
	channel  *amqp091.Channel
	prefetch int
	arrived  chan amqp091.Delivery // has room for all that can arrive
	next     *amqp091.Delivery     // has arrived, and did not fit into the last batch
	refused  int                   // letters that stay unacked
}

// inFlight is a letter that was delivered and is not acked.
type inFlight struct {
	deadletter.Arrival

	delivery amqp091.Delivery // without the body
	consumer *consumer
	problem  error // why it was refused
	counted  bool  // a quorum queue has counted that it was returned
}

// connected ingests over one connection, whose end returns to the queue what is not acked.
func (t *intake) connected(ctx context.Context) error {
	var err error
	if t.session, err = t.conn.connect(ctx, "dead letters", nil); err != nil {
		return err
	}
	defer t.receivers.Wait()
	defer t.session.close()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(stopTimeout, t.session.kill) })()
	t.held.Store(0)
	t.refused, t.retried = nil, time.Now()
	c, err := t.acquire(ctx)
	if err != nil {
		return err
	}
	t.waits.Reset()
	t.outage.Over(ctx, t.logger, "dead letters are ingested again")
	for quiet := 0; quiet < emptyPolls; {
		c, err = t.next(ctx, c, &quiet)
		if err != nil {
			return err
		}
	}
	return t.refusal()
}

// acquire becomes the one that ingests.
func (t *intake) acquire(ctx context.Context) (*consumer, error) {
	for {
		err := t.session.lock(t.conn.names.failedQueue + lockSuffix)
		if err == nil || isRefusedRight(err) { // without the lock there is still the exclusive consumer
			var c *consumer
			if c, err = t.consume(1); err == nil {
				t.standby = false
				return c, nil
			}
		}
		switch {
		case !errors.Is(err, errTaken):
			return nil, err
		case t.drain:
			return nil, ErrIngesting
		}
		if !t.standby {
			t.standby = true
			t.outage.Over(ctx, t.logger, "dead letters are ingested again, by another worker")
			t.logger.InfoContext(ctx, "another worker ingests the dead letters")
		}
		if pause(ctx, standbyInterval); ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

func (t *intake) consume(prefetch int) (*consumer, error) {
	defer t.session.bound()()
	channel, err := t.session.conn.Channel()
	if err != nil {
		return nil, fmt.Errorf("open channel: %w", classify(err))
	}
	if err := channel.Qos(prefetch, 0, false); err != nil {
		return nil, fmt.Errorf("set prefetch: %w", classify(err))
	}
	deliveries, err := channel.Consume(t.conn.names.failedQueue, consumerTag, false, true, false, false, nil)
	if err != nil {
		return nil, exclusive("consume the failed queue", err)
	}
	c := &consumer{channel: channel, prefetch: prefetch, arrived: make(chan amqp091.Delivery, prefetch)}
	t.receivers.Go(func() {
		defer close(c.arrived)
		for d := range deliveries {
			if t.held.Add(int64(len(d.Body))) > maxAheadBytes && prefetch > 1 {
				t.overflow.Store(true)
				t.session.kill()
				return
			}
			c.arrived <- d
		}
	})
	return c, nil
}

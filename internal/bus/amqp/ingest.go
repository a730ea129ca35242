package amqp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/deadletter"
)

const (
	// maxBatch and maxBatchBytes bound the letters of one transaction. A letter that is larger has one alone.
	maxBatch      = 200
	maxBatchBytes = 8 << 20
	// linger is how long a batch waits for more letters.
	linger = 50 * time.Millisecond
	// maxAhead and maxAheadBytes bound the letters in memory: the broker only bounds their number, so that is small until
	// letters have turned out to be small. When they are larger all of a sudden, the connection is closed and made again.
	maxAhead      = 2 * maxBatch
	maxAheadBytes = 2 * maxBatchBytes
	// turnInterval is how often it is tried whether another worker still takes the letters in.
	turnInterval = 2 * time.Second
	// refusedInterval is how often letters are tried again that the table has refused, if they have at most
	// maxRefusedBytes; the others are when they are delivered again. With maxRefused, no more letters are taken.
	refusedInterval = time.Minute
	maxRefusedBytes = 8 << 20
	maxRefused      = 1000
	// stopTimeout bounds what is still done once it is to stop.
	stopTimeout = 2 * time.Second
)

// ErrIngesting says that the letters are taken in already.
var ErrIngesting = errors.New("another worker takes the dead letters in: there is nothing to do")

// LetterTable is where an [Ingester] puts dead letters; a [deadletter.Table] is one.
type LetterTable interface {
	Ingest(ctx context.Context, arrivals []deadletter.Arrival) error
	Acked(ctx context.Context, arrivals []deadletter.Arrival) error
}

// Ingester takes the dead letters out of the failed queue and puts them into a table. A letter is acked once the table
// has it. One that the table refuses stays in the queue and does not hold up the others. Of several ingesters one works.
type Ingester struct {
	conn   *Connection
	table  LetterTable
	logger *slog.Logger
}

// NewIngester returns an ingester from the failed queue of a Connection into a table.
func NewIngester(c *Connection, table LetterTable, logger *slog.Logger) *Ingester {
	return &Ingester{conn: c, table: table, logger: logger}
}

// Run ingests until ctx is done or the Connection is closed. While the store or the broker is unavailable, or another worker
// ingests, it tries again.
func (i *Ingester) Run(ctx context.Context) {
	ctx, cancel := i.conn.whileOpen(ctx)
	defer cancel()
	t := &intake{Ingester: i, waits: newWaits()}
	for ctx.Err() == nil {
		err := t.connected(ctx)
		if ctx.Err() != nil || t.overflow.Swap(false) {
			continue
		}
		i.logger.WarnContext(ctx, "dead letters are not taken in, will try again", "error", err)
		pause(ctx, t.waits.NextBackOff())
	}
}

// Drain ingests what lies in the queue, and returns how many letters that were once it is empty. The error is
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
			err = fmt.Errorf("take in dead letters: %w", err)
		}
		return t.taken, err
	}
}

// Waiting is how many letters lie in the failed queue and are not on their way into the table.
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

	drain  bool
	taken  int
	inLine bool // another worker ingests
	waits  *backoff.ExponentialBackOff

	session   *session
	receivers sync.WaitGroup
	held      atomic.Int64 // bytes that have arrived and are not settled
	overflow  atomic.Bool  // and these were too many
	refused   []inHand
	retried   time.Time // when they were tried last
}

// consumer is one consumer of the failed queue. Its prefetch cannot be changed: another takes its place then.
type consumer struct {
	channel  *amqp091.Channel
	prefetch int
	arrived  chan amqp091.Delivery // has room for all that can arrive
	next     *amqp091.Delivery     // has arrived, and did not fit into the last batch
	refused  int                   // letters that stay unacked
}

// inHand is a letter that has arrived.
type inHand struct {
	deadletter.Arrival

	delivery amqp091.Delivery // without the body
	consumer *consumer
	problem  error // why it was refused
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
	for quiet := 0; quiet < quietLooks; {
		c, err = t.once(ctx, c, &quiet)
		if err != nil {
			return err
		}
	}
	return t.refusal()
}

// acquire becomes the one that ingests.
func (t *intake) acquire(ctx context.Context) (*consumer, error) {
	for {
		err := t.lock()
		if err == nil {
			var c *consumer
			if c, err = t.consume(1); err == nil {
				t.inLine = false
				return c, nil
			}
		}
		if !errors.Is(err, ErrIngesting) || t.drain {
			return nil, err
		}
		if !t.inLine {
			t.inLine = true
			t.logger.InfoContext(ctx, "another worker takes the dead letters in")
		}
		if pause(ctx, turnInterval); ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// lock declares a queue that only one connection can have. An exclusive consumer is not enough: quorum queues do not
// know of that, and a consumer is replaced to change its prefetch.
func (t *intake) lock() error {
	defer t.session.bound()()
	channel, err := t.session.conn.Channel()
	if err != nil {
		return fmt.Errorf("open channel: %w", classify(err))
	}
	defer channel.Close() // the broker closes it when it refuses
	_, err = channel.QueueDeclare(t.conn.names.failedQueue+".reader", false, false, true, false,
		amqp091.Table{amqp091.QueueTypeArg: amqp091.QueueTypeClassic}) // a vhost may have another as its default
	return exclusive("lock the failed queue", err)
}

// exclusive is [ErrIngesting] if the broker refuses something because another has it.
func exclusive(doing string, err error) error {
	answer, ok := errors.AsType[*amqp091.Error](err)
	switch {
	case err == nil:
		return nil
	case ok && (answer.Code == amqp091.ResourceLocked || // 403 is also for missing rights
		answer.Code == amqp091.AccessRefused && strings.Contains(answer.Reason, "in exclusive use")):
		return ErrIngesting
	}
	return fmt.Errorf("%s: %w", doing, classify(err))
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

package torture

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/test/wait"
)

const (
	witnessQueue    = "torture.witness"
	witnessPrefetch = 500
	witnessRetry    = 200 * time.Millisecond
)

// witness drains a durable queue of its own that is bound to the exchange like the worker's, and notes what comes by.
type witness struct {
	url       string
	queueType string

	mu         sync.Mutex
	seen       map[uuid.UUID]struct{}
	last       map[uuid.UUID]int // the highest version of each aggregate
	duplicates int
	misordered []string
}

func newWitness(url, queueType string) *witness {
	return &witness{url: url, queueType: queueType, seen: map[uuid.UUID]struct{}{}, last: map[uuid.UUID]int{}}
}

// bind declares the queue and its binding.
func (w *witness) bind() error {
	return withChannel(w.url, func(channel *amqp091.Channel) error {
		arguments := amqp091.Table{"x-queue-type": w.queueType}
		if w.queueType == "quorum" {
			arguments["x-delivery-limit"] = 1_000_000_000 // else RabbitMQ 4 drops what it has delivered 20 times
			// Else a new consumer may get later messages before those that the broker still takes for delivered to the last one.
			arguments["x-single-active-consumer"] = true
		}
		if _, err := channel.QueueDeclare(witnessQueue, true, false, false, false, arguments); err != nil {
			return err
		}
		return channel.QueueBind(witnessQueue, "#", exchange, false, nil)
	})
}

// watch drains the queue, through all that befalls the broker, until ctx ends.
func (w *witness) watch(ctx context.Context) {
	for {
		_ = withChannel(w.url, func(channel *amqp091.Channel) error { return w.drain(ctx, channel) })
		if !wait.Sleep(ctx, witnessRetry) {
			return
		}
	}
}

func (w *witness) drain(ctx context.Context, channel *amqp091.Channel) error {
	if err := channel.Qos(witnessPrefetch, 0, false); err != nil {
		return err
	}
	deliveries, err := channel.ConsumeWithContext(ctx, witnessQueue, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	for d := range deliveries {
		w.note(d)
		if err := d.Ack(false); err != nil {
			return err
		}
	}
	return nil
}

func (w *witness) note(d amqp091.Delivery) {
	var head struct {
		ID        uuid.UUID `json:"event_id"`
		Aggregate uuid.UUID `json:"aggregate_id"`
		Version   int       `json:"aggregate_version"`
	}
	if json.Unmarshal(d.Body, &head) != nil || head.ID == uuid.Nil {
		head.ID, _ = uuid.Parse(d.MessageId)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, again := w.seen[head.ID]; again {
		if !d.Redelivered { // else this witness had not acked it
			w.duplicates++
		}
		return
	}
	w.seen[head.ID] = struct{}{}
	if head.Aggregate == uuid.Nil {
		return
	}
	if last := w.last[head.Aggregate]; head.Version < last {
		w.misordered = append(w.misordered, fmt.Sprintf("aggregate %s: version %d (event %s) came after version %d",
			head.Aggregate, head.Version, head.ID, last))
	}
	w.last[head.Aggregate] = max(w.last[head.Aggregate], head.Version)
}

// testimony is what a witness has seen.
type testimony struct {
	seen       map[uuid.UUID]struct{}
	duplicates int
	misordered []string
}

func (w *witness) testify() testimony {
	w.mu.Lock()
	defer w.mu.Unlock()
	return testimony{maps.Clone(w.seen), w.duplicates, slices.Clone(w.misordered)}
}

// withChannel does something on a channel of a connection of its own.
func withChannel(url string, do func(*amqp091.Channel) error) error {
	conn, err := amqp091.DialConfig(url, amqp091.Config{Heartbeat: 5 * time.Second, Dial: amqp091.DefaultDial(5 * time.Second)})
	if err != nil {
		return fmt.Errorf("connect to RabbitMQ: %w", err)
	}
	defer func() { _ = conn.CloseDeadline(time.Now().Add(time.Second)) }()
	channel, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("open a channel: %w", err)
	}
	return do(channel)
}

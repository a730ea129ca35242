package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	wamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/amqp"
)

const (
	// window is how many publishes the raw client has under way, and how many messages ours is given at once.
	window = 1000
	// mostQueued bounds what lies in a queue in the rows that fill one.
	mostQueued = 50_000
)

// measurePublish measures confirmed publishing.
func measurePublish(ctx context.Context, s *stage) error {
	if !s.wantsAny("publish", "publish-same") {
		return nil
	}
	raw, err := s.newRawPublisher(ctx)
	if err != nil {
		return err
	}
	stock, stockQueue, err := s.stockPublisher()
	if err != nil {
		return err
	}
	ours, queue, err := s.ownPublisher(ctx)
	if err != nil {
		return err
	}

	publishOurs := s.publishing(queue, func(ctx context.Context, all []json.RawMessage) (spent, error) {
		messages := make([]*message.Message, len(all))
		for i, body := range all {
			messages[i] = bus.NewMessage(body)
		}
		stop := spending()
		for batch := range slices.Chunk(messages, window) {
			if err := ours.PublishBatch(ctx, batch); err != nil {
				return spent{}, err
			}
		}
		return stop(), nil
	})
	err = s.measureRate(ctx, rate{
		name: "publish", what: "publish, confirmed, in order", reach: 0.9, step: 1, most: mostQueued,
	}, contenders{
		raw: s.rawPublishing(raw, bare),
		stock: s.publishing(stockQueue, func(_ context.Context, all []json.RawMessage) (spent, error) {
			messages := make([]*message.Message, len(all))
			for i, body := range all {
				messages[i] = message.NewMessage(fmt.Sprint(i), message.Payload(body))
			}
			stop := spending()
			err := stock.Publish(stockQueue, messages...)
			return stop(), err
		}),
		ours: publishOurs,
	})
	if err != nil {
		return err
	}
	return s.measureRate(ctx, rate{
		name: "publish-same", what: "the same, raw's messages with the properties of ours", reach: 0.9, step: 1, most: mostQueued,
	}, contenders{raw: s.rawPublishing(raw, dressed), ours: publishOurs})
}

// publishing publishes samples, and empties the queue afterwards.
func (s *stage) publishing(queue string, publish func(context.Context, []json.RawMessage) (spent, error)) contender {
	return func(ctx context.Context, n int) (spent, error) {
		list, err := samples(n)
		if err != nil {
			return spent{}, err
		}
		all, err := bodies(list)
		if err != nil {
			return spent{}, err
		}
		took, err := publish(ctx, all)
		return took, errors.Join(err, s.empty(queue))
	}
}

// rawPublisher publishes with confirms that it counts, many under way.
type rawPublisher struct {
	exchange string
	channel  *amqp091.Channel
	confirms chan amqp091.Confirmation
}

// queue is where what it publishes lies.
func (p *rawPublisher) queue() string { return p.exchange + ".consumer" }

func (s *stage) newRawPublisher(ctx context.Context) (*rawPublisher, error) {
	exchange, err := s.newTopology(ctx)
	if err != nil {
		return nil, err
	}
	channel, err := s.channel()
	if err != nil {
		return nil, err
	}
	if err := channel.Confirm(false); err != nil {
		return nil, err
	}
	return &rawPublisher{
		exchange: exchange, channel: channel, confirms: channel.NotifyPublish(make(chan amqp091.Confirmation, window)),
	}, nil
}

func (p *rawPublisher) publish(ctx context.Context, all []amqp091.Publishing) error {
	flying := 0
	land := func() error {
		c, ok := <-p.confirms
		if !ok || !c.Ack {
			return errors.New("the raw publisher got no confirm")
		}
		flying--
		return nil
	}
	for _, m := range all {
		if flying == window {
			if err := land(); err != nil {
				return err
			}
		}
		if err := p.channel.PublishWithContext(ctx, p.exchange, eventType, false, false, m); err != nil {
			return err
		}
		flying++
	}
	for flying > 0 {
		if err := land(); err != nil {
			return err
		}
	}
	return nil
}

// rawPublishing publishes samples by the raw client.
func (s *stage) rawPublishing(raw *rawPublisher, publishingOf func(body []byte) (amqp091.Publishing, error)) contender {
	return s.publishing(raw.queue(), func(ctx context.Context, all []json.RawMessage) (_ spent, err error) {
		list := make([]amqp091.Publishing, len(all))
		for i, body := range all {
			if list[i], err = publishingOf(body); err != nil {
				return spent{}, err
			}
		}
		stop := spending()
		err = raw.publish(ctx, list)
		return stop(), err
	})
}

// publishing is an event as the contract wants it, and no more.
func publishing(body []byte) amqp091.Publishing {
	return amqp091.Publishing{ContentType: "application/json", DeliveryMode: amqp091.Persistent, Body: body}
}

func bare(body []byte) (amqp091.Publishing, error) { return publishing(body), nil }

// dressed is an event as the worker publishes it.
func dressed(body []byte) (amqp091.Publishing, error) {
	return amqp.Marshal(bus.NewMessage(body))
}

// stockConfig is watermill-amqp's for a durable queue, with confirms on. The queue goes with the stage.
func (s *stage) stockConfig() (config wamqp.Config, queue string, err error) {
	config = wamqp.NewDurableQueueConfig(s.broker)
	config.Publish.ConfirmDelivery = true
	queue = uniqueName()
	err = s.onBroker(func(channel *amqp091.Channel) error {
		_, err := channel.QueueDeclare(queue, true, false, false, false, nil)
		return err
	})
	s.onEnd(func() error {
		return s.onBroker(func(channel *amqp091.Channel) error {
			_, err := channel.QueueDelete(queue, false, false, false)
			return err
		})
	})
	return config, queue, err
}

func (s *stage) stockPublisher() (*wamqp.Publisher, string, error) {
	config, queue, err := s.stockConfig()
	if err != nil {
		return nil, "", err
	}
	publisher, err := wamqp.NewPublisher(config, stockLogger())
	if err != nil {
		return nil, "", err
	}
	s.onEnd(publisher.Close)
	return publisher, queue, nil
}

// ownPublisher is the worker's publisher in a topology of its own, and the queue in which what it publishes lies.
func (s *stage) ownPublisher(ctx context.Context) (*amqp.Publisher, string, error) {
	prefix, err := s.newTopology(ctx)
	if err != nil {
		return nil, "", err
	}
	conn, err := amqp.Dial(ctx, amqp.Config{URL: s.broker, Prefix: prefix, Logger: logger()})
	if err != nil {
		return nil, "", err
	}
	s.onEnd(conn.Close)
	publisher := amqp.NewPublisher(conn)
	s.onEnd(publisher.Close)
	return publisher, prefix + ".consumer", nil
}

package amqp_test

import (
	"context"
	"errors"
	"net/url"
	"testing"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/test/testservers"
)

func TestDialTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	server, err := url.Parse(testservers.RabbitMQ(t))
	require.NoError(t, err)
	closed := listen(t)
	require.NoError(t, closed.Close())

	with := func(change func(*url.URL)) string {
		u := *server
		change(&u)
		return u.String()
	}
	for name, test := range map[string]struct {
		url  string
		want error
	}{
		"wrong password": {with(func(u *url.URL) { u.User = url.UserPassword("guest", "s3cret") }), amqp.ErrRefused},
		"unknown vhost":  {with(func(u *url.URL) { u.Path = "/nowhere" }), amqp.ErrRefused},
		"no server": {
			with(func(u *url.URL) { u.Host, u.User = closed.Addr().String(), url.UserPassword("guest", "s3cret") }),
			amqp.ErrUnavailable,
		},
		"no URL":               {"amqp://guest:s3cret/x@", nil},
		"not this scheme":      {"http://guest:s3cret@127.0.0.1", nil},
		"unescaped characters": {"amqp://guest:s3cret/#?@127.0.0.1:x", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := amqp.Dial(t.Context(), amqp.Config{URL: test.url})
			require.Error(t, err)
			require.NotContains(t, err.Error(), "s3cret")
			if test.want != nil {
				require.ErrorIs(t, err, test.want)
			}
			require.Equal(t, name == "no server", errors.Is(err, amqp.ErrUnavailable))
		})
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	t.Parallel()
	silent := listen(t) // accepts and says nothing

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := amqp.Dial(ctx, amqp.Config{URL: "amqp://guest:guest@" + silent.Addr().String()})
	require.ErrorIs(t, err, amqp.ErrUnavailable)
}

func TestTopologyIsTheContracts(t *testing.T) {
	t.Parallel()
	declareElsewhere := func(t *testing.T, ch *amqp091.Channel) {
		t.Helper()
		require.NoError(t, ch.ExchangeDeclare("healz.events", "topic", true, false, false, false, nil))
		require.NoError(t, ch.ExchangeDeclare("healz.events.dlx", "topic", true, false, false, false, nil))
		for queue, arguments := range map[string]amqp091.Table{
			"healz.events.consumer": {"x-dead-letter-exchange": "healz.events.dlx", "x-dead-letter-routing-key": "failed"},
			"healz.events.failed":   nil,
		} {
			_, err := ch.QueueDeclare(queue, true, false, false, false, arguments)
			require.NoError(t, err)
		}
		require.NoError(t, ch.QueueBind("healz.events.consumer", "#", "healz.events", false, nil))
		require.NoError(t, ch.QueueBind("healz.events.failed", "failed", "healz.events.dlx", false, nil))
	}
	for name, order := range map[string]struct {
		before, after func(*testing.T, *amqp091.Channel)
	}{
		"declared by another service first": {before: declareElsewhere, after: func(*testing.T, *amqp091.Channel) {}},
		"declared by the worker first":      {before: func(*testing.T, *amqp091.Channel) {}, after: declareElsewhere},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testservers.RabbitMQ(t)
			ch := raw(t, url)
			order.before(t, ch)
			c := dial(t, amqp.Config{URL: url})
			require.NoError(t, c.Ready())
			order.after(t, ch)

			err := ch.PublishWithContext(t.Context(), "healz.events", "Any.Type", true, false, amqp091.Publishing{})
			require.NoError(t, err)
			awaitCount(t, ch, consumerQueue, 1)
			d, ok, err := ch.Get(consumerQueue, false)
			require.NoError(t, err)
			require.True(t, ok)
			require.NoError(t, d.Reject(false))
			awaitCount(t, ch, failedQueue, 1)
		})
	}
}

func TestDialNamesWhatIsDeclaredDifferently(t *testing.T) {
	t.Parallel()
	for name, declare := range map[string]func(*amqp091.Channel) error{
		"healz.events": func(ch *amqp091.Channel) error {
			return ch.ExchangeDeclare("healz.events", "direct", true, false, false, false, nil)
		},
		"healz.events.consumer": func(ch *amqp091.Channel) error {
			_, err := ch.QueueDeclare("healz.events.consumer", true, false, false, false, nil)
			return err
		},
		"healz.events.failed": func(ch *amqp091.Channel) error {
			_, err := ch.QueueDeclare("healz.events.failed", false, false, false, false, nil)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testservers.RabbitMQ(t)
			require.NoError(t, declare(raw(t, url)))

			_, err := amqp.Dial(t.Context(), amqp.Config{URL: url})
			var topology *amqp.TopologyError
			require.ErrorAs(t, err, &topology)
			require.Equal(t, name, topology.Name)
			var answer *amqp091.Error
			require.ErrorAs(t, err, &answer)
			require.Equal(t, amqp091.PreconditionFailed, answer.Code)
			require.NotErrorIs(t, err, amqp.ErrUnavailable)
		})
	}
}

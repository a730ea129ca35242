package middleware_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/middleware"
	"github.com/healz/worker/internal/observe"
)

type key struct{}

func deliver(l middleware.Lifetime) message.HandlerMiddleware {
	return middleware.Deliver(l, observe.None{}, slog.New(slog.DiscardHandler))
}

func TestDeliver(t *testing.T) {
	t.Parallel()
	ended, end := context.WithCancel(t.Context())
	subscription, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "kept"))
	m := message.NewMessage("1", nil)
	m.SetContext(subscription)
	_, err := deliver(middleware.Lifetime{Ended: ended})(func(m *message.Message) ([]*message.Message, error) {
		cancel()
		require.NoError(t, m.Context().Err(), "the subscription's end is not the message's")
		require.Equal(t, "kept", m.Context().Value(key{}))
		end()
		<-m.Context().Done() // the end of the grace period is
		require.ErrorIs(t, context.Cause(m.Context()), middleware.ErrStopping)
		return nil, nil
	})(m)
	require.NoError(t, err)
}

func TestDeliverGivesBackWhatArrivesTooLate(t *testing.T) {
	t.Parallel()
	stopping := make(chan struct{})
	close(stopping)
	m := message.NewMessage("1", nil)
	_, err := deliver(middleware.Lifetime{Stopping: stopping, Ended: t.Context()})(
		func(*message.Message) ([]*message.Message, error) {
			require.Fail(t, "handled after the stop")
			return nil, nil
		})(m)
	require.ErrorIs(t, err, middleware.ErrStopping)
}

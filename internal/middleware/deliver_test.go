package middleware_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
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

// Of a flood of events without a handler the log has the first of each type, and then a number each minute.
func TestEventsWithoutAHandlerAreCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var lines logLines
		handle := middleware.Deliver(middleware.Lifetime{Ended: t.Context()}, observe.None{}, slog.New(slog.NewTextHandler(&lines, nil)))(
			func(m *message.Message) ([]*message.Message, error) {
				middleware.SetOutcome(m.Context(), observe.Unhandled)
				return nil, nil
			})
		for i := range 40_000 {
			m := message.NewMessage("1", nil)
			m.Metadata.Set(bus.EventTypeKey, []string{"Billed", "Paid"}[i%2])
			m.SetContext(t.Context())
			_, err := handle(m)
			require.NoError(t, err)
			if i == 9_999 {
				time.Sleep(time.Minute) //nolint:forbidigo // the bubble's time
			}
		}
		require.Equal(t, 2, strings.Count(lines.String(), "outcome=unhandled"), lines.String())
		require.Equal(t, 1, strings.Count(lines.String(), "more events without a handler"))
		require.Contains(t, lines.String(), "events=9999 within=1m0s")
	})
}

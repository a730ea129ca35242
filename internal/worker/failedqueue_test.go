package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/worker"
)

// setPolicy sets a policy for a queue of a broker's vhost.
func setPolicy(t *testing.T, amqpURL, queue, definition string) {
	t.Helper()
	u, err := url.Parse(amqpURL)
	require.NoError(t, err)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPut,
		testservers.RabbitMQManagement(t)+"/api/policies/"+url.PathEscape(strings.TrimPrefix(u.Path, "/"))+"/test",
		strings.NewReader(`{"pattern":"^`+queue+`$","apply-to":"queues","definition":`+definition+`}`))
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusCreated, response.StatusCode)
}

// Dead letters that the failed queue refuses are written to the table: they do not take the places of good events.
func TestAFullFailedQueueHoldsUpNoGoodEvent(t *testing.T) {
	t.Parallel()
	const poison, good, room = 40, 20, 2
	var broker string
	s := newSite(t, func(settings *worker.Settings, reg *handlers.Registry) {
		settings.IngestDeadLetters, settings.Tuning.RetryAttempts = false, 1
		broker = settings.AMQP.URL
		handlers.On(reg, "Poison", "broken", func(context.Context, events.Event, json.RawMessage) ([]events.Event, error) {
			return nil, errors.New("broken")
		})
	})
	require.Equal(t, "ok", s.health().Parts["dead_letters"].String())
	setPolicy(t, broker, "healz.events.failed", `{"max-length":2,"overflow":"reject-publish"}`)
	for range poison {
		s.publish(body(map[string]any{"event_type": "Poison"}), nil)
	}
	for range good {
		s.publish(body(nil), nil)
	}
	require.Eventually(t, func() bool { return s.witness.count() == poison+good && s.count() >= poison-room }, patience, tick)
	require.Eventually(t, func() bool { return s.health().Ready }, patience, tick)
	h := s.health()
	require.Contains(t, h.Parts["dead_letters"].String(), "degraded since ")
	require.Contains(t, h.Parts["dead_letters"].Problem, "written to the table")
	require.Equal(t, 1, strings.Count(s.log.String(), "the failed queue takes no dead letters"))
	require.NotContains(t, s.log.String(), "cannot put messages into the poison queue")
	queue, err := s.channel.QueueDeclarePassive("healz.events.failed", true, false, false, false, nil)
	require.NoError(t, err)
	require.Equal(t, poison, queue.Messages+s.count(), "each once")

	_, err = s.channel.QueuePurge("healz.events.failed", false)
	require.NoError(t, err)
	require.Eventually(t, func() bool { // it takes letters again for a while
		s.publish(body(map[string]any{"event_type": "Poison"}), nil)
		_, err := s.channel.QueuePurge("healz.events.failed", false)
		require.NoError(t, err)
		return s.health().Parts["dead_letters"].OK()
	}, patience, 500*time.Millisecond)
	require.Equal(t, 1, strings.Count(s.log.String(), "the failed queue takes dead letters again"))
}

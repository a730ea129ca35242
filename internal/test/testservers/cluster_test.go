package testservers_test

import (
	"slices"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/test/testservers"
)

func TestRabbitMQClusterKeepsAQuorumQueueWithoutOneNode(t *testing.T) {
	t.Parallel()
	brokers, err := testservers.StartRabbitMQCluster(t.Context(), 3)
	require.NoError(t, err)
	t.Cleanup(func() {
		for _, b := range slices.Backward(brokers) {
			requireGone(t, b)
		}
	})
	channel := dial(t, brokers[0].URL())
	_, err = channel.QueueDeclare("kept", true, false, false, false, amqp.Table{"x-queue-type": "quorum"})
	require.NoError(t, err)
	require.NoError(t, channel.Confirm(false))
	confirm, err := channel.PublishWithDeferredConfirmWithContext(t.Context(), "", "kept", false, false, amqp.Publishing{Body: []byte("1")})
	require.NoError(t, err)
	require.True(t, confirm.Wait())

	require.NoError(t, brokers[0].Kill())
	survivor := dial(t, brokers[1].URL())
	require.Eventually(t, func() bool {
		m, got, err := survivor.Get("kept", true)
		return err == nil && got && string(m.Body) == "1"
	}, time.Minute, 100*time.Millisecond)
	require.NoError(t, brokers[0].Start())
	require.Equal(t, 0, dialAndCount(t, brokers[0].URL(), "kept"))
}

func dialAndCount(t *testing.T, url, queue string) int {
	t.Helper()
	declared, err := dial(t, url).QueueDeclarePassive(queue, true, false, false, false, nil)
	require.NoError(t, err)
	return declared.Messages
}

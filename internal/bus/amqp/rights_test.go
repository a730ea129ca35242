package amqp_test

import (
	"bytes"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/test/testservers"
)

// A user who may only read and write works with what another one has declared.
func TestWithoutTheRightToConfigure(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]string{"who may bind": ".*", "who may publish": `^healz\.events(\.dlx)?$`} {
		for _, queueType := range []string{amqp.ClassicQueues, amqp.QuorumQueues} {
			t.Run(name+" "+queueType, func(t *testing.T) {
				t.Parallel()
				owner := amqp.Config{URL: testservers.RabbitMQ(t), QueueType: queueType}
				limited := owner
				limited.URL = user(t, owner.URL, "", write, ".*")
				_, err := amqp.Dial(t.Context(), limited)
				var topology *amqp.TopologyError
				require.ErrorAs(t, err, &topology, "what is missing cannot be declared")

				dial(t, owner)
				var log bytes.Buffer
				limited.Logger = slog.New(slog.NewTextHandler(&log, nil))
				c := dial(t, limited)
				publisher := amqp.NewPublisher(c)
				publish(t, publisher, event(uuid.New(), 1))
				messages, subscriber := subscribe(t, c)
				m := receive(t, messages)
				require.NoError(t, amqp.NewFailedQueue(c).Put(m.Context(), m, failure()))
				m.Ack()
				limited.Logger = nil
				ch := raw(t, owner.URL)
				awaitCount(t, ch, failedQueue, 1)
				require.Len(t, lettersOf(t, c), 1, "letters are ingested")
				if queueType == amqp.ClassicQueues { // one worker consumes
					other := newCrew(t).join(limited)
					awaitState(t, other, amqp.Standby)
					require.NoError(t, subscriber.Close())
					require.Eventually(t, func() bool { return other.State() == "" }, takeover, time.Millisecond)
				}
				require.NoError(t, subscriber.Close())
				require.NoError(t, c.Close())
				require.Contains(t, log.String(), "the user lacks a right")
				require.Contains(t, log.String(), "consumes exclusively")
			})
		}
	}
}

func TestPartitionsWithoutTheRightToConfigure(t *testing.T) {
	t.Parallel()
	owner := amqp.Config{URL: partitionable(t), Partitions: 2}
	dial(t, owner)
	limited := owner
	limited.URL = user(t, owner.URL, "", ".*", ".*")
	c := newCrew(t)
	m := c.join(limited)
	c.awaitHandled(publisherOf(t, m.conn, newIDs(10))(2))

	limited.Partitions, limited.LeavePartitions = 0, true
	_, err := amqp.Dial(t.Context(), limited)
	var answer *amqp091.Error
	require.ErrorAs(t, err, &answer, "the exchange of the partitions cannot be deleted")
}

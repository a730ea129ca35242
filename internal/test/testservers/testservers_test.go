package testservers_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/test/testservers"
)

func TestMain(m *testing.M) { testservers.Main(m) }

func TestDatabasesAreSeparate(t *testing.T) {
	t.Parallel()

	first, second := connect(t, testservers.Postgres(t)), connect(t, testservers.Postgres(t))
	_, err := first.Exec(t.Context(), "CREATE TABLE mine ()")
	require.NoError(t, err)

	_, err = second.Exec(t.Context(), "SELECT FROM mine")
	require.ErrorContains(t, err, `relation "mine" does not exist`)
}

func TestVhostsAreSeparate(t *testing.T) {
	t.Parallel()

	first, second := dial(t, testservers.RabbitMQ(t)), dial(t, testservers.RabbitMQ(t))
	_, err := first.QueueDeclare("mine", true, false, false, false, nil)
	require.NoError(t, err)

	_, err = second.QueueDeclarePassive("mine", true, false, false, false, nil)
	var missing *amqp.Error
	require.ErrorAs(t, err, &missing)
	require.Equal(t, amqp.NotFound, missing.Code)
}

func connect(t *testing.T, database string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	require.NoError(t, err)
	return conn
}

func dial(t *testing.T, vhost string) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(vhost)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	channel, err := conn.Channel()
	require.NoError(t, err)
	return channel
}

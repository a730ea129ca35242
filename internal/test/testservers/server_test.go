package testservers_test

import (
	"context"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/test/testservers"
)

const silence = 500 * time.Millisecond

// requireGone stops a server and looks for what it may leave behind.
func requireGone(t *testing.T, server *testservers.Server) {
	t.Helper()
	require.NoError(t, server.Stop())
	_, err := net.Dial("tcp", host(t, server.URL()))
	require.ErrorIs(t, err, syscall.ECONNREFUSED, "the server that was started last outlives its end")
	require.NoDirExists(t, filepath.Dir(server.Log()))
}

func TestPostgresIsHarmedAndKeepsItsData(t *testing.T) {
	t.Parallel()
	server, err := testservers.StartPostgres(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { requireGone(t, server) })
	conn := connect(t, server.URL())
	_, err = conn.Exec(t.Context(), "CREATE TABLE kept ()")
	require.NoError(t, err)

	require.NoError(t, server.Pause())
	ctx, cancel := context.WithTimeout(t.Context(), silence)
	defer cancel()
	require.Error(t, conn.Ping(ctx), "a backend answers that should be stopped")
	require.NoError(t, server.Resume())
	require.NoError(t, connect(t, server.URL()).Ping(t.Context()))

	require.NoError(t, server.Kill())
	_, err = pgx.Connect(t.Context(), server.URL())
	require.Error(t, err)
	require.NoError(t, server.Start())
	_, err = connect(t, server.URL()).Exec(t.Context(), "SELECT FROM kept")
	require.NoError(t, err)

	_, err = server.Control("status")
	require.ErrorContains(t, err, "no administration program")
}

func TestRabbitMQIsHarmedAndKeepsItsData(t *testing.T) {
	t.Parallel()
	server, err := testservers.StartRabbitMQ(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { requireGone(t, server) })
	_, err = dial(t, server.URL()).QueueDeclare("kept", true, false, false, false, nil)
	require.NoError(t, err)
	_, err = server.Control("eval", "mnesia:sync_log().") // by itself the broker writes a definition within two seconds
	require.NoError(t, err)

	require.NoError(t, server.Pause())
	_, err = amqp.DialConfig(server.URL(), amqp.Config{Dial: amqp.DefaultDial(silence)})
	require.Error(t, err, "a broker answers that should be stopped")
	require.NoError(t, server.Resume())

	require.NoError(t, server.Kill())
	_, err = amqp.Dial(server.URL())
	require.Error(t, err)
	require.NoError(t, server.Start())
	var queues string
	require.Eventually(t, func() bool { // it takes connections a moment before it counts as running
		queues, err = server.Control("--quiet", "list_queues", "name")
		return err == nil
	}, time.Minute, 100*time.Millisecond)
	require.Contains(t, queues, "kept")
}

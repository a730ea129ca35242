package amqp_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/test/testservers"
)

func TestTLS(t *testing.T) {
	t.Parallel()
	url, certificates := testservers.RabbitMQTLS(t)
	file := func(name string) string { return filepath.Join(certificates, name) }
	client := "&certfile=" + file("client.pem") + "&keyfile=" + file("client.key")
	for name, test := range map[string]struct {
		url  string
		want string // "" is success
	}{
		"verified":              {url + "?cacertfile=" + file("ca.pem") + client, ""},
		"of another authority":  {url + "?cacertfile=" + file("other-ca.pem") + client, "unknown authority"},
		"of no known authority": {url + "?" + client[1:], "unknown authority"},
		"for another host": {
			strings.Replace(url, "127.0.0.1", "localhost", 1) + "?cacertfile=" + file("ca.pem") + client, "wanted to match localhost",
		},
		"of a file that is not there": {url + "?cacertfile=" + file("nowhere.pem") + client, "nowhere.pem"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := amqp.Dial(t.Context(), amqp.Config{URL: test.url})
			if test.want != "" {
				require.ErrorContains(t, err, test.want)
				require.NotErrorIs(t, err, amqp.ErrUnavailable, "to wait is of no use")
				require.NotContains(t, err.Error(), "guest:guest")
				return
			}
			require.NoError(t, err)
			publish(t, amqp.NewPublisher(c), event(uuid.New(), 1))
			require.NoError(t, c.Close())
		})
	}
	for name, own := range map[string]string{
		"no client certificate":            "",
		"of a client of another authority": "&certfile=" + file("other-client.pem") + "&keyfile=" + file("other-client.key"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := amqp.Dial(t.Context(), amqp.Config{URL: url + "?cacertfile=" + file("ca.pem") + own})
			require.Error(t, err) // it may tell the reason, or just end the connection
		})
	}
}

package cli

import (
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/test/posix"
)

// Of several workers on the one queue one consumes, and the others say that they are on standby. When that one is killed or
// frozen, another one consumes within five seconds.
func TestStandbyTakesOver(t *testing.T) {
	t.Parallel()
	for name, signal := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "frozen": posix.SIGSTOP, "stopped": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const standby = `"consumer":"ok (standby: another worker consumes; set --partitions to share the load)"`
			p := onServers(t)
			first := p.start()
			second := p.start()
			status, body := second.get("/readyz")
			require.Equal(t, http.StatusOK, status, body)
			require.Contains(t, body, standby)
			_, body = first.get("/readyz")
			require.NotContains(t, body, "standby: another worker consumes")
			require.Contains(t, second.log.String(), "set --partitions to share the load")
			e := p.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0]
			p.awaitFollowUp(e, "WelcomeMessageRequested")
			require.NotContains(t, second.log.String(), "outcome=handled")

			require.NoError(t, first.cmd.Process.Signal(signal))
			began := time.Now()
			require.Eventually(t, func() bool {
				_, body := second.get("/readyz")
				return strings.Contains(body, `"ready":true`) && !strings.Contains(body, standby)
			}, patience, tick)
			require.Less(t, time.Since(began), 5*time.Second)
			e = p.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0]
			p.awaitFollowUp(e, "WelcomeMessageRequested")
			if signal == posix.SIGSTOP {
				require.NoError(t, first.cmd.Process.Signal(posix.SIGCONT))
				require.Eventually(t, func() bool {
					_, body := first.get("/readyz")
					return strings.Contains(body, standby)
				}, patience, tick)
			}
		})
	}
}

// With the in-process bus the worker that relays handles what it relays, and the others nothing. They say so.
func TestStandbyOnTheInProcessBus(t *testing.T) {
	t.Parallel()
	const standby = `"consumer":"ok (standby: the worker that relays handles the events; set RABBITMQ_URL to share the load)"`
	p := embedded(t)
	first := p.start()
	second := p.start()
	_, body := second.get("/readyz")
	require.Contains(t, body, standby)
	_, body = first.get("/readyz")
	require.NotContains(t, body, standby)
	e := p.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0]
	p.awaitFollowUp(e, "WelcomeMessageRequested")
	require.NotContains(t, second.log.String(), "outcome=handled")

	first.stop()
	require.Eventually(t, func() bool {
		_, body := second.get("/readyz")
		return !strings.Contains(body, standby)
	}, patience, tick)
}

// Attempts that may outlast the broker's consumer timeout are a warning of doctor and at the start.
func TestConsumerTimeoutIsWarnedOf(t *testing.T) {
	t.Parallel()
	p := onServers(t)
	w := p.start("--handler-timeout", "1h", "--retry-attempts", "2")
	require.Contains(t, w.log.String(), "all attempts of an event may take 6h0m0s")
	r := p.run("", "doctor", "--handler-timeout", "1h", "--retry-attempts", "2")
	require.Contains(t, r.out, "all attempts of an event may take 6h0m0s", r.err)
	require.NotContains(t, p.run("", "doctor").out, "consumer_timeout")
	require.NotContains(t, p.start().log.String(), "consumer_timeout")
}

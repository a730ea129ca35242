package worker_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/worker"
)

// linesByText counts the lines of a log at a level or above by their text, with the connection or queue of a line.
func linesByText(log string, levels ...string) map[string]int {
	line := regexp.MustCompile(`level=(\S+) msg=("(?:[^"\\]|\\.)*"|\S+)(?:.* ((?:connection|queue|table|task)=\S+))?`)
	counts := map[string]int{}
	for text := range strings.SplitSeq(log, "\n") {
		if m := line.FindStringSubmatch(text); m != nil && strings.Contains(strings.Join(levels, " "), m[1]) {
			counts[m[2]+" "+m[3]]++
		}
	}
	return counts
}

// requireFewLines checks that no text is repeated in an outage.
func requireFewLines(t *testing.T, log string, most int) {
	t.Helper()
	for text, n := range linesByText(log, "WARN", "ERROR") {
		require.LessOrEqual(t, n, most, "%s\n%s", text, log)
	}
}

// An outage of Postgres with many messages in flight is a few lines of the log, and its end one with the duration.
func TestAnOutageOfPostgresIsAFewLines(t *testing.T) {
	t.Parallel()
	server, err := testservers.StartPostgres(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop()) })
	s := newSite(t, func(settings *worker.Settings, _ *handlers.Registry) {
		settings.DatabaseURL = server.URL()
		settings.Tuning.RetryInitial = worker.DefaultTuning().RetryInitial
	})
	require.Eventually(t, func() bool { return s.health().Ready }, patience, tick)
	require.NoError(t, server.Kill())
	const messages = 100
	for range messages {
		s.publish(body(map[string]any{"event_id": uuid.NewString(), "aggregate_id": uuid.NewString()}), nil)
	}
	require.Eventually(t, func() bool {
		log := s.log.String()
		return strings.Contains(log, `level=ERROR msg="the store cannot do it`) && strings.Count(log, "cannot replay dead letters") > 20
	}, patience, tick)
	require.NoError(t, server.Start())
	require.Eventually(t, func() bool { return s.witness.count() == messages && s.health().Ready }, patience, tick)
	require.Eventually(t, func() bool { return strings.Contains(s.log.String(), "dead letters can be replayed again") }, patience, tick)
	log := s.log.String()
	require.Regexp(t, `level=ERROR msg="the store cannot do it, will try again".* event_id=`, log)
	require.Regexp(t, `level=INFO msg="the store can do it again" outage=\S+ failures=\d+`, log)
	require.NotContains(t, log, "attempt=0")
	requireFewLines(t, log, 2)
}

// A worker without a broker is not ready, and says which of its parts do not work; so it is while the broker blocks.
func TestHealthWithoutABroker(t *testing.T) {
	t.Parallel()
	server, err := testservers.StartRabbitMQ(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop()) })
	s := newSite(t, func(settings *worker.Settings, _ *handlers.Registry) { settings.AMQP.URL = server.URL() })
	require.Eventually(t, func() bool { return s.health().Ready }, patience, tick)

	_, err = server.Control("eval", "vm_memory_monitor:set_vm_memory_high_watermark(0.00001).")
	require.NoError(t, err)
	appended := 0
	require.Eventually(t, func() bool { // the alarm reaches the connections a moment later
		s.append(1)
		appended++
		h := s.health()
		return !h.Ready && strings.Contains(h.Parts["bus"].Problem, "RabbitMQ blocks its publishers: low on memory")
	}, patience, 20*tick)
	require.Eventually(t, func() bool { return s.health().Parts["consumer"].OK() }, patience, tick, "what is blocked is publishing")
	_, err = server.Control("eval", "vm_memory_monitor:set_vm_memory_high_watermark(0.4).")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return s.health().Ready && s.witness.count() == appended }, patience, tick)

	require.NoError(t, server.Kill())
	require.Eventually(t, func() bool {
		h := s.health()
		return !h.Ready && strings.Contains(h.Parts["bus"].Problem, "RabbitMQ is unavailable") && h.Parts["consumer"].Problem == "it waits for the bus" && h.Parts["dead_letters"].Unknown()
	}, patience, tick)
	require.Eventually(t, func() bool { return strings.Count(s.log.String(), "cannot reconnect to RabbitMQ") >= 6 }, patience, tick)
	require.NoError(t, server.Start())
	require.Eventually(t, func() bool { return s.health().Ready }, patience, tick)
	log := s.log.String()
	require.Regexp(t, `msg="connection to RabbitMQ restored" connection=publish outage=\S+ failures=\d+`, log)
	requireFewLines(t, log, 2)
}

// A database file that is moved under a running worker is named.
func TestHealthWithoutTheDatabaseFile(t *testing.T) {
	t.Parallel()
	settings := worker.DefaultSettings()
	settings.SQLitePath = filepath.Join(t.TempDir(), "test.db")
	health := runHealth(t, settings, func(*handlers.Registry) {})
	require.Eventually(t, func() bool { return health().Ready }, patience, tick)
	require.NoError(t, os.Rename(settings.SQLitePath, settings.SQLitePath+".moved"))
	h := health()
	require.False(t, h.Ready)
	require.Contains(t, h.Parts["store"].Problem, settings.SQLitePath+" was moved or deleted")
	require.NoError(t, os.Rename(settings.SQLitePath+".moved", settings.SQLitePath))
	require.Eventually(t, func() bool { return health().Ready }, patience, tick)
}

package reports

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// inRoot is a file of the repository.
func inRoot(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("../../..", path))
	require.NoError(t, err)
	return string(content)
}

// Each alert fires in a scenario, or it is said why in none.
func TestEachAlertHasItsScenario(t *testing.T) {
	t.Parallel()
	covered := slices.Collect(maps.Keys(elsewhere()))
	for _, s := range scenarios() {
		for _, name := range s.fires {
			require.NotContains(t, elsewhere(), name, s.name)
			if !slices.Contains(covered, name) {
				covered = append(covered, name)
			}
		}
	}
	require.ElementsMatch(t, alertNames(inRoot(t, alertsFile)), covered)
}

func TestScenariosHaveNamesOfTheirOwn(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, s := range scenarios() {
		require.False(t, names[s.name], s.name)
		names[s.name] = true
	}
	require.GreaterOrEqual(t, len(names), 12)
}

func TestAlertsBecomeFaster(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"for: 2m":                            "for: 12s",
		"for: 1m":                            "for: 10s",
		"for: 1d":                            "for: 30s",
		"increase(x_total[5m])":              "increase(x_total[30s])",
		"max(worker_relay_lag_seconds) > 60": "max(worker_relay_lag_seconds) > 6",
		"time() - process_start_time_seconds < 600":     "time() - process_start_time_seconds < 30",
		"max(worker_oldest_in_flight_seconds) > 900":    "max(worker_oldest_in_flight_seconds) > 30",
		"rate(worker_store_wait_seconds_total[5m]) > 1": "rate(worker_store_wait_seconds_total[30s]) > 1",
		"max(worker_queue_messages) > 10000":            "max(worker_queue_messages) > 10000",
	} {
		require.Equal(t, want, faster(text))
	}
}

// No duration of the alerts is left as it is, and Prometheus reads the result.
func TestAllAlertsBecomeFaster(t *testing.T) {
	t.Parallel()
	alerts := inRoot(t, alertsFile)
	derived := faster(alerts)
	require.Equal(t, alertNames(alerts), alertNames(derived))
	for _, found := range regexp.MustCompile(`(?m)^\s*(?:for:|keep_firing_for:|expr:|[^:]*\[)[^\n]*?(\d+)(s|m|h|d)\b`).FindAllStringSubmatch(derived, -1) {
		n, err := strconv.Atoi(found[1])
		require.NoError(t, err)
		require.Equal(t, "s", found[2], found[0])
		require.LessOrEqual(t, n, int(longest.Seconds()), found[0])
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if promtool, err = filepath.Abs("../../../bin/promtool"); err == nil {
			_, err = os.Stat(promtool)
		}
	}
	if err != nil {
		return // Prometheus checks them, too, when it reads them in the rig
	}
	path := filepath.Join(t.TempDir(), "alerts.yaml")
	require.NoError(t, os.WriteFile(path, []byte(derived), 0o600))
	output, err := exec.CommandContext(t.Context(), promtool, "check", "rules", path).CombinedOutput()
	require.NoError(t, err, string(output))
}

package cli

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/internal/worker"
)

// Each variable that the files for Docker, Kubernetes and systemd set or name is one that a command reads.
func TestTheVariablesOfDeploymentsExist(t *testing.T) {
	t.Parallel()
	exist := map[string]bool{}
	var add func(*cobra.Command)
	add = func(c *cobra.Command) {
		of := func(f *pflag.Flag) { exist[variable(c, f)] = true }
		c.LocalFlags().VisitAll(of)
		c.InheritedFlags().VisitAll(of)
		for _, sub := range c.Commands() {
			add(sub)
		}
	}
	add(newRoot(clinic.Register))

	files := []string{"../../Dockerfile", "../../docker-compose.yml", "../../.env.example"}
	require.NoError(t, filepath.WalkDir("../../deploy", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			files = append(files, path)
		}
		return err
	}))
	found := 0
	for _, file := range files {
		for _, name := range regexp.MustCompile(`\b(WORKER_[A-Z_]+[A-Z]|DATABASE_URL|RABBITMQ_URL|HTTP_ADDR)\b`).FindAllString(read(t, file), -1) {
			found++
			require.True(t, exist[name], "%s: no command reads %s", file, name)
		}
	}
	require.Greater(t, found, 20)
}

// A worker is killed only after its own grace period, and its limit of memory leaves room for what Go does not count.
func TestTheLimitsOfDeployments(t *testing.T) {
	t.Parallel()
	for _, file := range []string{
		"../../docker-compose.yml", "../../deploy/kubernetes/base/deployment.yaml", "../../deploy/systemd/worker.service",
	} {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			text := read(t, file)
			grace := worker.DefaultTuning().GracePeriod
			require.GreaterOrEqual(t, number(t, text, `(?m)(?:stop_grace_period: |terminationGracePeriodSeconds: |^TimeoutStopSec=)(\d+)`),
				int(grace/time.Second)+10)
			if settings := filepath.Join(filepath.Dir(file), "kustomization.yaml"); filepath.Base(file) == "deployment.yaml" {
				require.Contains(t, text, "{ path: /healthz, port: http }")
				require.Contains(t, text, "{ path: /readyz, port: http }")
				text += read(t, settings)
			}
			for _, set := range regexp.MustCompile(`WORKER_GRACE_PERIOD=(\w+)`).FindAllStringSubmatch(text, -1) {
				require.Equal(t, grace.String(), set[1])
			}
			limit, soft := number(t, text, `(?:mem_limit: |limits: \{ memory: |MemoryMax=)(\d+)[mM]`), number(t, text, `GOMEMLIMIT[=:] ?(\d+)MiB`)
			require.Equal(t, limit*7/8, soft)
		})
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	return string(text)
}

// number is the first one that a pattern finds.
func number(t *testing.T, text, pattern string) int {
	t.Helper()
	found := regexp.MustCompile(pattern).FindStringSubmatch(text)
	require.NotNil(t, found, pattern)
	n, err := strconv.Atoi(found[1])
	require.NoError(t, err)
	return n
}

package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/healz/worker/internal/worker"
)

// memoryTurns is how many turns' time a worker is watched.
const memoryTurns = 10

// measureMemory measures the resident memory of the worker's program at its highest: with nothing to do, and with a
// backlog that it relays and consumes at full speed.
func measureMemory(ctx context.Context, s *stage) error {
	if !s.wantsAny("memory-idle", "memory-backlog") {
		return nil
	}
	settings, _, err := s.newStore(ctx)
	if err != nil {
		return err
	}
	if settings.AMQP.Prefix, err = s.newTopology(ctx); err != nil {
		return err
	}
	settings.AMQP.URL = s.broker
	watch := s.config.Turn * memoryTurns
	idle, err := s.peak(ctx, settings, watch)
	if err != nil {
		return err
	}
	if s.wants("memory-idle") {
		s.add(&Row{
			Name: "memory-idle", What: "memory of worker run, idle", Unit: "MiB", LessIsBetter: true, Limit: 40, Ours: Series{idle},
		})
	}
	if !s.wants("memory-backlog") {
		return nil
	}
	if err := fill(ctx, settings.DatabaseURL, s.config.MemoryBacklog); err != nil {
		return err
	}
	busy, err := s.peak(ctx, settings, 2*watch)
	if err != nil {
		return err
	}
	s.add(&Row{
		Name: "memory-backlog",
		What: fmt.Sprintf("memory of worker run, backlog of %s events", thousands(int64(s.config.MemoryBacklog))),
		Unit: "MiB", LessIsBetter: true, Limit: 64, Ours: Series{busy},
	})
	return nil
}

// peak runs the worker's program and returns its peak of resident memory, in MiB.
func (s *stage) peak(ctx context.Context, settings worker.Settings, watch time.Duration) (float64, error) {
	command := exec.CommandContext(ctx, s.config.Worker, "run", "--http-addr=127.0.0.1:0")
	command.Env = append(os.Environ(), "DATABASE_URL="+settings.DatabaseURL, "RABBITMQ_URL="+settings.AMQP.URL,
		"WORKER_RABBITMQ_PREFIX="+settings.AMQP.Prefix)
	var output bytes.Buffer
	command.Stderr = &output
	if err := command.Start(); err != nil {
		return 0, fmt.Errorf("start the worker's program: %w", err)
	}
	select {
	case <-time.After(watch):
	case <-ctx.Done():
	}
	peak, err := peakOf(command.Process.Pid)
	err = errors.Join(err, command.Process.Signal(syscall.SIGTERM), command.Wait())
	if err != nil {
		return 0, fmt.Errorf("%w\n%s", err, output.Bytes()[:min(output.Len(), 2000)])
	}
	return peak, nil
}

// peakOf reads a process's peak of resident memory, in MiB.
func peakOf(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read the worker's memory: %w", err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		if value, found := strings.CutPrefix(lines.Text(), "VmHWM:"); found {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			return float64(kib) / 1024, err
		}
	}
	return 0, errors.New("this system does not tell a process's peak of memory")
}

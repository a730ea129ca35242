package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/healz/worker/internal/deadletter"
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

// largeLetter is how large the body of the largest letters is: as much as RabbitMQ 4 takes by default.
const largeLetter = 16 << 20

// replayedLetters is how many of the largest letters are replayed.
const replayedLetters = 10

// measureLargeLetters measures by how much the resident memory of a process grows at the most while it has to do with dead
// letters of the largest size. That of this process is measured, which does what the worker and its commands do.
func measureLargeLetters(ctx context.Context, s *stage) error {
	rows := []string{"memory-letters-ingest", "memory-letters-list", "memory-letters-show", "memory-letters-replay"}
	if !s.wantsAny(rows...) {
		return nil
	}
	box, err := s.newLetterBox(ctx)
	if err != nil {
		return err
	}
	n := s.config.LargeLetters
	for range n {
		if err := box.putLarge(ctx); err != nil {
			return err
		}
	}
	var some string // the id of one of the letters
	for i, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{fmt.Sprintf("to take %d of the queue into the table", n), func(ctx context.Context) error {
			_, err := box.drain(ctx, n)
			return err
		}},
		{fmt.Sprintf("to list %d", n), func(ctx context.Context) error {
			listed := 0
			for l, err := range box.table.List(ctx, deadletter.Filter{Limit: n}) {
				if err != nil {
					return err
				}
				some = l.ID
				listed++
			}
			if listed != n {
				return fmt.Errorf("of %d letters %d were listed", n, listed)
			}
			return nil
		}},
		{"to find one", func(ctx context.Context) error {
			l, err := box.table.Find(ctx, some)
			if err == nil && len(l.Body) != largeLetter {
				err = fmt.Errorf("the body that was found has %d bytes", len(l.Body))
			}
			return err
		}},
		{fmt.Sprintf("to replay %d", replayedLetters), func(ctx context.Context) error {
			return box.whileReplaying(ctx, func(ctx context.Context) error {
				counts, err := replayAll(box.table.Replay(ctx, deadletter.Filter{Limit: replayedLetters},
					deadletter.ReplayOptions{MaxFailures: -1}))
				if err == nil && counts.Sent != min(n, replayedLetters) {
					err = fmt.Errorf("%d letters were replayed", counts.Sent)
				}
				return err
			})
		}},
	} {
		grown, err := growthOf(func() error { return step.do(ctx) })
		if err != nil {
			return fmt.Errorf("%s: %w", rows[i], err)
		}
		if s.wants(rows[i]) {
			s.add(&Row{
				Name: rows[i], What: fmt.Sprintf("memory %s of the dead letters of 16 MiB", step.what), Unit: "MiB", LessIsBetter: true,
				Limit: 64, Ours: Series{grown},
			})
		}
	}
	return s.empty(box.prefix + ".consumer")
}

// putLarge puts a letter of the largest size into the queue.
func (b *letterBox) putLarge(ctx context.Context) error {
	list, err := samplesOf(1, "")
	if err != nil {
		return err
	}
	small, err := bodies(list)
	if err != nil {
		return err
	}
	padding := bytes.Repeat([]byte("x"), largeLetter-len(small[0]))
	const reason = `"reason":"`
	return b.put(ctx, []json.RawMessage{bytes.Replace(small[0], []byte(reason), append([]byte(reason), padding...), 1)})
}

// growthOf is by how much the resident memory of this process grows at the most while it does something, in MiB.
func growthOf(do func() error) (float64, error) {
	debug.FreeOSMemory()
	const resetPeak = "5" // see proc(5)
	if err := os.WriteFile("/proc/self/clear_refs", []byte(resetPeak), 0); err != nil {
		return 0, fmt.Errorf("forget this process's peak of memory: %w", err)
	}
	before, err := peakOf(os.Getpid())
	if err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	after, err := peakOf(os.Getpid())
	return after - before, err
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

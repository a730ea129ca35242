package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// clockTick is the unit of the times in /proc/*/stat.
const clockTick = time.Second / 100

// spent is what a contender has used for its work.
type spent struct {
	// time is that on the clock.
	time time.Duration
	// processors is the time of all processors, of this process and of all that it has started, servers of its own
	// included. Unlike the time on the clock it hardly depends on what else the machine does. It is 0 where the system
	// does not tell.
	processors time.Duration
}

// spending begins to count what is spent until it is called.
func spending() func() spent {
	used, began := processorTime(), time.Now()
	return func() spent {
		took := time.Since(began)
		return spent{time: took, processors: processorTime() - used}
	}
}

// processorTime is what this process and all that it has started have used so far.
func processorTime() time.Duration {
	type process struct {
		parent int
		used   time.Duration
	}
	processes := map[int]process{}
	files, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well-formed
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has just ended
		}
		// pid (name) state ppid … utime stime cutime cstime, the name of any characters
		fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
		number := func(i int) int { n, _ := strconv.Atoi(string(fields[i])); return n }
		var pid int
		if _, err := fmt.Sscan(string(text), &pid); err == nil && len(fields) > 15 {
			ticks := number(11) + number(12) + number(13) + number(14)
			processes[pid] = process{parent: number(1), used: time.Duration(ticks) * clockTick}
		}
	}
	var total time.Duration
	for pid := range processes {
		for ancestor := pid; ancestor > 1; ancestor = processes[ancestor].parent {
			if ancestor == os.Getpid() {
				total += processes[pid].used
				break
			}
		}
	}
	return total
}

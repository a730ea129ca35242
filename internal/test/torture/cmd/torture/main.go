// Command torture runs workers under traffic, harms them and their servers, and checks what the worker promises; see
// package torture. It exits with 1 if a promise was broken, and with 2 if the run could not be done.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"regexp"
	"sync"
	"syscall"
	"time"

	"github.com/healz/worker/internal/test/testservers"
	"github.com/healz/worker/internal/test/torture"
)

func main() {
	testservers.Supervise()
	os.Exit(run())
}

func run() int {
	var c torture.Config
	var faults, parallel int
	var into string
	flag.Uint64Var(&c.Seed, "seed", rand.Uint64N(1_000_000), "what all choices come from")
	flag.DurationVar(&c.Duration, "duration", 2*time.Minute, "how long a run injects faults")
	flag.IntVar(&c.Workers, "workers", 3, "how many workers run")
	flag.StringVar(&c.Worker, "worker", "bin/worker", "the worker's program")
	flag.BoolVar(&c.Cluster, "cluster", false, "harm a cluster of brokers, and a primary with a standby and a pooler")
	flag.Func("kinds", "a regular expression of the kinds of faults (default all)", func(text string) (err error) {
		c.Kinds, err = regexp.Compile(text)
		return err
	})
	flag.IntVar(&faults, "faults", 1, "do further runs, with the seeds that follow, until so many faults were injected")
	flag.IntVar(&parallel, "parallel", 1, "how many runs at a time, each with servers of its own")
	flag.StringVar(&into, "into", "", "write the result to this file too")
	flag.Parse()
	if c.Duration <= 0 || c.Workers < 1 || parallel < 1 || flag.NArg() > 0 {
		flag.Usage()
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	title, command := "The last long run", fmt.Sprintf("torture -seed=%d -faults=%d -duration=%s", c.Seed, faults, c.Duration)
	if c.Cluster {
		title, command = "The last run on a cluster", command+" -cluster"
	}
	if c.Kinds != nil {
		command += fmt.Sprintf(" -kinds='%s'", c.Kinds)
	}
	result, err := repeat(ctx, c, faults, parallel)
	if err == nil || result.Faults > 0 {
		err = errors.Join(err, result.Print(os.Stdout), result.Err())
		if into != "" {
			err = errors.Join(err, result.Markdown(into, title, command))
		}
	}
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "torture:", err)
	if errors.Is(err, torture.ErrBroken) {
		return 1
	}
	return 2
}

// repeat does runs until there were so many faults, or one of the runs is not what it must be.
func repeat(ctx context.Context, c torture.Config, faults, parallel int) (all torture.Result, err error) {
	var runs sync.WaitGroup
	var mu sync.Mutex
	for range parallel {
		runs.Go(func() {
			mu.Lock()
			defer mu.Unlock()
			for all.Faults < faults && errors.Join(err, all.Err(), ctx.Err()) == nil {
				next := c
				c.Seed++
				mu.Unlock()
				result, failed := torture.Run(ctx, next, os.Stdout)
				mu.Lock()
				if failed != nil {
					err = errors.Join(err, fmt.Errorf("seed %d: %w", next.Seed, failed))
					return
				}
				all.Add(result)
			}
		})
	}
	runs.Wait()
	return all, err
}

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
	flag.Uint64Var(&c.Seed, "seed", rand.Uint64N(1_000_000), "what all choices come from")
	flag.DurationVar(&c.Duration, "duration", 2*time.Minute, "how long faults are injected")
	flag.IntVar(&c.Workers, "workers", 3, "how many workers run")
	flag.StringVar(&c.Worker, "worker", "bin/worker", "the worker's program")
	flag.Parse()
	if c.Duration <= 0 || c.Workers < 1 || flag.NArg() > 0 {
		flag.Usage()
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := torture.Run(ctx, c, os.Stdout); {
	case err == nil:
		return 0
	case errors.Is(err, torture.ErrBroken):
		fmt.Fprintln(os.Stderr, "torture:", err)
		return 1
	default:
		fmt.Fprintln(os.Stderr, "torture:", err)
		return 2
	}
}

// Command bench measures the worker beside the raw clients and Watermill's own parts; see package bench.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"

	"github.com/healz/worker/internal/test/bench"
	"github.com/healz/worker/internal/test/testservers"
)

func main() {
	testservers.Supervise()
	os.Exit(run())
}

func run() int {
	quick := flag.Bool("quick", false, "only show that everything runs")
	growth := flag.Bool("growth", false, "also compare with a table of ten million events")
	rounds := flag.Int("rounds", 0, "how many rounds; 0: as is good")
	turn := flag.Duration("turn", 0, "about how long a contender works in a round; 0: as is good")
	rows := flag.String("rows", "", "a regular expression for the names of the rows to measure")
	into := flag.String("into", "", "folder for performance.json and performance.svg")
	profiles := flag.String("profiles", "", "folder for a CPU profile of each row")
	program := flag.String("worker", "bin/worker", "the worker's program")
	flag.Parse()
	wanted, err := regexp.Compile(*rows)
	if err != nil || flag.NArg() > 0 || *rounds < 0 || *turn < 0 {
		flag.Usage()
		return 2
	}
	c := bench.Default()
	if *quick {
		c = bench.Quick()
	}
	c.Rounds, c.Turn = cmp.Or(*rounds, c.Rounds), cmp.Or(*turn, c.Turn)
	c.Growth, c.Rows, c.Worker, c.Profiles = *growth, wanted, *program, *profiles
	//nolint:forbidigo // the servers are named as for the tests
	c.DatabaseURL, c.BrokerURL = os.Getenv("DATABASE_URL"), os.Getenv("RABBITMQ_URL")

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	result, err := bench.Run(ctx, c, os.Stderr)
	if err == nil {
		err = result.Write(os.Stdout, *into)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

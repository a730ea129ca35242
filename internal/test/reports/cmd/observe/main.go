// Command observe plays scenarios and compares what workers report with the truth; see package reports. It exits with 1
// if a report was false, and with 2 if the run could not be done.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"

	"github.com/healz/worker/internal/test/reports"
	"github.com/healz/worker/internal/test/testservers"
)

func main() {
	testservers.Supervise()
	os.Exit(run())
}

func run() int {
	var c reports.Config
	var into string
	flag.StringVar(&c.Prometheus, "prometheus", "prometheus", "Prometheus's program")
	flag.IntVar(&c.Parallel, "parallel", 3, "how many scenarios run at a time, of those that harm no server")
	flag.Func("scenarios", "a regular expression of the names of the scenarios (default all)", func(text string) (err error) {
		c.Names, err = regexp.Compile(text)
		return err
	})
	flag.StringVar(&into, "into", "", "write the result to this file too")
	flag.Parse()
	if c.Parallel < 1 || flag.NArg() > 0 {
		flag.Usage()
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	program, err := exec.LookPath(c.Prometheus)
	if err == nil {
		c.Prometheus, err = filepath.Abs(program)
	}
	var result reports.Result
	if err == nil {
		result, err = reports.Run(ctx, c, os.Stdout)
	}
	if err == nil && into != "" {
		err = result.Markdown(into)
	}
	if err == nil {
		err = result.Err()
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, reports.ErrFalse):
		fmt.Fprintln(os.Stderr, "observe:", err)
		return 1
	default:
		fmt.Fprintln(os.Stderr, "observe:", err)
		return 2
	}
}

// Command mutants puts known faults into the source, one at a time, and says by which test each is found:
//
//	bin/with-servers -- go run ./internal/test/mutants/cmd/mutants [TEXT OF THE NAME]
package main

import (
	"context"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/healz/worker/internal/test/mutants"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := mutants.Run(ctx, os.Stdout, strings.Join(os.Args[1:], " "))
	stop()
	if err != nil {
		os.Exit(1)
	}
}

// Command with-servers runs a command with a private Postgres and a private RabbitMQ, which it names in the command's
// environment and stops when the command ends:
//
//	go run ./internal/test/testservers/cmd/with-servers -- go test ./...
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/healz/worker/internal/test/testservers"
)

func main() {
	testservers.Supervise()
	command := os.Args[1:]
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	if len(command) == 0 {
		fmt.Fprintln(os.Stderr, "usage: with-servers -- COMMAND [ARGUMENT...]")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code, err := testservers.With(ctx, command)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "with-servers:", err)
	}
	os.Exit(code)
}

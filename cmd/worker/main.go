// Command worker is the worker with the handlers of the example: a clinic.
package main

import (
	"os"

	"github.com/healz/worker/examples/clinic"
	"github.com/healz/worker/internal/cli"
)

func main() { os.Exit(cli.Main(clinic.Register, cli.Demo())) }

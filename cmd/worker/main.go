// Command worker relays the events of a store to a bus, hands them to their handlers, and looks after both.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/handlers/register"
	"github.com/healz/worker/internal/worker"
)

// The exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	// exitUnknown is of `worker dlq try`, when it cannot tell of all, and nothing would fail.
	exitUnknown = 3
)

func main() {
	os.Exit(run(register.All))
}

// registrations registers the handlers that the worker runs.
type registrations func(*handlers.Registry, register.Options)

// run is main with an exit code. The first SIGINT or SIGTERM ends what runs in good order, the second at once.
func run(all registrations) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return execute(ctx, all, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// execute runs one command line.
func execute(ctx context.Context, all registrations, args []string, in io.Reader, out, errOut io.Writer) int {
	root := newRoot(all)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	command, err := root.ExecuteContextC(ctx)
	told, ok := errors.AsType[exitError](err)
	switch {
	case err == nil:
		return exitOK
	case ok:
		return told.code
	case isUsage(err):
		fmt.Fprintf(errOut, "worker: %s\nTry `%s --help`.\n", err, command.CommandPath())
		return exitUsage
	case errors.Is(err, errCannotTell):
		fmt.Fprintf(errOut, "worker: %s\n", err)
		return exitUnknown
	default:
		fmt.Fprintf(errOut, "worker: %s\n", err)
		return exitFailed
	}
}

func newRoot(all registrations) *cobra.Command {
	settings := worker.DefaultSettings()
	root := group(&cobra.Command{
		Use:     "worker",
		Short:   "Event store, relay and handlers of a clinic platform",
		Version: version(),
		Long: `worker keeps events in a store, relays them to a bus and hands them to their handlers.

With nothing set it uses a SQLite file and a bus inside the process. DATABASE_URL names a Postgres database and
RABBITMQ_URL a RabbitMQ broker to use instead; either goes with either.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		PersistentPreRunE: fromEnvironment,
	})
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	flags := root.PersistentFlags()
	flags.StringVar(&settings.DatabaseURL, "database-url", "", "Postgres database, as postgres://…; empty: the SQLite file")
	flags.StringVar(&settings.SQLitePath, "sqlite-path", settings.SQLitePath, "SQLite file of the embedded default")
	flags.StringVar(&settings.AMQP.URL, "rabbitmq-url", "", "RabbitMQ broker, as amqp://… or amqps://…; empty: a bus inside the process")
	flags.StringVar(&settings.AMQP.Prefix, "rabbitmq-prefix", settings.AMQP.Prefix, "beginning of the names of exchanges and queues")
	flags.DurationVar(&settings.AMQP.Heartbeat, "rabbitmq-heartbeat", settings.AMQP.Heartbeat, "how often broker and worker show that they live")
	flags.StringVar(&settings.AMQP.QueueType, "queue-type", settings.AMQP.QueueType, "type of RabbitMQ's queues: classic or quorum")
	flags.IntVar(&settings.AMQP.Partitions, "partitions", 0,
		"RabbitMQ queues over which the aggregates are spread, the same for all workers and commands; 0: one queue")
	complete(root, "queue-type", amqp.ClassicQueues, amqp.QuorumQueues)
	root.AddCommand(
		runCommand(&settings, all), migrateCommand(&settings), appendCommand(&settings), publishCommand(&settings),
		eventsCommand(&settings), traceCommand(&settings), tailCommand(&settings), doctorCommand(&settings),
		dlqCommand(&settings, all), demoCommand(),
	)
	describeEnvironment(root)
	return root
}

// version is what the build was made from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}

// complete lets a flag of c be completed by these values.
func complete(c *cobra.Command, flag string, values ...string) {
	err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // there is no such flag
	}
}

// group makes a command that only holds others: alone it prints its help, an unknown word is a usage error.
func group(c *cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usageError{fmt.Errorf("unknown command %q", strings.TrimPrefix(c.CommandPath()+" "+args[0], "worker "))}
		}
		return c.Help()
	}
	return c
}

// usageError is an error of the command line or the settings, as opposed to one of what was asked for.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// exitError is the exit code of a command that has said all there is to say.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

func isUsage(err error) bool {
	_, usage := errors.AsType[usageError](err)
	return usage
}

// noArguments and atMostOne are cobra's, in other words and as usage errors.
func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("takes no arguments, but got %q", args[0])}
	}
	return nil
}

func atMostOne(_ *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usageError{fmt.Errorf("takes one FILE at the most, but got %d", len(args))}
	}
	return nil
}

func oneID(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("takes one ID, but got %d", len(args))}
	}
	return nil
}

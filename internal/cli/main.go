// Package cli is the command line of a worker: it relays the events of a store to a bus and runs their handlers, and has
// commands to operate both.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/causation"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/intake"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/worker"
)

// The exit codes, one for each kind of mistake. docs/operations.md lists them.
const (
	exitOK = iota
	// exitFailed is what is none of the others.
	exitFailed
	// exitUsage is a mistake in the command line or in a setting, or a file named there that cannot be opened.
	exitUsage
	// exitUnknown: `worker dlq try` cannot tell the outcome of some letters, and no other would fail.
	exitUnknown
	// exitNotFound: what the command line names does not exist.
	exitNotFound
	// exitConflict: another was first.
	exitConflict
	// exitUnavailable: the store or the broker cannot be reached or does not answer.
	exitUnavailable
	// exitInvalid: an event, a letter or a patch that was read is not valid.
	exitInvalid
)

// registrations registers the handlers that the worker runs.
type registrations func(*handlers.Registry)

// registry is what is registered, for questions about the handlers.
func (all registrations) registry() *handlers.Registry {
	reg := &handlers.Registry{}
	all(reg)
	return reg
}

func (all registrations) failingOnDemand() registrations {
	return func(reg *handlers.Registry) {
		all(reg)
		handlers.FailOnDemand(reg)
	}
}

// Main runs the program of a worker with the handlers that register registers, and with further commands, and returns its
// exit code. The first SIGINT or SIGTERM stops it gracefully, the second at once.
func Main(register func(*handlers.Registry), more ...*cobra.Command) int {
	if register == nil {
		fmt.Fprintln(os.Stderr, "worker: the function that registers the handlers is nil")
		return exitFailed
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		signal.Stop(signals) // before the stop can be seen, so that the next signal ends the program
		cancel()
	}()
	return execute(ctx, newRoot(register, more...), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

func execute(ctx context.Context, root *cobra.Command, args []string, in io.Reader, out, errOut io.Writer) int {
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if exit, ok := errors.AsType[exitError](err); ok {
		return exit.code
	}
	code, advice := exitCode(err), ""
	if code == exitUsage {
		advice = fmt.Sprintf("Try `%s --help`.", command.CommandPath())
	}
	printError(errOut, command, err, advice)
	return code
}

// exitCode is the exit code of an error.
func exitCode(err error) int {
	wraps := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
	}
	switch {
	case is[usageError](err), is[*store.QueryError](err):
		return exitUsage
	case wraps(errCannotTell):
		return exitUnknown
	case is[notFoundError](err), wraps(
		deadletter.ErrNotFound, causation.ErrNotFound, store.ErrNoEvent, store.ErrNoSchema, worker.ErrNoDatabase):
		return exitNotFound
	case is[*store.DuplicateError](err), is[*store.GapError](err), wraps(
		events.ErrConflict, deadletter.ErrChanged, deadletter.ErrExporting):
		return exitConflict
	case wraps(store.ErrUnavailable, store.ErrUnknownOutcome, amqp.ErrUnavailable):
		return exitUnavailable
	case is[*intake.LineError](err), is[*deadletter.LineError](err), is[*events.InvalidError](err), wraps(deadletter.ErrPatch):
		return exitInvalid
	default:
		return exitFailed
	}
}

func is[T error](err error) bool {
	_, found := errors.AsType[T](err)
	return found
}

// printError prints the error of a command, as JSON if its log is JSON.
func printError(w io.Writer, c *cobra.Command, err error, advice string) {
	if f := c.Flags().Lookup("log-format"); f != nil && (f.Value.String() == jsonLogFormat || !f.Changed && os.Getenv(variable(c, f)) == jsonLogFormat) {
		attrs := []any{"error", err}
		if advice != "" {
			attrs = append(attrs, "advice", advice)
		}
		slog.New(slog.NewJSONHandler(w, nil)).ErrorContext(c.Context(), "worker failed", attrs...)
		return
	}
	fmt.Fprintf(w, "%s %s\n", paintFor(c, w).in(red, "worker:"), err)
	if advice != "" {
		fmt.Fprintln(w, advice)
	}
}

func newRoot(all registrations, more ...*cobra.Command) *cobra.Command {
	settings := worker.DefaultSettings()
	root := group(&cobra.Command{
		Use:     "worker",
		Short:   "Event store, relay and handlers of a clinic platform",
		Version: buildOf().String(),
		Long: `worker keeps events in a store, relays them to a bus and runs their handlers.

By default it uses a SQLite file and an in-process bus. Set DATABASE_URL to use Postgres and RABBITMQ_URL to use RabbitMQ;
each store works with each bus.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			if c.Name() == cobra.ShellCompRequestCmd {
				return nil // the flags of the command that is completed are parsed later
			}
			err := fromEnvironment(c, c.Flags())
			complement(&settings)
			return err
		},
	})
	root.SetVersionTemplate("{{.Version}}")
	root.SetFlagErrorFunc(flagError)
	root.SetGlobalNormalizationFunc(renamedFlags)
	addColor(root)
	flags := root.PersistentFlags()
	addSecret(flags, &settings.DatabaseURL, "database-url", "Postgres database (postgres://…); empty: the SQLite file")
	flags.StringVar(&settings.SQLitePath, "sqlite-path", "",
		"SQLite file, not together with a Postgres database; empty: "+defaultSQLitePath+", if there is no Postgres database")
	addSecret(flags, &settings.AMQP.URL, "rabbitmq-url", "RabbitMQ broker (amqp://… or amqps://…); empty: an in-process bus")
	addSecret(flags, &settings.AMQP.ManagementURL, "rabbitmq-management-url",
		"RabbitMQ's management API (http://… or https://…), which tells of policies; empty: the default port of the broker's host")
	flags.StringVar(&settings.AMQP.Prefix, "rabbitmq-prefix", settings.AMQP.Prefix, "prefix of the names of exchanges and queues")
	flags.StringVar(&settings.AMQP.Service, "service", "",
		"name of the service that the program's handlers belong to, which has its own queues; empty: the contract's queue")
	flags.DurationVar(&settings.AMQP.Heartbeat, "rabbitmq-heartbeat", settings.AMQP.Heartbeat, "heartbeat interval of the RabbitMQ connection")
	flags.StringVar(&settings.AMQP.QueueType, "queue-type", settings.AMQP.QueueType, "type of the RabbitMQ queues: classic or quorum")
	flags.IntVar(&settings.AMQP.Partitions, "partitions", 0,
		"number of partition queues by aggregate; the same for all workers and commands; 0: one queue")
	complete(root, "queue-type", amqp.ClassicQueues, amqp.QuorumQueues)
	root.AddCommand(
		runCommand(&settings, all), migrateCommand(&settings, all), appendCommand(&settings), publishCommand(&settings),
		eventsCommand(&settings), traceCommand(&settings), tailCommand(&settings), doctorCommand(&settings, all),
		healthCommand(), dlqCommand(&settings, all), auditCommand(&settings), unbindCommand(&settings, all), versionCommand(), newCommand(),
	)
	root.AddCommand(more...)
	finish(root)
	root.SetUsageTemplate(usageTemplate(root))
	completeNames(root, &settings, all)
	return root
}

// defaultSQLitePath is the SQLite file, if neither a file nor a Postgres database is set.
const defaultSQLitePath = "healz.db"

// complement clears the blank settings of servers and files, and sets the SQLite file if there is no store.
func complement(s *worker.Settings) {
	for _, setting := range []*string{&s.DatabaseURL, &s.SQLitePath, &s.AMQP.URL, &s.AMQP.ManagementURL} {
		if strings.TrimSpace(*setting) == "" {
			*setting = ""
		}
	}
	if s.DatabaseURL == "" && s.SQLitePath == "" {
		s.SQLitePath = defaultSQLitePath
	}
}

// group makes c a command with subcommands only. Alone it prints its help; an unknown subcommand is a usage error.
func group(c *cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownCommand(c, args[0])
		}
		return c.Help()
	}
	return c
}

func unknownCommand(c *cobra.Command, name string) error {
	path := strings.TrimPrefix(c.CommandPath()+" ", "worker ")
	var known []string
	for _, sub := range c.Commands() {
		known = append(known, sub.Name())
	}
	return meant(fmt.Sprintf("unknown command %q", path+name), path, name, known)
}

// flagError is the usage error of a flag that cannot be parsed or does not exist, or of the unknown command before it.
func flagError(c *cobra.Command, err error) error {
	if args := c.Flags().Args(); c.HasSubCommands() && len(args) > 0 {
		return unknownCommand(c, args[0])
	}
	unknown, isUnknown := errors.AsType[*pflag.NotExistError](err)
	if !isUnknown {
		return usageError{err}
	}
	var known []string
	c.Flags().VisitAll(func(f *pflag.Flag) { known = append(known, f.Name) })
	return meant(err.Error(), "--", unknown.GetSpecifiedName(), known)
}

// notFoundError is an error in a name or a filter: there is nothing that it fits.
type notFoundError struct{ error }

// usageError is an error in the command line or the settings.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// exitError is the exit code of a command that has printed everything already.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

func arguments(least, most int, want string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if n := len(args); n < least || n > most {
			return usageError{fmt.Errorf("takes %s, but got %d", want, n)}
		}
		return nil
	}
}

func noArguments(_ *cobra.Command, args []string) error {
	return arguments(0, 0, "no arguments")(nil, args)
}

func oneID(_ *cobra.Command, args []string) error { return arguments(1, 1, "one ID")(nil, args) }

func oneFile(_ *cobra.Command, args []string) error { return arguments(1, 1, "one FILE")(nil, args) }

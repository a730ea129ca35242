package main

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"os"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/intake"
	"github.com/healz/worker/internal/observe"
	"github.com/healz/worker/internal/tracing"
	"github.com/healz/worker/internal/worker"
)

// defaultBatch is how many lines are appended or published at once.
const defaultBatch = 500

func appendCommand(s *worker.Settings) *cobra.Command {
	var batch int
	c := &cobra.Command{
		Use:   "append [FILE]",
		Short: "Append events, given as JSON lines, to the store",
		Long: `append reads one event a line, from FILE or, without one or with "-", from standard input, and appends them.

These may be left out: event_id, created_at, correlation_id (each line then begins a chain of its own) and
aggregate_version (the event is then the next of its aggregate). Each batch is appended whole or not at all; the first
that fails ends it, those before it stay. What was appended is printed.`,
		Example: `  echo '{"event_type":"PatientRegistered","aggregate_type":"Patient",
    "aggregate_id":"5f0c7a52-9b4e-4a35-8f0e-2f6d0f6b1c11","tenant_id":"0b9a4f3e-0c3d-4f5e-9a51-7d2c6b8e4a10",
    "event_data":{"name":"Ana"}}' | tr -d '\n' | worker append`,
		Args: atMostOne,
	}
	f := addFormat(c)
	c.Flags().IntVar(&batch, "batch", defaultBatch, "events that are appended all or none")
	c.RunE = func(c *cobra.Command, args []string) error {
		return withInput(c, args, batch, func(in io.Reader) error {
			return withStore(c.Context(), s, s.OpenStore, func(b worker.Backend) error {
				if s.Embedded() { // it makes its tables by itself
					if err := b.Migrate(c.Context()); err != nil {
						return err
					}
				}
				return withTracer(c.Context(), *s, stderrLogger(c), func(t *tracing.Tracer) error {
					return printTaken(c, *f, intake.Append(c.Context(), worker.Observed(b, observers(t)), in, batch))
				})
			})
		})
	}
	return c
}

func publishCommand(s *worker.Settings) *cobra.Command {
	var batch int
	c := &cobra.Command{
		Use:   "publish [FILE]",
		Short: "Publish events, given as JSON lines, straight to the bus",
		Long: `publish reads one event a line, from FILE or, without one or with "-", from standard input, and publishes them to
RabbitMQ without storing them. event_id, created_at and correlation_id may be left out; aggregate_version may not, as only
the store knows it. What was published is printed.`,
		Args: atMostOne,
	}
	f := addFormat(c)
	c.Flags().IntVar(&batch, "batch", defaultBatch, "events that are published at once")
	c.RunE = func(c *cobra.Command, args []string) error {
		return withInput(c, args, batch, func(in io.Reader) (err error) {
			publisher, closeBus, err := s.OpenPublisher(c.Context())
			if errors.Is(err, worker.ErrNoBroker) {
				return usageError{err}
			}
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, closeBus()) }()
			return withTracer(c.Context(), *s, stderrLogger(c), func(t *tracing.Tracer) error {
				observed := observe.Publisher{Next: publisher, Observer: observers(t)}
				return printTaken(c, *f, intake.Publish(c.Context(), bus.New(observed), in, batch))
			})
		})
	}
	return c
}

// withInput opens FILE or standard input.
func withInput(c *cobra.Command, args []string, batch int, do func(io.Reader) error) error {
	if batch < 1 {
		return usageError{fmt.Errorf("--batch must be at least 1, but is %d", batch)}
	}
	if len(args) == 0 || args[0] == "-" {
		return do(c.InOrStdin())
	}
	file, err := os.Open(args[0])
	if err != nil {
		return usageError{err}
	}
	defer file.Close()
	return do(file)
}

// printTaken prints each batch once it is safe.
func printTaken(c *cobra.Command, f format, batches iter.Seq2[[]events.Event, error]) error {
	for batch, err := range batches {
		if err != nil {
			return err
		}
		if err := printEvents(c.OutOrStdout(), f, batch); err != nil {
			return err
		}
	}
	return nil
}

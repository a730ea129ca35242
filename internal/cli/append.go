package cli

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

const defaultBatch = 500

func appendCommand(s *worker.Settings) *cobra.Command {
	var batch int
	c := &cobra.Command{
		Use:   "append [FILE]",
		Short: "Append events from JSON lines to the store",
		Long: `append reads one event per line from FILE, or from standard input without FILE or with "-", and appends them.

These fields are optional: event_id, created_at, correlation_id (each line then gets its own) and aggregate_version (the
event then gets the next version of its aggregate). Each batch is appended in one transaction. The first batch that fails
ends the command; the batches before it stay. append prints the appended events, with event_data and metadata only with --reveal.
An interrupt ends it at once, and it says how many events were appended. A key that an object of a line has twice is an error.

append creates an SQLite file that does not exist, with its schema. It does not migrate an existing schema.`,
		Example: `  echo '{"event_type":"PatientRegistered","aggregate_type":"Patient",
    "aggregate_id":"5f0c7a52-9b4e-4a35-8f0e-2f6d0f6b1c11",
    "tenant_id":"0b9a4f3e-0c3d-4f5e-9a51-7d2c6b8e4a10",
    "event_data":{"name":"Ana"}}' | tr -d '\n' | worker append`,
		Args: arguments(0, 1, "at most one FILE"),
	}
	f := addFormat(c)
	reveal := addReveal(c)
	by := addActor(c)
	c.Flags().IntVar(&batch, "batch", defaultBatch, "events per transaction, or fewer that together have more than 8 MiB")
	c.RunE = func(c *cobra.Command, args []string) error {
		return withInput(c, args, batch, func(in io.Reader) error {
			return withStore(c, s, s.OpenForAppend, func(b worker.Backend) error {
				return withTracer(c.Context(), *s, flushCommand, stderrLogger(c), func(t *tracing.Tracer) error {
					into := intake.Audited(worker.Observed(b, observers(t)), *by)
					return printBatches(c, *f, *reveal, "appended", intake.Append(c.Context(), into, in, batch))
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
		Short: "Publish events from JSON lines to RabbitMQ, without storing them",
		Long: `publish reads one event per line from FILE, or from standard input without FILE or with "-", and publishes them to
RabbitMQ without storing them. event_id, created_at and correlation_id are optional. aggregate_version is required, as only
the store knows the next one. publish prints the published events. A key that an object of a line has twice is an error.`,
		Args: arguments(0, 1, "at most one FILE"),
	}
	f := addFormat(c)
	reveal := addReveal(c)
	c.Flags().IntVar(&batch, "batch", defaultBatch, "events per batch of publisher confirms, or fewer that together have more than 8 MiB")
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
			return withTracer(c.Context(), *s, flushCommand, stderrLogger(c), func(t *tracing.Tracer) error {
				observed := observe.Publisher{Next: publisher, Observer: observers(t)}
				return printBatches(c, *f, *reveal, "published", intake.Publish(c.Context(), bus.New(observed), in, batch))
			})
		})
	}
	return c
}

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

// printBatches prints the events of each batch. done is what was done with them before.
func printBatches(c *cobra.Command, f format, reveal bool, done string, batches iter.Seq2[[]events.Event, error]) error {
	n, p := 0, newEventPrinter(c, f)
	for batch, err := range batches {
		if err != nil {
			return err
		}
		n += len(batch)
		for _, e := range batch {
			if err = printEvent(p, e, reveal); err != nil {
				break
			}
		}
		if err = errors.Join(err, p.flush()); err != nil {
			return fmt.Errorf("events that were %s: %d, of which the last %d could not be printed; no line after them was %s: %w",
				done, n, len(batch), done, err)
		}
	}
	return nil
}

package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/text"
	"github.com/healz/worker/internal/worker"
)

func unbindCommand(s *worker.Settings, all registrations) *cobra.Command {
	return &cobra.Command{
		Use:   "unbind TYPE...",
		Short: "Stop delivering event types to the queue of a service",
		Long: `unbind removes the bindings by which the queue of a --service gets events of these types ("#" is all types).

A worker binds its queue to the types that its handlers are for, and leaves the other bindings as they are: a worker of an older
version may still need them. Unbind a type when no worker of the service handles it any more. doctor names such types.`,
		Args: arguments(1, 1000, "at least one TYPE"),
		RunE: func(c *cobra.Command, types []string) error {
			if s.AMQP.URL == "" {
				return usageError{worker.ErrNoBroker}
			}
			if err := s.Check(); err != nil {
				return usageError{err}
			}
			needed := worker.EventTypes(s.Registry(all))
			for _, eventType := range types {
				if slices.Contains(needed, eventType) {
					return usageError{fmt.Errorf("a handler of this program is for %s: it would be bound again", eventType)}
				}
			}
			if err := amqp.Unbind(c.Context(), s.AMQP, types); err != nil {
				return err
			}
			_, err := fmt.Fprintf(c.ErrOrStderr(), "%s is not bound to %s\n", s.AMQP.Queue(), text.Printable(strings.Join(types, ", ")))
			return err
		},
	}
}

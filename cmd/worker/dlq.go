package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/worker"
)

func dlqCommand(s *worker.Settings, all registrations) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "dlq",
		Short: "Look into the dead letters, replay them, purge them",
		Long: `dlq works on the events that failed for good: the queue of failed messages on RabbitMQ, or without it the table of
dead letters in the store.`,
	})
	c.AddCommand(dlqList(s), dlqShow(s), dlqTry(s, all), dlqReplay(s), dlqPurge(s))
	c.AddCommand(dlqKeeping(s)...)
	return c
}

func dlqPurge(s *worker.Settings) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "purge",
		Short: "Destroy all dead letters",
		Args:  noArguments, ValidArgsFunction: cobra.NoFileCompletions,
	}
	c.Flags().BoolVar(&yes, "yes", false, "confirm; this cannot be undone")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if !yes {
			return usageError{errors.New("purge destroys all dead letters for good: say --yes")}
		}
		return withDeadLetters(c.Context(), s, func(q deadletter.Queue) error {
			n, err := q.Purge(c.Context())
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "purged: %d\n", n)
			return nil
		})
	}
	return c
}

func withDeadLetters(ctx context.Context, s *worker.Settings, do func(deadletter.Queue) error) (err error) {
	if err := s.Check(); err != nil {
		return usageError{err}
	}
	q, closeQueue, err := s.OpenDeadLetters(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeQueue()) }()
	return do(q)
}

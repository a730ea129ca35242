package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/worker"
)

func dlqCommand(s *worker.Settings, all registrations) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "dlq",
		Short: "List, show, replay, archive and purge the dead letters",
		Long: `dlq works on the events that failed for good: the table of dead letters in the store. With RabbitMQ a running worker takes
them out of the failed queue into that table, and so does dlq ingest.`,
	})
	c.AddCommand(dlqList(s), dlqShow(s), dlqTry(s, all), dlqReplay(s, all), dlqPurge(s), dlqIngest(s))
	c.AddCommand(dlqKeeping(s)...)
	return c
}

// purgeBatch is how many letters a purge of old ones deletes in one transaction.
const purgeBatch = 500

func dlqPurge(s *worker.Settings) *cobra.Command {
	var yes bool
	var olderThan age
	c := &cobra.Command{
		Use:   "purge",
		Short: "Destroy all dead letters that wait, or those that were dealt with long ago",
		Long: `purge destroys all dead letters that wait. With --older-than it destroys instead those that were archived, discarded,
edited or handled longer ago than that.`,
		Example: `  worker dlq purge --yes
  worker dlq purge --older-than 90d --yes`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
	}
	c.Flags().BoolVar(&yes, "yes", false, "confirm; this cannot be undone")
	c.Flags().Var(&olderThan, "older-than",
		"destroy the letters that were archived, discarded, edited or handled longer ago than this, as 90d or 36h, and none that waits")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if !yes {
			return usageError{errors.New("purge destroys dead letters for good: say --yes")}
		}
		return withDeadLetters(c.Context(), s, func(table *deadletter.Table) error {
			n, err := purge(c.Context(), table, time.Duration(olderThan))
			if err == nil || n > 0 {
				fmt.Fprintf(c.OutOrStdout(), "purged: %d\n", n)
			}
			return err
		})
	}
	return c
}

// purge destroys the letters that wait or, if olderThan is not 0, those that were dealt with before.
func purge(ctx context.Context, table *deadletter.Table, olderThan time.Duration) (purged int, err error) {
	if olderThan == 0 {
		return table.PurgeWaiting(ctx)
	}
	before := time.Now().Add(-olderThan)
	for {
		n, err := table.PurgeDecided(ctx, before, purgeBatch)
		if purged += n; err != nil || n < purgeBatch {
			return purged, err
		}
	}
}

// age is a duration of which the unit may also be d, for days.
type age time.Duration

// String, Set and Type implement pflag.Value.
func (a *age) String() string {
	if *a == 0 {
		return ""
	}
	return time.Duration(*a).String()
}
func (a *age) Type() string { return "duration" }

func (a *age) Set(text string) error {
	const day, most = 24 * time.Hour, 100 * 365 // days
	var parsed time.Duration
	var err error
	if days, isDays := strings.CutSuffix(text, "d"); isDays {
		var n int
		if n, err = strconv.Atoi(days); n > most {
			err = strconv.ErrRange
		}
		parsed = time.Duration(n) * day
	} else {
		parsed, err = time.ParseDuration(text)
	}
	if err != nil || parsed <= 0 {
		return fmt.Errorf("must be a positive time, as 90d or 36h, not %q", text)
	}
	*a = age(parsed)
	return nil
}

func dlqIngest(s *worker.Settings) *cobra.Command {
	c := &cobra.Command{
		Use:   "ingest",
		Short: "Take the dead letters in RabbitMQ's failed queue into the table",
		Long: `ingest takes the dead letters that are in RabbitMQ's failed queue into the table of the store, on which all other commands
work. Running workers do the same, unless they run with --ingest-dead-letters=false. A message leaves the queue only once
the table has it.`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		if s.AMQP.URL == "" {
			return usageError{worker.ErrNoBroker}
		}
		return withDeadLetters(c.Context(), s, func(table *deadletter.Table) error {
			n, err := s.IngestQueued(c.Context(), table)
			if err == nil || n > 0 {
				fmt.Fprintf(c.OutOrStdout(), "ingested: %d\n", n)
			}
			return err
		})
	}
	return c
}

// queuedTimeout bounds how long a command waits for the broker to tell how many letters are in its queue.
const queuedTimeout = 2 * time.Second

// noteQueued says on stderr how many dead letters are in the broker's queue and not in the table yet.
func noteQueued(c *cobra.Command, s *worker.Settings) {
	if c.Context().Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(c.Context(), queuedTimeout)
	defer cancel()
	queue := s.AMQP.FailedQueue()
	n, err := s.QueuedDeadLetters(ctx)
	switch {
	case err != nil:
		fmt.Fprintf(c.ErrOrStderr(), "worker: whether dead letters are still in queue %s is not known: %s\n", queue, oneLine(err))
	case n == 1:
		fmt.Fprintf(c.ErrOrStderr(), "1 dead letter is still in queue %s: a worker takes it in, or `worker dlq ingest` does\n", queue)
	case n > 1:
		fmt.Fprintf(c.ErrOrStderr(), "%d dead letters are still in queue %s: a worker takes them in, or `worker dlq ingest` does\n", n, queue)
	}
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func withDeadLetters(ctx context.Context, s *worker.Settings, do func(*deadletter.Table) error) (err error) {
	if err := s.Check(); err != nil {
		return usageError{err}
	}
	table, closeTable, err := s.OpenDeadLetters(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeTable()) }()
	return do(table)
}

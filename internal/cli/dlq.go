package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/text"
	"github.com/healz/worker/internal/worker"
)

func dlqCommand(s *worker.Settings, all registrations) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "dlq",
		Short: "List, show, replay, archive and purge dead letters",
		Long: `dlq works on dead letters: the events whose handlers failed permanently. They are kept in a table of the store. With
RabbitMQ, a running worker ingests them from the failed queue into that table; dlq ingest does the same on demand.`,
	})
	c.AddCommand(
		dlqList(s), dlqShow(s), dlqTry(s, all), dlqReplay(s, all), dlqPurge(s), dlqIngest(s), dlqEdit(s),
		dlqPutAside(s, deadletter.Archived, "archive", "Move waiting dead letters to the archive",
			`archive marks waiting dead letters as archived, and records who did it, when and why. They are no longer listed or
replayed; restore returns them to waiting. With --after-dead-letter park, later events of their aggregates stay parked.`),
		dlqPutAside(s, deadletter.Discarded, "discard", "Mark waiting dead letters as not to be handled",
			`discard is like archive, for letters that must not be handled: no event stays parked behind them. "archived list" and
restore include them only when they are named by id. Nothing is deleted: restore ID returns one to waiting.`),
		dlqArchived(s), dlqRestore(s), dlqExport(s), dlqImport(s),
	)
	return c
}

const purgeBatch = 500

func dlqPurge(s *worker.Settings) *cobra.Command {
	var yes bool
	var olderThan time.Duration
	c := &cobra.Command{
		Use:   "purge",
		Short: "Delete all waiting dead letters, or old ones in a final state",
		Long: `purge deletes all waiting dead letters. With --older-than it deletes instead the letters that were archived, discarded,
edited or handled longer ago than that. It asks before that; without a terminal it needs --yes.`,
		Example: `  worker dlq purge --yes
  worker dlq purge --older-than 90d --yes`,
		Args: noArguments,
	}
	addYes(c, &yes)
	addParsed(c, "older-than", "delete the letters that were archived, discarded, edited or handled longer than this `AGE` ago, "+
		"like 90d or 36h, and no waiting ones", &olderThan, parseAge)
	by := addActor(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		what := "delete all waiting dead letters for good"
		if olderThan > 0 {
			what = fmt.Sprintf("delete for good the dead letters that were decided more than %s ago", olderThan)
		}
		if err := confirm(c, yes, what); err != nil {
			return err
		}
		return withDeadLetters(c, s, func(table *deadletter.Table) error {
			n, err := purge(c.Context(), table, olderThan, *by)
			if err == nil || n > 0 {
				fmt.Fprintf(c.OutOrStdout(), "purged: %d\n", n)
			}
			return err
		})
	}
	return c
}

// purge deletes the waiting letters or, if olderThan is not 0, the letters that reached a final state before that.
func purge(ctx context.Context, table *deadletter.Table, olderThan time.Duration, by audit.Actor) (purged int, err error) {
	if olderThan == 0 {
		return table.PurgeWaiting(ctx, by)
	}
	before := time.Now().Add(-olderThan)
	for {
		n, err := table.PurgeDecided(ctx, before, purgeBatch, &by)
		if purged += n; err != nil || n < purgeBatch {
			return purged, err
		}
	}
}

func dlqIngest(s *worker.Settings) *cobra.Command {
	return &cobra.Command{
		Use:   "ingest",
		Short: "Ingest the dead letters of RabbitMQ's failed queue into the table",
		Long: `ingest moves the dead letters of RabbitMQ's failed queue into the table of the store, on which all other commands work.
Running workers do the same, unless they run with --ingest-dead-letters=false. A message is acked only after its row is
committed.`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if s.AMQP.URL == "" {
				return usageError{worker.ErrNoBroker}
			}
			return withDeadLetters(c, s, func(table *deadletter.Table) error {
				n, err := s.IngestQueued(c.Context(), table)
				if err == nil || n > 0 {
					fmt.Fprintf(c.OutOrStdout(), "ingested: %d\n", n)
				}
				return err
			})
		},
	}
}

// queuedTimeout bounds the query for the size of the failed queue. RabbitMQ refuses a wrong password after 3 s.
const queuedTimeout = 5 * time.Second

// noteQueued prints on stderr how many dead letters are in the failed queue and not in the table yet.
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
		fmt.Fprintf(c.ErrOrStderr(), "worker: the number of dead letters in queue %s is unknown: %s\n", queue,
			strings.ReplaceAll(err.Error(), "\n", "; "))
	case n > 0:
		fmt.Fprintf(c.ErrOrStderr(), "%s in queue %s not ingested yet: `worker dlq ingest`, or a running worker that ingests, does that\n",
			text.Count(n, "dead letter"), queue)
	}
}

func withDeadLetters(c *cobra.Command, s *worker.Settings, do func(*deadletter.Table) error) error {
	return withStore(c, s, s.OpenExisting, func(b worker.Backend) error { return do(deadletter.NewTable(b.SQL())) })
}

// onChosen runs an action on the letters that flags and ids select, and prints how many letters it changed.
func onChosen(
	c *cobra.Command, s *worker.Settings, chosen *filterFlags, ids []string, w io.Writer, done string,
	action func(*deadletter.Table, deadletter.Filter) (int, error),
) error {
	filter, err := chosen.filter(ids)
	if err != nil {
		return err
	}
	return withDeadLetters(c, s, func(table *deadletter.Table) error {
		n, err := action(table, filter)
		if err == nil && n == 0 && !filter.IsZero() {
			return noneFound(c, s, filter)
		}
		fmt.Fprintf(w, "%s: %d\n", done, n)
		return err
	})
}

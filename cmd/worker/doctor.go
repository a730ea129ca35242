package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/doctor"
	"github.com/healz/worker/internal/worker"
)

func doctorCommand(s *worker.Settings) *cobra.Command {
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Examine settings, store and broker, and say what is wrong and what to do",
		Long: `doctor examines what a worker with the same settings runs on: whether store and broker can be reached, with which
rights; schema, exchanges and queues; the protection of events; the clocks; how far the relay is behind and who holds it
back; dead letters, inbox, disk. It changes nothing.

It exits with 0 if all is well, with 1 if there is something to look at, and with 2 if something is wrong.`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := addFormat(c)
	flags := c.Flags()
	flags.DurationVar(&s.InboxRetention, "inbox-retention", s.InboxRetention, "that of the workers; 0: for ever")
	flags.BoolVar(&s.IngestDeadLetters, "ingest-dead-letters", s.IngestDeadLetters,
		"whether the workers take the dead letters out of RabbitMQ's failed queue")
	flags.DurationVar(&s.DeadLetterRetention, "dead-letter-retention", s.DeadLetterRetention, "that of the workers; 0: for ever")
	flags.BoolVar(&s.Relay.OnlyOwn, "relay-only-own", false, "whether the workers relay only the events written by this program")
	flags.DurationSliceVar(&s.AMQP.RetryLater, "retry-later", nil, "that of the workers, as 10s,1m,10m")
	c.RunE = func(c *cobra.Command, _ []string) error {
		out := c.OutOrStdout()
		worst := doctor.OK
		for finding := range doctor.Examine(c.Context(), doctor.Checks(*s), doctor.Timeout) {
			worst = doctor.Worst(worst, finding.Status)

			if err := printFinding(out, *f, finding); err != nil {
				return err
			}
		}
		if err := c.Context().Err(); err != nil {
			return err
		}
		switch worst {
		case doctor.OK:
			return nil
		case doctor.Warning:
			return exitError{exitFailed}
		default:
			return exitError{exitUsage}
		}
	}
	return c
}

// printFinding prints a finding, at once, as the next may take its time.
func printFinding(w io.Writer, f format, finding doctor.Finding) error {
	if f == formatJSON {
		return printJSON(w, finding)
	}
	_, err := fmt.Fprintf(w, "%-8s  %-18s %s\n", finding.Status, finding.Check, printable(finding.What))
	if err == nil && finding.Advice != "" {
		_, err = fmt.Fprintf(w, "%-8s  %-18s → %s\n", "", "", printable(finding.Advice))
	}
	return err
}

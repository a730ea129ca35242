package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/doctor"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/text"
	"github.com/healz/worker/internal/worker"
)

func doctorCommand(s *worker.Settings, all registrations) *cobra.Command {
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check settings, store and broker, and advise how to fix problems",
		Long: `doctor checks the store and the broker of a worker with the same settings: connections and permissions; schema, exchanges
and queues; the append-only protection of events; clocks; the lag of the relay and transactions that hold it back; policies of
the queues; dead letters, inbox and disk; what the worker at --http-addr reports. It changes nothing.

It exits with 0 if everything is ok or unknown, with 1 if there are warnings, and with 2 if something is wrong.`,
		Args: noArguments,
	}
	f := addFormat(c)
	var httpAddr string
	flags := c.Flags()
	flags.StringVar(&httpAddr, "http-addr", defaultHTTPAddr, "the setting of the worker whose /readyz is read")
	flags.DurationVar(&s.InboxRetention, "inbox-retention", s.InboxRetention, "the setting of the workers; 0: unlimited")
	flags.BoolVar(&s.IngestDeadLetters, "ingest-dead-letters", s.IngestDeadLetters,
		"the setting of the workers")
	flags.DurationVar(&s.DeadLetterRetention, "dead-letter-retention", s.DeadLetterRetention, "the setting of the workers; 0: unlimited")
	flags.BoolVar(&s.Relay.OnlyOwn, "relay-only-own", false, "the setting of the workers")
	flags.BoolVar(&s.AMQP.Competing, "competing-consumers", false, "the setting of the workers")
	addAttempts(flags, &s.Tuning)
	flags.DurationSliceVar(&s.AMQP.RetryLater, "retry-later", nil, "the setting of the workers, like 10s,1m,10m")
	c.RunE = func(c *cobra.Command, _ []string) error {
		s.AMQP.Types = worker.EventTypes(s.Registry(all))
		worst := doctor.OK
		checks := append(doctor.Checks(*s, handlers.Most(all.registry())), doctor.WorkerCheck(httpAddr))
		for finding := range doctor.Examine(c.Context(), checks, doctor.Timeout) {
			worst = doctor.Worst(worst, finding.Status)
			if err := printFinding(c, *f, finding); err != nil {
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

// printFinding prints a finding without buffering, as the next check may take long.
func printFinding(c *cobra.Command, f format, finding doctor.Finding) error {
	w := c.OutOrStdout()
	if f == formatJSON {
		return printJSON(w, finding)
	}
	const indent = 8 + gap + 18 + 1
	width := widthFor(c, f) - indent // below 1 is no limit
	status := paintFor(c, w).in(styleOf(string(finding.Status)), fmt.Sprintf("%-8s", finding.Status))
	lines := fmt.Sprintf("%s  %-18s %s", status, finding.Check, strings.Join(text.Wrap(text.Printable(finding.What), width), "\n"+strings.Repeat(" ", indent)))
	if finding.Advice != "" {
		advice := text.Wrap(text.Printable(finding.Advice), width-2)
		lines += "\n" + strings.Repeat(" ", indent) + "→ " + strings.Join(advice, "\n"+strings.Repeat(" ", indent+2))
	}
	_, err := fmt.Fprintln(w, lines)
	return err
}

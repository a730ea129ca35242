package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/deadletter"
)

// filterFlags are the flags that choose dead letters.
type filterFlags struct {
	chosen                         deadletter.Filter
	tenant, aggregate, correlation string
	since, until, reason           string
}

// addFilter gives c the flags that choose dead letters. The one for the text of their failures is called reasonFlag.
func addFilter(c *cobra.Command, reasonFlag string) *filterFlags {
	f := &filterFlags{}
	flags := c.Flags()
	flags.StringVar(&f.chosen.Group, "group", "", "only those of this group, as dlq list names it")
	flags.StringVar(&f.chosen.Type, "type", "", "only those of this event type")
	flags.StringVar(&f.chosen.Handler, "handler", "", "only those on which this handler failed")
	flags.StringVar(&f.tenant, "tenant", "", "only those of this tenant")
	flags.StringVar(&f.aggregate, "aggregate", "", "only those of the aggregate with this id")
	flags.StringVar(&f.correlation, "correlation", "", "only those with this correlation id")
	flags.StringVar(&f.since, "since", "", "only those that failed at this time or later: RFC 3339, or how long ago, as 90m")
	flags.StringVar(&f.until, "until", "", "only those that failed before this time")
	flags.StringVar(&f.reason, reasonFlag, "", "only those whose failure's text this regular expression finds something in")
	flags.IntVar(&f.chosen.Limit, "limit", 0, "at most so many, the oldest; 0: no limit")
	return f
}

// noneFound is the error of a choice that no letter meets: a mistyped group is to be noticed.
func noneFound(f deadletter.Filter) error {
	if len(f.IDs) > 0 {
		return fmt.Errorf("no dead letter has the id %q, or it is in a state that this command does not concern: `worker dlq show` tells it",
			strings.Join(f.IDs, ", "))
	}
	return errors.New("no dead letter matches what was chosen")
}

// filter is what the flags and the ids on the command line choose. The error is one of usage.
func (f *filterFlags) filter(ids []string) (deadletter.Filter, error) {
	chosen := f.chosen
	chosen.IDs = ids
	var problems []error
	parse := func(flag, value string, into *uuid.UUID) {
		if value == "" {
			return
		}
		id, err := uuid.Parse(value)
		if err != nil {
			problems = append(problems, fmt.Errorf("--%s must be a UUID, not %q", flag, value))
		}
		*into = id
	}
	parse("tenant", f.tenant, &chosen.Tenant)
	parse("aggregate", f.aggregate, &chosen.Aggregate)
	parse("correlation", f.correlation, &chosen.Correlation)
	var errSince, errUntil, errReason error
	now := time.Now()
	chosen.Since, errSince = moment("since", f.since, now)
	chosen.Until, errUntil = moment("until", f.until, now)
	if f.reason != "" {
		if chosen.Reason, errReason = regexp.Compile(f.reason); errReason != nil {
			errReason = fmt.Errorf("the failure's text: %w", errReason)
		}
	}
	if chosen.Limit < 0 {
		problems = append(problems, fmt.Errorf("--limit must not be negative, but is %d", chosen.Limit))
	}
	if err := errors.Join(append(problems, errSince, errUntil, errReason)...); err != nil {
		return chosen, usageError{err}
	}
	return chosen, nil
}

// moment reads a time, or how long before now it is; "" is the zero time.
func moment(flag, value string, now time.Time) (time.Time, error) {
	if value == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(value); err == nil {
		return now.Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, value)
	if err != nil {
		return at, fmt.Errorf("--%s must be an RFC 3339 time, or how long ago, as 90m, not %q", flag, value)
	}
	return at, nil
}

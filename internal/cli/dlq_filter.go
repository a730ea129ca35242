package cli

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/worker"
)

type filterFlags struct {
	deadletter.Filter

	// explicit is set for commands that act on all letters only with --all.
	explicit, all bool
}

// addFilter gives c the flags that select dead letters. reasonFlag is the name of the flag for the error text.
func addFilter(c *cobra.Command, reasonFlag string) *filterFlags {
	f := &filterFlags{}
	flags := c.Flags()
	flags.StringVar(&f.Group, "group", "", "only letters of this group (see dlq list)")
	flags.StringVar(&f.Type, "type", "", "only letters of this event type")
	flags.StringVar(&f.Handler, "handler", "", "only letters on which this handler failed")
	addParsed(c, "tenant", "only letters of the tenant with this `ID`", &f.Tenant, parseUUID)
	addParsed(c, "aggregate", "only letters of the aggregate with this `ID`", &f.Aggregate, parseUUID)
	addParsed(c, "correlation", "only letters with this correlation `ID`", &f.Correlation, parseUUID)
	addTimes(c, "letters whose last failure was", &f.Since, &f.Until)
	addParsed(c, reasonFlag, "only letters whose error text matches this regular `EXPRESSION`", &f.Reason, regexp.Compile)
	flags.IntVar(&f.Limit, "limit", 0, "at most this number of letters, the oldest first; 0: no limit")
	return f
}

// addChoice is addFilter for a command that changes letters: without a filter it requires --all.
func addChoice(c *cobra.Command, reasonFlag string) *filterFlags {
	f := addFilter(c, reasonFlag)
	f.explicit = true
	c.Flags().BoolVar(&f.all, "all", false, "all letters")
	return f
}

// filter returns the filter of the flags and of these ids. Its error is a usage error.
func (f *filterFlags) filter(ids []string) (deadletter.Filter, error) {
	chosen := f.Filter
	chosen.IDs = ids
	switch {
	case chosen.Limit < 0:
		return chosen, usageError{fmt.Errorf("--limit must not be negative, but is %d", chosen.Limit)}
	case f.explicit && !f.all && chosen.IsZero():
		return chosen, usageError{errors.New("select letters by id or by flags, or use --all")}
	}
	return chosen, nil
}

// noneFound is the error of a filter that matches no letter: it may contain a typing error.
func noneFound(c *cobra.Command, s *worker.Settings, f deadletter.Filter) error {
	if len(f.IDs) > 0 {
		return notFoundError{fmt.Errorf("no dead letter has the id %q, or its state does not allow this command (see `worker dlq show`)",
			strings.Join(f.IDs, ", "))}
	}
	text := "no dead letter matches the filter"
	err := withStore(c, s, s.OpenExisting, func(b worker.Backend) error {
		known, err := namesIn(c.Context(), b)
		if hint := known.hint(f.Type, "", f.Handler, f.Group); hint != "" {
			text += "; " + hint
		}
		return err
	})
	return notFoundError{errors.Join(errors.New(text), err)}
}

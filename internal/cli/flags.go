package cli

import (
	"bufio"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

type format string

const (
	formatTable format = "table"
	formatWide  format = "wide"
	formatJSON  format = "json"
	formatTree  format = "tree"
	formatDOT   format = "dot"
)

// outputFlag is the flag of the output format. It was named --format, which is the same flag still.
const (
	outputFlag       = "output"
	formerOutputFlag = "format"
)

func renamedFlags(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	if name == formerOutputFlag {
		name = outputFlag
	}
	return pflag.NormalizedName(name)
}

func addFormat(c *cobra.Command) *format {
	return addFormats(c, "output format: a table that fits the terminal, all of it, or one JSON object per line", formatTable, formatWide, formatJSON)
}

// addFormats gives c the flag of its output format. The first one is the default.
func addFormats(c *cobra.Command, usage string, allowed ...format) *format {
	f := allowed[0]
	value := newChoice(&f, allowed...)
	if f == formatTree { // WORKER_OUTPUT is one variable for all commands
		value.also = map[format]format{formatTable: formatTree}
	}
	c.Flags().VarP(value, outputFlag, "o", usage)
	complete(c, outputFlag, value.names()...)
	return &f
}

// choice is a flag whose value is one of several words.
type choice[T ~string] struct {
	value   *T
	allowed []T
	also    map[T]T // other names
}

func newChoice[T ~string](value *T, allowed ...T) *choice[T] {
	return &choice[T]{value: value, allowed: allowed}
}

func (f *choice[T]) String() string { return string(*f.value) }
func (f *choice[T]) Type() string   { return strings.Join(f.names(), "|") }

func (f *choice[T]) names() []string {
	names := make([]string, len(f.allowed))
	for i, a := range f.allowed {
		names[i] = string(a)
	}
	return names
}

func (f *choice[T]) Set(text string) error {
	chosen := T(text)
	if other, found := f.also[chosen]; found {
		chosen = other
	}
	if !slices.Contains(f.allowed, chosen) {
		return fmt.Errorf("must be %s, not %q", strings.Join(f.names(), " or "), text)
	}
	*f.value = chosen
	return nil
}

func complete(c *cobra.Command, flag string, values ...string) {
	err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // the flag does not exist
	}
}

// addParsed gives c a flag whose value is parsed into *into. An empty value counts as none.
func addParsed[T any](c *cobra.Command, name, usage string, into *T, parse func(string) (T, error)) {
	c.Flags().Func(name, usage, func(text string) (err error) {
		if text != "" {
			*into, err = parse(text)
		}
		return err
	})
}

func parseUUID(text string) (uuid.UUID, error) {
	id, err := uuid.Parse(text)
	if err != nil {
		return id, errors.New("not a UUID")
	}
	return id, nil
}

// aggregate names an aggregate or, without an id, all aggregates of a type.
type aggregate struct {
	kind string
	id   uuid.UUID
}

// parseAggregate parses TYPE/ID. The type may contain slashes.
func parseAggregate(text string) (a aggregate, err error) {
	cut := strings.LastIndexByte(text, '/')
	if cut < 1 {
		return a, errors.New("must be TYPE/ID")
	}
	a.kind = text[:cut]
	a.id, err = parseUUID(text[cut+1:])
	return a, err
}

// String returns what parseAggregate parses, "" for all aggregates.
func (a aggregate) String() string {
	if a.id == uuid.Nil {
		return a.kind
	}
	return a.kind + "/" + a.id.String()
}

// addTimes gives c the flags --since and --until. what is selected by its time, as in "events created".
func addTimes(c *cobra.Command, what string, since, until *time.Time) {
	addSince(c, "only "+what+" at this `TIME` or later", since)
	addParsed(c, "until", "only "+what+" before this `TIME`", until, parseTime)
}

func addSince(c *cobra.Command, usage string, since *time.Time) {
	addParsed(c, "since", usage+": how long ago, like 90m, 2h, 1d or 1w; a date; or an RFC 3339 time", since, parseTime)
}

// parseTime parses a time, a date (UTC), or a duration before now.
func parseTime(text string) (time.Time, error) {
	if ago, err := parseDuration(text); err == nil && ago >= 0 {
		return time.Now().Add(-ago), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if at, err := time.Parse(layout, text); err == nil {
			return at, nil
		}
	}
	return time.Time{}, errors.New("must be how long ago, like 90m, 2h, 1d or 1w, a date like 2026-11-30, or an RFC 3339 time")
}

// parseAge parses a positive duration.
func parseAge(text string) (time.Duration, error) {
	age, err := parseDuration(text)
	if err != nil || age <= 0 {
		return 0, errors.New("must be a positive duration like 90d or 36h")
	}
	return age, nil
}

// parseDuration parses a duration that may begin with weeks and days, as in 1w, 90d or 1d12h.
func parseDuration(text string) (time.Duration, error) {
	const day, most = 24 * time.Hour, 100 * 365 // days
	var days uint64
	rest := text
	for _, unit := range []struct {
		name string
		days uint64
	}{{"w", 7}, {"d", 1}} {
		number, after, found := strings.Cut(rest, unit.name)
		if !found {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return 0, err
		}
		days, rest = days+n*unit.days, after
	}
	if days > most {
		return 0, strconv.ErrRange
	}
	if days > 0 && rest == "" {
		rest = "0"
	}
	more, err := time.ParseDuration(rest)
	return time.Duration(days)*day + more, err
}

func addYes(c *cobra.Command, yes *bool) {
	c.Flags().BoolVar(yes, "yes", false, "do not ask")
}

// confirm asks on the terminal whether to do something, unless yes is set.
func confirm(c *cobra.Command, yes bool, what string) error {
	if yes {
		return nil
	}
	in := c.InOrStdin()
	if _, terminal := asTerminal(in); !terminal {
		return usageError{fmt.Errorf("it would %s: confirm with --yes, as there is no terminal to ask on", what)}
	}
	fmt.Fprintf(c.ErrOrStderr(), "This will %s. Continue? [y/N] ", what)
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err == nil && strings.EqualFold(strings.TrimSpace(answer), "y") {
		return nil
	}
	return errors.New("nothing was done")
}

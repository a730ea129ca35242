package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
)

type format string

const (
	formatTable format = "table"
	formatJSON  format = "json"
	formatTree  format = "tree"
	formatDOT   format = "dot"
)

func addFormat(c *cobra.Command) *format {
	return addFormats(c, formatTable, "output format; json prints one object per line", formatTable, formatJSON)
}

func addFormats(c *cobra.Command, f format, usage string, allowed ...format) *format {
	names := make([]string, len(allowed))
	for i, a := range allowed {
		names[i] = string(a)
	}
	c.Flags().Var(&formatFlag{&f, allowed, strings.Join(names, "|")}, "format", usage)
	complete(c, "format", names...)
	return &f
}

type formatFlag struct {
	format  *format
	allowed []format
	names   string
}

func (f *formatFlag) String() string { return string(*f.format) }
func (f *formatFlag) Type() string   { return f.names }

// Set accepts a table where the command prints a tree: WORKER_FORMAT is one variable for all commands.
func (f *formatFlag) Set(s string) error {
	chosen := format(s)
	if chosen == formatTable && f.allowed[0] == formatTree {
		chosen = formatTree
	}
	if !slices.Contains(f.allowed, chosen) {
		return fmt.Errorf("must be %s, not %q", strings.ReplaceAll(f.names, "|", " or "), s)
	}
	*f.format = chosen
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

// parseTime parses a time, or a duration before now.
func parseTime(text string) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, errors.New("must be an RFC 3339 time, or a duration before now like 90m")
	}
	return at, nil
}

// parseAge parses a positive duration, whose unit may also be d for days.
func parseAge(text string) (time.Duration, error) {
	const day, most = 24 * time.Hour, 100 * 365 // days
	var age time.Duration
	var err error
	if days, isDays := strings.CutSuffix(text, "d"); isDays {
		var n int
		if n, err = strconv.Atoi(days); n > most {
			err = strconv.ErrRange
		}
		age = time.Duration(n) * day
	} else {
		age, err = time.ParseDuration(text)
	}
	if err != nil || age <= 0 {
		return 0, errors.New("must be a positive duration like 90d or 36h")
	}
	return age, nil
}

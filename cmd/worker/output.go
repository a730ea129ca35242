package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/events"
)

// format is how a command prints what it found.
type format string

const (
	formatTable format = "table"
	formatJSON  format = "json"
)

// addFormat gives c the flag --format.
func addFormat(c *cobra.Command) *format {
	f := formatTable
	c.Flags().Var(&f, "format", "how to print; json is one object a line")
	complete(c, "format", string(formatTable), string(formatJSON))
	return &f
}

// String, Set and Type implement pflag.Value.
func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "table|json" }

func (f *format) Set(s string) error {
	if format(s) != formatTable && format(s) != formatJSON {
		return fmt.Errorf("must be table or json, not %q", s)
	}
	*f = format(s)
	return nil
}

// table prints rows in columns, as they come.
type table struct {
	w       *tabwriter.Writer
	columns []string
	begun   bool
}

func newTable(w io.Writer, columns ...string) *table {
	return &table{w: tabwriter.NewWriter(w, 0, 8, 2, ' ', 0), columns: columns}
}

func (t *table) row(cells ...string) {
	if !t.begun {
		t.begun = true
		t.line(t.columns)
	}
	t.line(cells)
}

// line writes cells as one line: what is in them cannot break out of their column.
func (t *table) line(cells []string) {
	clean := make([]string, len(cells))
	for i, c := range cells {
		clean[i] = printable(c)
	}
	fmt.Fprintln(t.w, strings.Join(clean, "\t"))
}

func (t *table) flush() error { return t.w.Flush() }

// printable replaces what could move a terminal's cursor, break a table, or is not seen.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '·'
		}
		return r
	}, s)
}

func printJSON(w io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("print as JSON: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", line)
	return err
}

// printEvents prints events as JSON lines, or as a table without their data.
func printEvents(w io.Writer, f format, list []events.Event) error {
	if f == formatJSON {
		for _, e := range list {
			if err := printJSON(w, e); err != nil {
				return err
			}
		}
		return nil
	}
	t := newTable(w, "CREATED", "TYPE", "AGGREGATE", "VERSION", "TENANT", "CORRELATION", "EVENT")
	for _, e := range list {
		t.row(localTime(e.CreatedAt), e.Type, e.AggregateType+"/"+e.AggregateID.String(), fmt.Sprint(e.AggregateVersion),
			e.TenantID.String(), e.CorrelationID.String(), e.ID.String())
	}
	return t.flush()
}

func localTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05.000Z")
}

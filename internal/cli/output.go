package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/rawjson"
)

// printer prints results, each as a row of a table or as a line of JSON.
type printer struct {
	w       io.Writer
	format  format
	table   *tabwriter.Writer
	columns []string
	count   int
}

func newPrinter(w io.Writer, f format, columns ...string) *printer {
	return &printer{w: w, format: f, table: tabwriter.NewWriter(w, 0, 8, 2, ' ', 0), columns: columns}
}

// print prints v as JSON, or the cells as a row.
func (p *printer) print(v any, cells ...string) error {
	p.count++
	if p.format == formatJSON {
		return printJSON(p.w, v)
	}
	if p.count == 1 {
		p.row(p.columns)
	}
	p.row(cells)
	return nil
}

// row prints each cell without the characters that would break the table.
func (p *printer) row(cells []string) {
	for i, c := range cells {
		cells[i] = printable(c)
	}
	fmt.Fprintln(p.table, strings.Join(cells, "\t"))
}

func (p *printer) flush() error { return p.table.Flush() }

// printAll prints all that seq yields. After an error the rows before it are printed, too.
func printAll[T any](p *printer, seq iter.Seq2[T, error], one func(*printer, T) error) error {
	for v, err := range seq {
		if err == nil {
			err = one(p, v)
		}
		if err != nil {
			return errors.Join(p.flush(), err)
		}
	}
	return p.flush()
}

// printable replaces invisible characters and those that move a terminal's cursor.
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
	_, err = fmt.Fprintf(w, "%s\n", rawjson.Printable(line))
	return err
}

// printEvents prints events. The table does not show their data.
func printEvents(w io.Writer, f format, list []events.Event) error {
	p := newPrinter(w, f, "CREATED", "TYPE", "AGGREGATE", "VERSION", "TENANT", "CORRELATION", "EVENT")
	for _, e := range list {
		err := p.print(readable(e), localTime(e.CreatedAt), e.Type, e.AggregateType+"/"+e.AggregateID.String(), fmt.Sprint(e.AggregateVersion),
			e.TenantID.String(), e.CorrelationID.String(), e.ID.String())
		if err != nil {
			return err
		}
	}
	return p.flush()
}

// readable is the event with JSON that encoding/json reads: what is nested more deeply becomes a string.
func readable(e events.Event) events.Event {
	for _, raw := range []*json.RawMessage{&e.Data, &e.Metadata} {
		if len(*raw) > 0 && !json.Valid(*raw) {
			*raw, _ = json.Marshal(string(*raw)) // a string is always encoded
		}
	}
	return e
}

func localTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return events.FormatTime(t, "2006-01-02 15:04:05.000Z")
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

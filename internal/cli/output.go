package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/rawjson"
	"github.com/healz/worker/internal/text"
)

// column is a column of a table.
type column struct {
	name string
	// least is the width to which the column may be shortened before others are left out; 0: it is never shortened.
	least int
	// spare is the order in which columns are left out of a table that is too wide; 0: it is never left out.
	spare int
	// wraps is set if the text is not cut: on a terminal it goes on in the next line. It is for the last column.
	wraps bool
}

// printer prints results, each as a row of a table or as a line of JSON. A table is printed at the end, as wide as the
// terminal is: first times are shortened, then columns are left out and cut.
type printer struct {
	w       io.Writer
	format  format
	paint   paint
	width   int // 0: no limit
	wrap    int // width of what wraps; 0: nothing does
	columns []column
	rows    [][]string
	notes   map[int][]string // by row
	count   int
}

func newPrinter(c *cobra.Command, f format, columns ...column) *printer {
	w := c.OutOrStdout()
	p := &printer{w: w, format: f, paint: paintFor(c, w), columns: columns, notes: map[int][]string{}}
	if f != formatWide {
		p.wrap = widthFor(c, f)
		p.width = cmp.Or(p.wrap, defaultWidth)
	}
	return p
}

// print prints v as JSON, or the cells as a row.
func (p *printer) print(v any, cells ...string) error {
	p.count++
	if p.format == formatJSON {
		return printJSON(p.w, v)
	}
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = text.Printable(c)
	}
	p.rows = append(p.rows, row)
	return nil
}

// noteIndent is how far what stands below a row is indented.
const noteIndent = 4

// note prints lines in full below the row that was printed last.
func (p *printer) note(lines ...string) {
	if last := len(p.rows) - 1; last >= 0 {
		p.notes[last] = lines
	}
}

// flush prints the table.
func (p *printer) flush() error {
	if len(p.rows) == 0 {
		return nil
	}
	widths := p.fit(time.Now())
	out := bufio.NewWriter(p.w)
	names := make([]string, len(p.columns))
	for i, c := range p.columns {
		names[i] = c.name
	}
	p.row(out, widths, names, func(string) string { return bold })
	for i, row := range p.rows {
		p.row(out, widths, row, styleOf)
		for _, line := range p.notes[i] {
			fmt.Fprintf(out, "%*s%s\n", noteIndent, "", line)
		}
	}
	p.rows, p.notes = nil, map[int][]string{}
	return out.Flush()
}

const gap = 2 // blanks between columns

// fit returns the widths of the columns, 0 for those that are left out.
func (p *printer) fit(now time.Time) []int {
	widths := p.natural()
	if p.width == 0 || sum(widths) <= p.width {
		return widths
	}
	for _, row := range p.rows {
		for i := range row {
			if !p.columns[i].wraps {
				row[i] = shortTime(row[i], now)
			}
		}
	}
	widths = p.natural()
	for sum(p.floors(widths, true)) > p.width {
		next := -1
		for i, c := range p.columns {
			if c.spare > 0 && widths[i] > 0 && (next < 0 || c.spare < p.columns[next].spare) {
				next = i
			}
		}
		if next < 0 {
			break // the terminal is very narrow
		}
		widths[next] = 0
	}
	shorten(widths, p.floors(widths, true), p.width)
	shorten(widths, p.floors(widths, false), p.width)
	return widths
}

// floors are the widths to which columns may be shortened: those of their names or, if they are to be readable, their own.
func (p *printer) floors(widths []int, readable bool) []int {
	floors := slices.Clone(widths)
	for i, c := range p.columns {
		if c.least > 0 {
			floors[i] = min(widths[i], len(c.name))
		}
		if c.least > 0 && readable {
			floors[i] = min(widths[i], max(c.least, len(c.name)))
		}
	}
	return floors
}

// shorten takes from the widest columns until a table has a width, or until nothing can be taken.
func shorten(widths, floors []int, width int) {
	for sum(widths) > width {
		widest := -1
		for i := range widths {
			if widths[i] > floors[i] && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
}

// natural are the widths in which nothing is cut.
func (p *printer) natural() []int {
	widths := make([]int, len(p.columns))
	for i, c := range p.columns {
		widths[i] = len(c.name)
		for _, row := range p.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	return widths
}

// sum is the width of a table with columns of these widths.
func sum(widths []int) int {
	all := -gap
	for _, w := range widths {
		if w > 0 {
			all += w + gap
		}
	}
	return all
}

// row prints a row, and further lines for a last cell that wraps.
func (p *printer) row(w io.Writer, widths []int, cells []string, style func(string) string) {
	blanks := 0
	for i, width := range widths {
		if width == 0 {
			continue
		}
		lines := []string{text.Cut(cells[i], width)}
		if p.columns[i].wraps {
			lines = text.Wrap(cells[i], min(width, p.wrap))
		}
		fmt.Fprint(w, strings.Repeat(" ", blanks)+p.paint.in(style(cells[i]), lines[0]))
		blanks = width - utf8.RuneCountInString(lines[0]) + gap
		for _, line := range lines[1:] {
			fmt.Fprint(w, "\n"+strings.Repeat(" ", sum(widths)-width)+line)
		}
	}
	fmt.Fprintln(w)
}

// shortTime is the text of [localTime] in fewer characters, as ls prints times: without the year, or without the time if it
// is older than half a year. Other texts stay.
func shortTime(text string, now time.Time) string {
	at, err := time.Parse(timeLayout, text)
	switch {
	case err != nil:
		return text
	case now.Sub(at).Abs() > 183*24*time.Hour:
		return at.Format(time.DateOnly)
	default:
		return at.Format("01-02 15:04:05")
	}
}

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

func printJSON(w io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("print as JSON: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", rawjson.Printable(line))
	return err
}

// newEventPrinter returns a printer for [printEvent].
func newEventPrinter(c *cobra.Command, f format) *printer {
	return newPrinter(c, f, column{name: "CREATED"}, column{name: "TYPE", least: 20}, column{name: "AGGREGATE", least: 20, spare: 3},
		column{name: "VER", spare: 4}, column{name: "TENANT", spare: 1}, column{name: "CORRELATION", spare: 2}, column{name: "EVENT"})
}

// printEvent prints an event. What may be about a patient is printed only with reveal.
func printEvent(p *printer, e events.Event, reveal bool) error {
	if p.format == formatJSON {
		line, err := eventLine(e, reveal)
		if err != nil {
			return err
		}
		return p.print(line)
	}
	err := p.print(nil, localTime(e.CreatedAt), e.Type, e.AggregateType+"/"+e.AggregateID.String(), fmt.Sprint(e.AggregateVersion),
		e.TenantID.String(), e.CorrelationID.String(), e.ID.String())
	if err == nil && reveal {
		p.note(text.Printable(dataOf(e)))
	}
	return err
}

// dataOf is what may be about a patient in an event.
func dataOf(e events.Event) string {
	text := "event_data " + string(e.Data)
	if len(e.Metadata) > 0 {
		text += " metadata " + string(e.Metadata)
	}
	return text
}

// addReveal gives c the flag without which commands do not print what may be about a patient.
func addReveal(c *cobra.Command) *bool {
	return c.Flags().Bool("reveal", false, "print event_data and metadata, too: they may be about a patient")
}

// eventLine is what is printed of an event as JSON: with reveal all of it, as append reads it.
func eventLine(e events.Event, reveal bool) (any, error) {
	if reveal {
		return readable(e), nil
	}
	e.Data, e.Metadata = json.RawMessage("null"), nil
	line, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("print event %s: %w", e.ID, err)
	}
	return json.RawMessage(bytes.Replace(line, []byte(`,"event_data":null`), nil, 1)), nil // within a string the quotes are escaped
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

const timeLayout = "2006-01-02 15:04:05.000Z"

// localTime is a time as commands print it, in UTC.
func localTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return events.FormatTime(t, timeLayout)
}

func orDash(s string) string { return cmp.Or(s, "-") }
